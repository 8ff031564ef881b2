"""Lesson 12: MusicGen. Say what you want: conditions, guidance, and patterns.

    python recipes/12_musicgen.py FOLDER [--label-pattern "{digit}_{speaker}_{}"] [--out runs/12_musicgen] [--minutes 4]

What it teaches. A model of sound becomes an instrument once you can say what it should play. A condition is a vector
that is added to the input of each step: one row of a table for a label such as an instrument, one linear layer for a
melody. In training, conditions are dropped at random, so the same weights also learn the model without them. That makes
guidance possible: at each step, the model is asked twice, with the condition and without it, and the difference between
the two answers is exaggerated. A scale of 0 ignores the condition, 1 is the model as trained, and more follows the
condition more closely, but the sounds may become more alike. The lesson trains a model, generates sounds at several
scales, and measures both with a classifier that learned from the same training files. It then measures how closely
generated sound follows a melody.

How it carries over to audio. A codec gives several codes per frame, and something must decide in which order they are
predicted. MusicGen compares three patterns. Parallel: all codes of a frame at once, as if they were independent.
Flatten: one after another, K times as many steps. Delay: each code one step after the previous one, so that it sees
it, at almost no cost. The last part trains one small GPT with each pattern for the same time, on the same codes.

What to try. Name the labels of your files: --label-pattern "{instrument}_{pitch}_{}", or write a metadata.csv. Train
for longer (--minutes 15): at which scale do the digits become clear? Sing a melody into a file and ask for it:
audiogen generate runs/12_musicgen/run --out out --melody sung.wav. Ask for two labels that never occur together in the
folder: what do you hear?

Source: Copet et al. 2023, Simple and Controllable Music Generation (MusicGen); Ho and Salimans 2022, Classifier-Free
Diffusion Guidance.
"""

import math
import time
from collections.abc import Iterator

import torch

from audiogen.audio.io import mono, read_audio, write_audio
from audiogen.commands.train import train
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import (
    Crops,
    EncodedCache,
    FileConditions,
    Labels,
    Sequences,
    choose_conditions,
    encode_folder,
    find_labels,
    scan,
    split,
)
from audiogen.data.descriptors import described_value
from audiogen.errors import ConfigError
from audiogen.evaluation.distribution import kad, log_mel_statistics
from audiogen.evaluation.heard import label_values, tally
from audiogen.evaluation.judges import train_judge
from audiogen.evaluation.melody import followed
from audiogen.evaluation.report import labelled_sounds
from audiogen.evaluation.scores import held_out_score
from audiogen.evaluation.sounds import generate_sounds
from audiogen.listen import Clip, Line, clip_cards, clip_slider, grid, line_chart, section, table, text
from audiogen.models.backbones import GPT
from audiogen.models.conditioning import Conditioner, Label, Melody
from audiogen.models.patterns import PATTERNS
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.folder import read_source
from audiogen.runs.run import Run
from audiogen.utils.scripts import run_script

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 6.0)  # of guidance
MOST = 100  # held-out files to judge
MOST_FRAMES = 1000  # held-out frames whose likelihood says what a condition is worth
SHOWN = 4  # sounds per scale to listen to
SHORT = [
    "frontend.griffin_lim_iterations=2",
    "frontend.num_features=20",
    "backbone.dim=16",
    "backbone.num_layers=2",
    "backbone.num_heads=2",
    "training.crop_frames=32",
    "training.batch_size=2",
    "training.evaluations=1",
    "training.sample_seconds=0.3",
]


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--label-pattern", help="labels in file names; by default, what precedes the first underscore")
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of the model that is guided")
    parser.add_argument("--pattern-minutes", type=float, default=1.0, help="training time with each pattern")
    parser.add_argument("--num", type=int, default=60, help="clips per scale")
    args = parser.parse_args()
    if args.short:
        args.num = 4

    # 1. What is known of each file? A table, sidecars, folder names; otherwise the file names.
    index = scan(args.folder)
    labels = find_labels(index, args.label_pattern)
    pattern = args.label_pattern if labels.files else "{label}_{}"
    labels = labels if labels.files else find_labels(index, pattern)
    chosen = choose_conditions(labels, split(index))
    if not any(isinstance(config, Label.Config) for config in chosen.values()):
        raise ConfigError(f"{args.folder}: found no label to learn; give --label-pattern, or see audiogen doctor")

    # 2. Train: on labels and melody, as `audiogen train` does: its loop drops each condition now and then.
    run = train(
        args.folder,
        args.out / "run",
        condition=[*chosen, "melody"],
        label_pattern=pattern,
        start="scratch" if args.short else None,
        overrides=SHORT if args.short else [],
        **({"steps": 4} if args.short else {"minutes": args.minutes}),
    )

    # 3. What did it learn? The worth of its conditions, guidance, melodies, and the order of codes.
    page = write_lesson(
        __file__, args, worth(run, labels), *guided(run, labels, args), melodies(run, args), patterns(labels, args)
    )
    print(f"open {page}")


def worth(run: Run, labels: Labels) -> str:
    """Measure by how much each condition lowers the held-out loss."""
    cache = EncodedCache.open(read_source(run.folder), run.frontend)
    held_out = Sequences(cache, run.split().held_out).limited(MOST_FRAMES)
    known = FileConditions(run.config.conditions, labels)
    values = [known.of_item(held_out.piece(i, length=x.shape[1])) for i, x in enumerate(held_out)]
    names = [name for name, part in known.parts.items() if isinstance(part, Label)]
    loss = {"nothing": held_out_score(run.model, held_out).loss}
    for name in names:
        loss[name] = held_out_score(run.model, held_out, None, [{name: item[name]} for item in values]).loss
    loss["all labels"] = held_out_score(
        run.model, held_out, None, [{name: item[name] for name in names} for item in values]
    ).loss
    unit = run.frontend.spec.unit
    rows = [[name, value, value - loss["nothing"]] for name, value in loss.items()]
    for name, value, gained in rows:
        print(f"held-out loss, {name} given: {value:.3f} {unit} ({gained:+.3f})")
    return section(
        "What a condition is worth",
        text(
            "The same model on held-out files, with some of its conditions. Where a label lowers the loss, the model "
            "has learned what it means. Sound contains much that no label says, so even a difference that is small "
            "beside the loss may be all that you asked for."
        ),
        table(["given", f"held-out loss ({unit})", "difference"], rows),
    )


def guided(run: Run, labels: Labels, args) -> Iterator[str]:
    """Generate sounds at each scale of guidance, and let a classifier say what it hears in them."""
    rate, values = run.sample_rate, label_values(run)
    name = next(iter(values))
    judge = train_judge(labelled_sounds(args.folder, run.split().train, rate, labels), values, rate)
    held_out = list(labelled_sounds(args.folder, run.split().held_out[:MOST], rate, labels))
    sets = {"held-out recordings": held_out}
    sets |= {f"guidance {scale:g}": generate_sounds(run, args.num, 0, None, scale) for scale in SCALES}
    reference, rows = log_mel_statistics([wav for wav, _ in held_out], rate), []
    clips: dict[str, list[Clip]] = {kind: [] for kind in sets}
    for kind, sounds in sets.items():
        heard = [judge.hear(wav) for wav, _ in sounds]
        told = {
            label: tally(
                [(row[label], words[label]) for (_, row), words in zip(sounds, heard, strict=True) if label in row],
                several,
            )
            for label, several in values.items()
        }
        embedded = log_mel_statistics([wav for wav, _ in sounds], rate)
        apart = kad(reference, embedded).value if min(len(reference), len(embedded)) > 1 and rows else None
        rows.append([kind, *(told[label]["right"] for label in values), told[name]["spread"], apart])
        print(
            f"{kind}: "
            + ", ".join(f"{label} as asked {100 * (told[label]['right'] or 0):.0f} %" for label in values)
            + f", spread of {name} {told[name]['spread']:.1f} of {len(values[name])}"
            + ("" if apart is None else f", KAD {apart:.3f}")
        )
        for number, ((wav, row), words) in enumerate(zip(sounds[:SHOWN], heard, strict=False)):
            path = args.out / "guidance" / f"{len(rows)}-{number}.wav"
            write_audio(path, wav, rate)
            clips[kind].append(Clip(path, ", ".join(row.values()), f"{kind}, heard as {', '.join(words.values())}"))
    shares = [100 * (row[1] or 0) for row in rows[1:]]
    yield section(
        "Guidance",
        text(
            "The share of sounds in which a small classifier, trained on the same training files, hears what was asked "
            "for. Spread is the number of values that are heard (the exponential of their entropy): if guidance made "
            "all sounds alike, it would fall. KAD is the distance from held-out recordings; 0 is none."
        ),
        table(["sounds", *(f"{label} as asked" for label in values), f"spread of {name}", "KAD"], rows),
        line_chart(
            [Line(f"{name} heard as asked", list(SCALES), shares)], {}, "guidance", "%", f"{name} as asked, by scale."
        ),
    )
    yield section(
        "What guidance sounds like",
        text(
            "The same random numbers and the same labels at every scale: only the scale differs. The first position of "
            "the slider is held-out recordings."
        ),
        clip_slider(
            "guidance", {kind.removeprefix("guidance "): some for kind, some in clips.items()}, 1 + SCALES.index(1.0)
        ),
    )


def melodies(run: Run, args) -> str:
    """Ask for the melodies of held-out files, and measure how closely generated sound follows them."""
    rate, spec, part = run.sample_rate, run.frontend.spec, Melody({}, 1)
    wavs = [read_audio(args.folder / p.file.path, rate)[:, : int(8 * rate)] for p in run.split().held_out[:8]]
    asked = [described_value(part, wav[None], spec)[:, :-1] for wav in wavs]  # (12, T) each
    longest = max(wav.shape[1] for wav in wavs) / rate
    made = mono(run.generate(longest, seeds=range(len(wavs)), conditions={"melody": asked})).cpu()
    sung = [described_value(part, x[None, :, : wav.shape[1]], spec)[:, :-1] for x, wav in zip(made, wavs, strict=True)]
    found = followed(asked, sung) or {"value": math.nan, "shuffled": math.nan}  # of drums, no frame has a pitch
    mean, other = found["value"], found["shuffled"]
    if math.isfinite(mean):
        print(f"melody: chroma cosine {mean:.2f} with the melody that was asked for, {other:.2f} with others")
    clips = []
    for i, wav in enumerate(wavs[:3]):
        for name, sound in (("asked", wav), ("generated", made[i][:, : wav.shape[1]])):
            path = args.out / "melody" / f"{i}-{name}.wav"
            write_audio(path, sound, rate)
            clips.append(Clip(path, name, f"held-out file {i + 1}"))
    return section(
        "Melody",
        text(
            "A melody is the strength of each of the twelve pitch classes in each frame, computed from a recording. "
            + (
                "The mean cosine between the melodies of held-out files and those of the sound that was generated for "
                f"them is {mean:.2f}; between melodies of different files it is {other:.2f}. On speech, the melody is "
                "the intonation."
                if math.isfinite(mean)
                else "No frame of these held-out files and of the sounds generated for them has a pitch, so there is "
                "nothing to compare."
            )
        ),
        grid(clip_cards(clips)),
    )


def patterns(labels: Labels, args) -> str:
    """Train one small GPT with each pattern, for the same time and on the same codes."""
    settings = (
        {"num_codebooks": 4, "codebook_size": 256} if not args.short else {"num_codebooks": 2, "codebook_size": 8}
    )
    encoded = encode_folder(args.folder, args.out / "codes", "melvq", **settings)
    spec, sides, frames = encoded.frontend.spec, encoded.sides, 16 if args.short else 192
    chosen = {
        name: config for name, config in choose_conditions(labels, sides).items() if isinstance(config, Label.Config)
    }
    known = FileConditions(chosen, labels)
    crops = Crops(encoded.cache, sides.train, frames, 4, 0, known, dropout=0.1)
    held_out = Sequences(encoded.cache, sides.held_out)
    values = [known.of_item(held_out.piece(i, length=x.shape[1])) for i, x in enumerate(held_out)]
    rows = []
    for name, kind in PATTERNS.items():
        torch.manual_seed(0)
        pattern = kind(spec.num_rows)
        backbone = GPT(GPT.Config(16 if args.short else 192, 2 if args.short else 4, 2, window=frames))
        conditioner = Conditioner({label: Label(config, backbone.dim) for label, config in chosen.items()})
        model = SequenceModel(spec, backbone, pattern, conditioner)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        began, step = time.perf_counter(), 0
        while step < 2 if args.short else time.perf_counter() - began < 60 * args.pattern_minutes:
            batch, _ = crops.batch(step)
            loss = model(batch).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        bits = held_out_score(model.eval(), held_out, None, values).loss
        blind = held_out_score(model, held_out).loss
        rows.append([name, pattern.num_steps(frames) / frames, step, bits, blind])
        print(f"{name}: {step} steps of training, {bits:.3f} bits per code (without labels {blind:.3f})")
    return section(
        "Patterns",
        text(
            "Parallel ignores that the codes of a frame depend on each other. Flatten ignores nothing, but a frame "
            "takes several steps, so the model sees less sound in the same time, and generation takes longer. "
            "Delay costs one step more per codebook in a whole clip."
        ),
        table(["pattern", "steps per frame", "training steps", "held-out bits per code", "without labels"], rows),
    )


if __name__ == "__main__":
    raise SystemExit(run_script(main))
