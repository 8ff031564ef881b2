"""Lesson 13: AudioLM. Meaning before sound: a model of what is said, and a model of how it sounds.

    python recipes/13_audiolm.py FOLDER [--label-pattern "{digit}_{speaker}_{}"] [--out runs/13_audiolm] [--minutes 20]

What it teaches. A model of sound spends its effort on how things sound, and loses the thread of what is said after a
second or two. AudioLM divides the work. A first model predicts tokens that keep what is said or played and drop the
voice. They are learned without labels: a network predicts hidden stretches of a recording from what surrounds them, in
inputs whose voice is disguised, and its features are clustered. A second model makes the sound, given the tokens frame
by frame. Both are given a prompt: so the first goes on with what is said, and the second with the voice.

How it carries over to audio. The voice of a prompt and the tokens of another recording can be combined. The lesson
plays the same token from several files, measures what tokens tell about each label of the files, and what is lost in
each stage. Then it renders one recording in many voices, and many recordings in one voice, and lets a classifier hear
whether the words come from the one and the voice from the other.

What to try. Name the labels of your files: --label-pattern "{digit}_{speaker}_{}". Train for longer (--minutes 60).
Put your own voice into the folder, and render somebody else's words in it: audiogen generate runs/13_audiolm/run --out
out --prompt me.wav --meaning other.wav. Take codes that keep the voice for the first stage (--stages melvq,mel): what
becomes of the renderings?

Source: Borsos et al. 2022, AudioLM, a Language Modeling Approach to Audio Generation; Hsu et al. 2021, HuBERT.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiogen.audio.io import mono, write_audio
from audiogen.commands.train import train
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import EncodedCache, Labels, Part, Sequences, encode_folder, find_labels, scan
from audiogen.evaluation.judges import Judge, train_judge
from audiogen.evaluation.reconstruction import mel_distance
from audiogen.evaluation.report import labelled_sounds, originals, report
from audiogen.evaluation.wording import report_rows
from audiogen.listen import Clip, clip_cards, grid, section, table, text
from audiogen.runs.folder import read_source
from audiogen.runs.run import Run
from audiogen.utils.scripts import run_script

TOKENS, PLACES = 6, 5  # tokens to listen to, and files for each
AROUND = 0.08  # seconds before and after a token
SILENT = 0.01  # root mean square below which a token is not worth hearing
VOICES, SHOWN = 3, 3  # on the page: meanings x voices, clips
LONGEST = 4.0  # seconds of a meaning or a prompt
SHORT = [
    "semantic.frontend.encoder=fit",
    "semantic.frontend.fit_steps=2",
    "semantic.frontend.dim=16",
    "semantic.frontend.num_layers=1",
    "mel.frontend.griffin_lim_iterations=2",
    "mel.frontend.num_features=20",
    "backbone.dim=16",
    "backbone.num_layers=1",
    "training.crop_frames=32",
    "training.batch_size=2",
    "training.evaluations=1",
    "training.sample_seconds=0.2",
    "sampling.temperature=1.0",
]


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--stages", default="semantic,mel", help="front-ends of the two models (default: %(default)s)")
    parser.add_argument("--label-pattern", help="labels in file names; by default, what precedes the first underscore")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of both models together")
    parser.add_argument("--num", type=int, default=40, help="renderings for the classifier to hear")
    args = parser.parse_args()
    if args.short:
        args.num = 2

    # 1. Two models in order: the second is given the tokens of the first. No labels are learned.
    run = train(
        args.folder,
        args.out / "run",
        stages=args.stages.split(","),
        backbone="gru" if args.short else None,
        overrides=SHORT if args.short else [],
        **({"steps": 4} if args.short else {"minutes": args.minutes}),
    )
    index = scan(args.folder)
    labels = find_labels(index, args.label_pattern)
    labels = labels if labels.files else find_labels(index, "{label}_{}")

    # 2. What did they learn? What tokens hold, what each stage loses, one meaning in many voices, and continuations.
    page = write_lesson(
        __file__,
        args,
        same_token(run, args),
        told(run, labels, args),
        losses(run, args),
        *renderings(run, labels, args),
        continuations(run, args),
    )
    print(f"open {page}")


def tokens_of(run: Run) -> EncodedCache:
    """Return the codes of the first stage for all files of the folder."""
    first = run.stages[0]
    return EncodedCache.open(read_source(first.folder), first.frontend)


def same_token(run: Run, args) -> str:
    """Play the same token from several files, one after another."""
    cache = tokens_of(run)
    rate, seconds_per_frame = run.sample_rate, 1 / (cache.spec.frame_rate or 1)
    places = {file.sha256: i for i, file in enumerate(cache.files)}
    found: dict[int, list[Tensor]] = {}
    for part in run.split().train:
        sounds = originals(args.folder, [part], rate, 1)
        if part.file.sha256 not in places or not sounds:
            continue
        wav, longest = sounds[0][1], {}
        for token, start, length in stretches(cache.codes(places[part.file.sha256])[0].tolist()):
            if length > longest.get(token, (0, 0))[1]:
                longest[token] = start, length
        for token, (start, length) in longest.items():  # one piece of a file, so that several voices are heard
            begin, end = start * seconds_per_frame - AROUND, (start + length) * seconds_per_frame + AROUND
            piece, heard = wav[:, max(0, int(begin * rate)) : int(end * rate)], found.setdefault(token, [])
            if len(heard) < PLACES and piece.numel() and float(piece.square().mean().sqrt()) > SILENT:
                heard.append(piece)
        if sum(len(heard) == PLACES for heard in found.values()) >= TOKENS:
            break
    clips, pause = [], torch.zeros(1, int(0.15 * rate))
    for token, pieces in sorted(found.items(), key=lambda item: -len(item[1]))[:TOKENS]:
        path = args.out / "tokens" / f"{token}.wav"
        write_audio(path, torch.cat([x for piece in pieces for x in (piece, pause)], dim=1), rate)
        clips.append(Clip(path, f"token {token}", f"in {len(pieces)} places"))
    return section(
        "The same token",
        text(
            "Each clip is one token, cut out where it occurs, with a little of what surrounds it. The better the "
            "token, the more the pieces have the same sound of speech, and the less the same voice."
        ),
        grid(clip_cards(clips)),
    )


def stretches(codes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the runs of equal codes: (code, first frame, number of frames)."""
    found, start = [], 0
    for code, equal in itertools.groupby(codes):
        length = len(list(equal))
        found.append((code, start, length))
        start += length
    return found


def told(run: Run, labels: Labels, args) -> str:
    """Measure what a token tells about each label of its file, beside codes of the mel spectrum."""
    first = run.stages[0].frontend.spec
    size = first.num_choices if not args.short else 8
    other = encode_folder(args.folder, args.out / "codes", "melvq", num_codebooks=1, codebook_size=size)
    names = [name for name in labels.names if len(set(labels.column(name, run.split().train))) > 1]
    rows = []
    for kind, cache in ((run.stages[0].name, tokens_of(run)), ("clusters of mel frames", other.cache)):
        for name in names:
            bits, chance = information(cache, labels, name)
            rows.append([kind, name, bits, chance])
            print(f"{kind}: a code tells {bits:.2f} bits about the {name}, {chance:.2f} by chance")
    return section(
        "What a token tells",
        text(
            "Bits that one token tells about a label of its file, counted over all files (the mutual information); "
            "and the same with the labels exchanged between files, which is chance. Beside them, as many clusters of "
            "the mel spectrum. A token should tell more about what is said and less about who says it."
        ),
        table(["codes", "label", "bits per token", "by chance"], rows),
    )


def information(cache: EncodedCache, labels: Labels, name: str) -> tuple[float, float]:
    """Return the mutual information in bits of codes and a label, and that with shuffled labels."""
    known = [i for i, file in enumerate(cache.files) if name in labels.files.get(file.sha256, {})]
    values = [labels.files[cache.files[i].sha256][name] for i in known]
    ids = {value: place for place, value in enumerate(sorted(set(values)))}
    given = np.array([ids[value] for value in values])
    found = []
    for order in (given, np.random.default_rng(0).permutation(given)):
        counts = np.zeros((len(ids), cache.spec.num_choices))
        for place, i in zip(order, known, strict=True):
            np.add.at(counts[place], cache.codes(i)[0].numpy(), 1)
        joint = counts / counts.sum()
        apart = joint.sum(0, keepdims=True) * joint.sum(1, keepdims=True)
        seen = joint > 0
        found.append(float((joint[seen] * np.log2(joint[seen] / apart[seen])).sum()))
    return found[0], found[1]


def losses(run: Run, args) -> str:
    """Play and measure what is left of held-out recordings after each stage."""
    clips, distances = (
        [],
        {"round trip": [], "its tokens, in its own voice": [], "its tokens, in a voice by chance": []},
    )
    for number, (name, wav) in enumerate(originals(args.folder, run.split().held_out, run.sample_rate, SHOWN, LONGEST)):
        with torch.inference_mode():
            trip = run.frontend.decode(run.frontend.encode(wav[None]))[0, :, : wav.shape[1]]
        forms = [trip, run.generate(seed=number, prompt=wav, meaning=wav)[0], run.generate(seed=number, meaning=wav)[0]]
        for kind, sound in zip(["original", *distances], [wav, *forms], strict=True):
            path = args.out / "losses" / f"{number}-{len(clips)}.wav"
            write_audio(path, sound, run.sample_rate)
            clips.append(Clip(path, kind, Path(name).name))
            if kind in distances:
                distances[kind].append(mel_distance(wav, mono(sound)[:, : wav.shape[1]], run.sample_rate))
    rows = [[kind, sum(several) / len(several)] for kind, several in distances.items()]
    for kind, value in rows:
        print(f"{kind}: mel distance {value:.3f}")
    loss_rows = []
    for stage in run.stages:
        held_out = Sequences(EncodedCache.open(read_source(stage.folder)), stage.split().held_out)
        before = None if stage.before is None else EncodedCache.open(read_source(stage.before.folder))
        found = report(
            stage, held_out, stage.training_sequences(), [], stage.file_conditions(held_out.cache, None, before)
        )
        loss_rows += [[stage.name, *row] for row in report_rows(found)]
    return section(
        "What each stage loses",
        text(
            "An original, its round trip through the front-end of the last stage, and what is rendered from its tokens "
            "alone: with the original as a prompt, and without a prompt. The mel distance is 0 for equal sounds. What "
            "is said should survive, and so should the timing, since there is a token for each moment; the voice "
            "should be that of the prompt."
        ),
        grid(clip_cards(clips)),
        table(["sound", "mel distance to the original"], rows),
        table(["stage", "held-out loss", ""], loss_rows),
    )


def renderings(run: Run, labels: Labels, args) -> Iterator[str]:
    """Render the tokens of held-out files in the voices of others, and let a classifier hear both."""
    parts = sorted(run.split().held_out, key=lambda part: part.file.sha256)
    sounds = [(part, wav) for part in parts for _, wav in originals(args.folder, [part], run.sample_rate, 1, LONGEST)]
    clips = []
    for row, (said, meaning) in enumerate(sounds[:VOICES]):
        for column, (spoken, voice) in enumerate(sounds[-VOICES:]):
            path = args.out / "voices" / f"{row}-{column}.wav"
            write_audio(path, run.generate(seed=0, prompt=voice, meaning=meaning)[0], run.sample_rate)
            clips.append(Clip(path, Path(said.file.path).stem, f"in the voice of {Path(spoken.file.path).stem}"))
    yield section(
        "One meaning in many voices, one voice with many meanings",
        text("The tokens of one recording, rendered after the prompt of another; the prompt itself is left out."),
        grid(clip_cards(clips)),
    )
    values = {
        name: tuple(sorted(set(labels.column(name, run.split().train))))
        for name in labels.names
        if 1 < len(set(labels.column(name, run.split().train))) <= 100
    }
    if not values:
        return
    judge = train_judge(
        labelled_sounds(args.folder, run.split().train, run.sample_rate, labels), values, run.sample_rate
    )
    rows = heard_in(run, judge, labels, sounds, args.num)
    yield section(
        "What is heard",
        text(
            "A small classifier of the training files hears renderings of held-out files in the voices of others, "
            "where the two have different labels. A label of what is said should be that of the meaning, a label of "
            "the voice that of the prompt. Of the recordings themselves, and of their round trips, it recognises the "
            "shares in the last columns."
        ),
        table(["label", "heard as the meaning's", "as the prompt's", "n", "recordings", "round trips"], rows),
    )


def heard_in(
    run: Run, judge: Judge, labels: Labels, sounds: Sequence[tuple[Part, Tensor]], num: int
) -> list[list[Any]]:
    """Render `num` pairs of sounds, and return a row for each label: shares heard as the meaning's and the prompt's."""

    def row_of(part: Part) -> Mapping[str, str]:
        return labels.files.get(part.file.sha256, {})

    counts = {name: np.zeros(3) for name in judge.values}
    for number in range(num):
        (said, meaning), (spoken, voice) = sounds[number % len(sounds)], sounds[(7 * number + 3) % len(sounds)]
        heard = judge.hear(mono(run.generate(seed=number, prompt=voice, meaning=meaning)[0]))
        for name, found in counts.items():
            one, other = row_of(said).get(name), row_of(spoken).get(name)
            if None not in (one, other) and one != other:
                found += heard[name] == one, heard[name] == other, 1
    rows = []
    for name, (meant, voiced, n) in counts.items():
        own = [(row_of(part)[name], wav) for part, wav in sounds if name in row_of(part)][:num]
        with torch.inference_mode():
            trips = [run.frontend.decode(run.frontend.encode(wav[None]))[0] for _, wav in own]
        right = [
            sum(judge.hear(wav)[name] == value for (value, _), wav in zip(own, wavs, strict=True)) / max(1, len(own))
            for wavs in ([wav for _, wav in own], trips)
        ]
        rows.append([name, meant / max(1, n), voiced / max(1, n), int(n), *right])
        shares = f"as the meaning's {meant / max(1, n):.0%}, as the prompt's {voiced / max(1, n):.0%}"
        print(f"{name}, of {n:.0f} renderings: heard {shares}")
    return rows


def continuations(run: Run, args) -> str:
    """Continue the beginnings of held-out files, with both stages and with the last one alone."""
    clips = []
    for number, (name, wav) in enumerate(originals(args.folder, run.split().held_out, run.sample_rate, SHOWN, 3.0)):
        nothing = {run.before.name: None} if run.before else {}
        for kind, conditions in (("both stages", {}), ("the last stage alone", nothing)):
            sound = run.generate(0.2 if args.short else 4.0, seed=number, prompt=wav, conditions=conditions)[0]
            path = args.out / "continued" / f"{number}-{len(clips)}.wav"
            write_audio(path, sound, run.sample_rate)
            clips.append(Clip(path, kind, Path(name).name, prompt_seconds=wav.shape[1] / run.sample_rate))
    return section(
        "Continuation",
        text("Held-out beginnings, continued by both stages, and by the same last stage without any tokens."),
        grid(clip_cards(clips)),
    )


if __name__ == "__main__":
    raise SystemExit(run_script(main))
