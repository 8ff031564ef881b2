"""The gallery: train a few small runs on tunes that are synthesised here, and write docs/gallery.md with their sounds.

    python recipes/gallery.py [--out runs/gallery] [--docs docs]

Nothing is downloaded, so anyone can rebuild the page, on a CPU in some minutes. A run that was trained to its end is
kept, so the command can be interrupted and repeated.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from audiogen.audio.io import mono, read_audio
from audiogen.commands.train import train
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import holds_run
from audiogen.runs.outlook import BASE
from audiogen.runs.run import Run, load_run
from audiogen.utils.files import atomic_path, atomic_write_text
from audiogen.utils.scripts import run_script

HERE = Path(__file__).parent
#: Of the corpus in minutes, of each sound in seconds; of what is drawn.
MINUTES, SECONDS, SEED = 12, 4.0, 1
INTRODUCTION = """# Gallery

What some parts of audiogen sound like. `python recipes/gallery.py` makes this page: it synthesises a corpus, trains
nine small runs on it, each for a few minutes on a CPU, and generates each sound once, with a fixed seed: no
take is selected. Your own runs will be trained for longer."""


#: The labels of the corpus, with values that are asked for where others are heard.
OTHER = {"lead": "harp", "tempo": "104", "shaker": "no"}
#: The runs by name: steps, and other arguments of `audiogen.train`.
RUNS: dict[str, dict[str, Any]] = {
    "mulaw-bigram": {"steps": 200, "frontend": "mulaw", "backbone": "bigram", "condition": ["none"]},
    "melvq-mlp": {"steps": 300, "frontend": "melvq", "backbone": "mlp", "condition": ["none"]},
    "melvq-gru": {"steps": 150, "frontend": "melvq", "backbone": "gru", "condition": ["none"]},
    "mulaw-wavenet": {
        "steps": 600,
        "frontend": "mulaw",
        "backbone": "wavenet",
        "condition": ["none"],
        "overrides": [
            "training.batch_size=1",
            "training.crop_frames=2048",
            "training.learning_rate=1e-2",
            "backbone.dim=64",
            "backbone.residual_dim=32",
            "backbone.num_layers=10",
        ],
    },
    "codec-gpt": {
        "steps": 300,
        "frontend": "codec",
        "backbone": "gpt",
        "condition": ["none"],
        "overrides": ["training.learning_rate=2e-3"],
    },
    "tunes": {"steps": 80, "condition": [*OTHER, "melody", "loudness"]},
    "captions": {"steps": 80, "condition": ["text", "timbre"]},
    "melody": {"steps": 240, "condition": ["melody", "lead", "shaker"]},
    "stages": {"steps": 320, "stages": ["semantic", "mel"]},
}
#: Small batches, a given temperature, and no sounds but those of this page, so that a step and a run take little time.
SETTINGS = [
    "training.batch_size=8",
    "training.sample_seconds=0.1",
    "training.evaluations=4",
    "sampling.temperature=0.9",
]


def describe(corpus: Path) -> None:
    """Add a column of captions to the labels of the corpus, in words of its other columns."""
    path = corpus / "metadata.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*{**rows[0], "text": ""}])
        writer.writeheader()
        writer.writerows({**row, "text": caption(row["lead"], row["tempo"], row["shaker"])} for row in rows)


def caption(lead: str, tempo: str, shaker: str) -> str:
    """Say in words what a tune is."""
    speed = "fast" if int(tempo) > 108 else "slow"
    return f"a {speed} tune on the {lead}" + (", with a shaker" if shaker == "yes" else "")


def trained(folder: Path, corpus: Path, arguments: dict[str, Any]) -> Run:
    """Train a run, continue it, or load it if it was trained to its end."""
    if any(event["event"] == "final" for event in read_metrics(folder)):
        return load_run(folder)
    arguments = {**arguments, "overrides": [*SETTINGS, *arguments.get("overrides", ())]}
    return train(corpus, folder, resume=holds_run(folder), **arguments)


@dataclass(frozen=True)
class Sound:
    """A sound of the page.

    Attributes:
        name: of its file, without suffix.
        about: what one hears.
        wav: (1, N).
        sample_rate: Hz.
    """

    name: str
    about: str
    wav: Tensor
    sample_rate: int


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph below it, and sounds."""

    title: str
    text: str
    sounds: Sequence[Sound]


def made(run: Run, name: str, abouts: Sequence[str], **request: Any) -> list[Sound]:
    """Generate a sound for each of `abouts`; arguments of `Run.generate`, whose lists have a value for each."""
    wavs = run.generate(**{"seconds": SECONDS, "seeds": [SEED] * len(abouts), **request}).cpu()
    return [
        Sound(f"{name}-{i + 1}", about, mono(wav), run.sample_rate)
        for i, (about, wav) in enumerate(zip(abouts, wavs, strict=True))
    ]


def beginning(path: Path, sample_rate: int) -> Tensor:
    """Return the beginning of a recording, (1, N)."""
    return read_audio(path, sample_rate, 0, round(SECONDS * sample_rate))


def first_of(corpus: Path) -> dict[str, Path]:
    """Return the first recording of each instrument."""
    with (corpus / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return {row["lead"]: corpus / row["file"] for row in reversed(list(csv.DictReader(file)))}


def of_recordings(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return a recording and its round trip."""
    run = runs["tunes"]
    wav = beginning(first_of(corpus)["harp"], run.sample_rate)
    back = run.frontend.decode(run.frontend.encode(wav[None]))[0, :, : wav.shape[1]]
    return Section(
        "The recordings",
        f"Tunes of plucked strings from `datasets/synthetic.py`: {MINUTES} minutes, at 16 kHz.",
        [
            Sound("corpus-1", "a tune", wav, run.sample_rate),
            Sound("corpus-2", "turned into mel frames and back, with no model between", back, run.sample_rate),
        ],
    )


def of_rungs(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return what each kind of model makes of the recordings."""
    sounds = []
    for name, run in runs.items():
        if "-" in name:
            frontend, backbone = name.split("-")
            sounds += made(run, f"rung-{name}", [f"`{frontend}` and `{backbone}`: {run.step} steps"])
    tunes = runs["tunes"]
    sounds += made(tunes, "rung-tunes", [f"`mel` and `gpt`, fine-tuned from the base model: {tunes.step} steps"])
    return Section(
        "Rungs",
        "The same recordings, learned by six kinds of model: pairs of samples, a few frames, what a state remembers, "
        "samples again but a sixteenth of a second of them, codes of the neural codec, 13 seconds of frames. "
        "`recipes/ladder.py` trains every rung for the same time, and compares them in numbers.",
        sounds,
    )


def of_fine_tuning(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return the base model before, and the run after fine-tuning."""
    kinds = ["notes", "drums", "speech", "music-tracks"]
    before = made(runs["base"], "before", [f"the base model: {kind}" for kind in kinds], conditions={"kind": kinds})
    return Section(
        "Before and after fine-tuning",
        "What the base model that comes with the package makes of some kinds of sound that it was trained on, and the "
        f"tunes after {runs['tunes'].step} steps of fine-tuning.",
        [*before, *made(runs["tunes"], "after", ["after fine-tuning", "another seed"], seeds=[SEED, SEED + 1])],
    )


def of_labels(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return sounds that differ by one label each."""
    asked = [{}, {"lead": "guitar"}, {"tempo": "120"}, {"shaker": "yes"}]
    values = {name: [{**OTHER, **change}[name] for change in asked] for name in OTHER}
    abouts = ["a harp at 104 beats per minute, without a shaker", "lead: guitar", "tempo: 120", "shaker: yes"]
    return Section(
        "Labels and numbers",
        "`audiogen generate RUN --label lead=guitar`. All four have the same seed, so the label makes the difference.",
        made(runs["tunes"], "labels", abouts, conditions=values, guidance=2.0),
    )


def of_guidance(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return the same request, followed more and more strongly."""
    asked, sounds = {**OTHER, "shaker": "yes"}, []
    for scale in (1.0, 2.0, 4.0):
        sounds += made(runs["tunes"], f"guidance-{scale:g}", [f"guidance {scale:g}"], conditions=asked, guidance=scale)
    return Section(
        "Guidance",
        "How strongly a harp with a shaker is asked for (`--guidance`). 1 is as learned; more exaggerates, in the end "
        "at the cost of the sound.",
        sounds,
    )


def of_loudness(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return sounds that become louder, and quieter."""
    run, sounds = runs["tunes"], []
    frames = run.frontend.num_frames(round(SECONDS * run.sample_rate))
    rising = torch.linspace(-50.0, -10.0, frames)[None]
    for name, levels in (("rising", rising), ("falling", rising.flip(1))):
        sounds += made(run, f"loudness-{name}", [name], conditions={**OTHER, "loudness": levels}, guidance=2.0)
    return Section(
        "Loudness",
        "A level for each frame, from -50 to -10 dB and back (`--loudness FILE`, or numbers in Python).",
        sounds,
    )


def of_melody(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return a recording, and its melody on two instruments."""
    run, leads, path = runs["melody"], ["harp", "guitar"], first_of(corpus)["harp"]
    asked = {"melody": [path] * 2, "lead": leads, "shaker": ["no"] * 2}
    return Section(
        "Melody",
        f"A run that has learned melodies for {run.step} steps, which is little: some notes are missed by a semitone. "
        "`--melody FILE --label lead=guitar`. A melody is which of the twelve pitch classes sound when, in any octave.",
        [
            Sound("tune-1", "a recording that it has not learned", beginning(path, run.sample_rate), run.sample_rate),
            *made(run, "melody", [f"its melody on the {lead}" for lead in leads], conditions=asked, guidance=3.0),
        ],
    )


def of_captions(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return what is asked for in words, and in the timbre of a recording."""
    run, texts = runs["captions"], [caption("harp", "96", "no"), caption("guitar", "120", "yes")]
    sounds = made(run, "text", [f"“{text}”" for text in texts], conditions={"text": texts}, guidance=2.0)
    files = first_of(corpus)
    about = [f"the timbre of a {lead}" for lead in files]
    sounds += made(run, "timbre", about, conditions={"timbre": [*files.values()]}, guidance=2.0)
    return Section(
        "Words, and the timbre of a recording",
        f"A run that has learned captions and timbre for {run.step} steps, which is little for words: "
        '`--text "a slow tune on the harp"`, and `--timbre FILE`.',
        sounds,
    )


def of_stages(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return what one recording plays in the sound of another, and a continuation by both stages."""
    run = runs["stages"]
    harp, guitar = (beginning(first_of(corpus)[lead], run.sample_rate) for lead in ("harp", "guitar"))
    return Section(
        "Two stages",
        f"`--stages semantic,mel`: a first model of what is played, a second of how it sounds, {run.step} steps each. "
        "`--prompt voice.wav --meaning said.wav` renders the tokens of one recording in the sound of another. These "
        "tokens were learned from speech: of music, they keep when notes begin, but not which notes.",
        [
            Sound("meaning-1", "a harp: what is played", harp, run.sample_rate),
            Sound("prompt-1", "a guitar: how it sounds", guitar, run.sample_rate),
            *made(run, "rendered", ["the one in the sound of the other"], seconds=None, prompt=guitar, meaning=harp),
            *made(
                run,
                "stages",
                ["the guitar's first two seconds, then four new ones"],
                prompt=guitar[:, : guitar.shape[1] // 2],
            ),
        ],
    )


def of_recording(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return a continuation and a variation of a recording."""
    run, path = runs["tunes"], max(corpus.glob("*.wav"))
    wav = beginning(path, run.sample_rate)
    return Section(
        "A recording to continue, or to vary",
        "`--prompt FILE` goes on where it ends; `--like FILE` takes its labels, melody, loudness and timbre.",
        [
            Sound("recording-1", "the recording", wav, run.sample_rate),
            *made(run, "continued", ["its first two seconds, then four new ones"], prompt=wav[:, : wav.shape[1] // 2]),
            *made(run, "varied", ["a variation of it"], conditions=run.conditions_of(path)),
        ],
    )


def of_changes(runs: Mapping[str, Run], corpus: Path) -> Section:
    """Return a sound whose label changes while it is generated."""
    run = runs["tunes"]
    frame_rate = run.frontend.spec.frame_rate or 0
    held = round(2.0 * frame_rate / max(1, int(0.05 * frame_rate)))  # chunks of about 50 ms
    leads = (["harp"] * held + ["guitar"] * held) * 2
    changing = ({**OTHER, "lead": lead} for lead in leads)
    chunks = list(run.stream(2 * SECONDS, seed=SEED, conditions=changing, guidance=2.0))
    return Section(
        "Changed while it plays",
        "`run.stream` with a label that changes every two seconds: harp, guitar, harp, guitar. "
        "[Playing live](live.md) does this with a controller.",
        [Sound("changes-1", "harp and guitar in turn", mono(torch.cat(chunks, dim=-1)[0]), run.sample_rate)],
    )


SECTIONS: list[Callable[[Mapping[str, Run], Path], Section]] = [
    of_recordings,
    of_rungs,
    of_fine_tuning,
    of_labels,
    of_guidance,
    of_loudness,
    of_melody,
    of_captions,
    of_recording,
    of_stages,
    of_changes,
]


def write_page(docs: Path, sections: Sequence[Section]) -> None:
    """Write gallery.md, and its sounds into sounds/; remove sounds that it no longer has."""
    folder = docs / "sounds"
    folder.mkdir(parents=True, exist_ok=True)
    lines, written = [INTRODUCTION], set()
    for section in sections:
        lines.append(f"\n## {section.title}\n\n{section.text}\n")
        for sound in section.sounds:
            path = folder / f"{sound.name}.mp3"
            with atomic_path(path) as temporary:
                soundfile.write(temporary, sound.wav[0].cpu().numpy(), sound.sample_rate, format="MP3")
            written.add(path)
            lines.append(f"- [{sound.about}](sounds/{path.name})")
    for path in set(folder.glob("*.mp3")) - written:
        path.unlink()
    atomic_write_text(docs / "gallery.md", "\n".join(lines) + "\n")


def main() -> None:
    """Make the corpus, train the runs, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"), help="folder of the corpus and the runs")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="folder of the page")
    args = parser.parse_args()
    corpus = args.out / "corpus"
    if not (corpus / "metadata.csv").exists():
        script = HERE.parent / "datasets" / "synthetic.py"
        subprocess.run([sys.executable, script, corpus, "--minutes", str(MINUTES)], check=True)
    describe(corpus)
    runs = {name: trained(args.out / name, corpus, arguments) for name, arguments in RUNS.items()}
    runs["base"] = load_run(BASE)
    write_page(args.docs, [section(runs, corpus) for section in SECTIONS])
    print(f"wrote {args.docs / 'gallery.md'}")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
