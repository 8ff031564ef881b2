"""The ladder: train every rung of the course on one folder, for the same time, and compare them on one page.

    python recipes/ladder.py FOLDER [--out runs/ladder] [--minutes 2] [--rungs mulaw:bigram mulaw:mlp ...]

What it teaches. The course climbs from counting pairs to a GPT, and each rung should be better than the one below. Here
all rungs are compared: trained on the same files for the same time, evaluated on the same held-out files, and played.
What a rung gains is a number, in bits per second of sound.

How it carries over to audio. In text all rungs see the same characters. Sound can be encoded in many ways, and the
codes of a front-end that discards more are easier to predict: 150 bits per second of quantized mel frames are not
better than 30,000 of samples. So rungs are ranked only within one front-end, and the page shows for each front-end what
it loses without any model: how far its round trip is from the original.

What to try. Use another folder, of music or of one instrument: which rungs are further apart than on speech? --minutes
10: which rungs still improve? `--rungs codec:mlp codec:gpt` trains only these two. A run that was already trained for
as many minutes is kept; one that was not is continued.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from audiogen.commands.defaults import frontend_settings
from audiogen.commands.samples import write_round_trips
from audiogen.commands.tokenize import tokenize
from audiogen.commands.train import train
from audiogen.config import find
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import EncodedCache, Index, frontend_for, is_cache, scan
from audiogen.errors import CacheError
from audiogen.evaluation.report import originals, round_trip
from audiogen.frontends import FRONTENDS, frontend_to_dict
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.models.backbones import BACKBONES
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import holds_run, read_config
from audiogen.runs.run import Run, load_run
from audiogen.spec import Unit
from audiogen.utils.scripts import run_script

#: Front-ends that are only used when named: densities have no bits, EnCodec is a download, BPE needs a base front-end.
ASIDE = ("mel", "encodec", "bpe", "semantic")
RUNGS = [f"{frontend}:{backbone}" for frontend in FRONTENDS if frontend not in ASIDE for backbone in BACKBONES]
SHORT = {"melvq:bigram", "melvq:mlp"}
TINY = ["frontend.num_features=12", "frontend.codebook_size=16", "frontend.griffin_lim_iterations=2"]
HEADER = ["rung", "parameters", "minutes", "steps", "loss", "bits per second", "bits per sample", "counted bigram"]


@dataclass(frozen=True)
class Rung:
    """A trained run and its scores.

    Attributes:
        frontend: name of the front-end.
        backbone: name of the backbone.
        run: the run.
        final: the "final" event of the run's log.
        steps: number of training steps.
        seconds: training time.
    """

    frontend: str
    backbone: str
    run: Run
    final: dict[str, Any]
    steps: int
    seconds: float

    @property
    def budget(self) -> float:
        """Maximum training time in minutes."""
        return self.run.config.training.minutes

    @property
    def unit(self) -> str:
        """Unit of the loss."""
        return Unit(self.final["unit"]).per_entry

    @property
    def loss(self) -> float:
        """Loss on held-out files."""
        return self.final["loss"]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.run.model.parameters())

    @property
    def context(self) -> float:
        """Receptive field in milliseconds, or infinity."""
        return 1000 * self.run.model.receptive_seconds

    def row(self) -> list[str | float | int | None]:
        """Return the row of the table, under HEADER."""
        counted = (self.final["baselines"] or {}).get("bigram")
        return [
            f"{self.frontend}:{self.backbone}",
            self.size,
            self.seconds / 60,
            self.steps,
            self.loss,
            self.final["bits_per_second"],
            self.final["bits_per_sample"],
            counted and counted["loss"],
        ]


def main() -> None:
    """Train the rungs and write the page."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="training time of each rung")
    parser.add_argument(
        "--rungs",
        nargs="+",
        default=RUNGS,
        metavar="FRONTEND:BACKBONE",
        help="rungs to train, by default " + " ".join(RUNGS),
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args()
    rungs = [rung for rung in RUNGS if rung in SHORT] if args.short else args.rungs
    minutes = 0.01 if args.short else args.minutes
    for name in rungs:
        frontend, _, backbone = name.partition(":")
        find(frontend, FRONTENDS, f"--rungs {name}")
        find(backbone, BACKBONES, f"--rungs {name}")

    index = scan(args.folder)

    # 1. Encode the folder once for each front-end, and train each rung on the codes.
    print("| " + " | ".join(HEADER) + " |\n|" + " --- |" * len(HEADER), flush=True)
    ladder: dict[str, list[Rung]] = {}
    for name in rungs:
        frontend, _, backbone = name.partition(":")
        cache = encoded(index, args.out / f"{frontend}-cache", frontend, args.device, TINY if args.short else [])
        rung = climb(cache, args.out / f"{frontend}-{backbone}", frontend, backbone, minutes, args.device)
        ladder.setdefault(frontend, []).append(rung)
        print("| " + " | ".join(cell(value) for value in rung.row()) + " |", flush=True)

    # 2. What each front-end loses without a model, on held-out files.
    first = next(iter(ladder.values()))[0].run
    losses: dict[str, dict[str, float] | None] = {}
    for frontend, steps in ladder.items():
        sound = originals(args.folder, first.split().held_out, steps[0].run.sample_rate)
        losses[frontend] = round_trip(steps[0].run.frontend, sound)
        write_round_trips(args.out / f"{frontend}-sounds", steps[0].run.frontend, sound[:2])

    # 3. One page, from the lowest rung to the highest.
    cards = iter(clip_cards([clip for frontend in ladder for clip in clips(args.out, frontend, ladder[frontend])]))
    sections = []
    for frontend, steps in ladder.items():
        counted = steps[0].final["baselines"] or {}
        rate = steps[0].final["bits_per_second"]
        rows = [
            [
                f"counted: {kind}",
                None,
                None,
                None,
                values["loss"],
                values["bits_per_second"],
                values["loss"] if steps[0].final["bits_per_sample"] is not None else None,
            ]
            for kind, values in counted.items()
        ]
        sections.append(
            section(
                f"{frontend}",
                text(about(steps[0], losses[frontend])),
                *([picture(bars(steps), f"Bits per second of each rung on {frontend}")] if rate else []),
                filled_table(
                    ["loss, " + steps[0].unit if name == "loss" else name for name in HEADER[:-1]],
                    [*rows, *([rung.backbone, *rung.row()[1:-1]] for rung in steps)],
                ),
                *(text(sentence) for sentence in verdicts(steps)),
                grid([next(cards) for _ in clips(args.out, frontend, steps)]),
            )
        )
    budgets = sorted({rung.budget for steps in ladder.values() for rung in steps})
    page = write_lesson(
        __file__,
        args,
        text(
            f"{args.folder.name}: {first.split().summary}. Every rung was trained for at most "
            f"{' or '.join(f'{budget:g}' for budget in budgets)} minutes, and is evaluated on the held-out files."
        ),
        *sections,
    )
    print(f"open {page}")


def encoded(index: Index, place: Path, name: str, device: str, settings: list[str]) -> EncodedCache:
    """Return the codes of a folder from the cache at `place`, which is built if it does not exist.

    Raises:
        CacheError: the cache holds other files, or was made with other settings.
    """
    if not is_cache(place):
        tokenize(index.folder, place, name, device, settings)
    cache, (values, _) = EncodedCache.open(place, index=index), frontend_settings(settings)
    if frontend_to_dict(cache.frontend()) != frontend_to_dict(frontend_for(index, name, values)):
        raise CacheError(f"{place}: this cache was made with other settings of {name}; choose another --out")
    return cache


def climb(cache: EncodedCache, place: Path, frontend: str, backbone: str, minutes: float, device: str) -> Rung:
    """Train a rung, continue its training, or load it if it was already trained for as many minutes.

    Args:
        cache: the codes to train on.
        place: run folder.
        frontend: name of the front-end.
        backbone: name of the backbone.
        minutes: maximum training time.
        device: auto, cpu or cuda.
    """
    if (
        holds_run(place)
        and any(event["event"] == "final" for event in read_metrics(place))
        and (before := read_config(place).training.minutes) >= minutes
    ):
        print(f"{frontend}:{backbone}: kept, already trained for up to {before:g} minutes", file=sys.stderr)
    else:
        train(
            cache.folder,
            place,
            backbone=backbone,
            minutes=minutes,
            device=device,
            resume=holds_run(place),
            overrides=[f"training.sample_seconds={1 if cache.spec.hop_length == 1 else 3}"],
        )
    events = read_metrics(place)
    final = [event for event in events if event["event"] == "final"][-1]
    spent = [event for event in events if event["event"] == "held_out"][-1]
    return Rung(frontend, backbone, load_run(place), final, spent["step"], spent["seconds"])


def about(rung: Rung, loss: dict[str, float] | None) -> str:
    """Describe the front-end of a rung: the rate of its codes, and the error of its round trip.

    Args:
        rung: any rung on the front-end.
        loss: scores of the round trip, or None.
    """
    spec = rung.run.frontend.spec
    sentence = f"A second of sound at {spec.sample_rate:,} Hz is {spec.rate_in_words}. "
    if loss:
        ratio = "" if (loss["si_sdr"] or 0.0) <= 0 else f", SI-SDR {loss['si_sdr']:.1f} dB"
        sentence += f"Round trip without a model: mel distance {loss['mel_distance']:.3f} (0 is perfect){ratio}."
    return sentence


def verdicts(steps: list[Rung]) -> list[str]:
    """Say of each rung whether it beats the one below, and if not, what its log says about the reason."""
    out = []
    for below, rung in zip(steps, steps[1:], strict=False):
        gain, unit = below.loss - rung.loss, rung.unit
        if gain > 0:
            out.append(
                f"{rung.backbone} beats {below.backbone} by {gain:.3f} {unit}. The receptive field of {rung.backbone} "
                f"is {span(rung.context)}, that of {below.backbone} {span(below.context)}."
            )
        else:
            out.append(
                f"{rung.backbone} does not beat {below.backbone} here ({-gain:.3f} {unit} worse): {reason(below, rung)}"
            )
    return out


def span(milliseconds: float) -> str:
    """Format a duration, which may be infinite."""
    return "unbounded" if math.isinf(milliseconds) else f"{milliseconds:,.0f} ms"


def reason(below: Rung, rung: Rung) -> str:
    """Say what the log of a rung suggests about why it does not beat the rung below."""
    losses = [event["loss"] for event in read_metrics(rung.run.folder) if event["event"] == "held_out"]
    best = losses.index(min(losses))
    if len(losses) < 5:
        return f"after {rung.steps:,} steps its log is too short to say why."
    if best < len(losses) - 3:
        return (
            f"its held-out loss was lowest at step {rung.run.step:,} of {rung.steps:,} and rose afterwards, so its "
            f"{rung.size:,} parameters overfit. More recordings or a smaller model may help."
        )
    if losses[-1] < losses[-4] - 0.002:
        slower = ", since each of its steps takes longer" if rung.steps < below.steps else ""
        return (
            f"its loss was still falling at the end of its time, after {rung.steps:,} steps ({below.backbone} took "
            f"{below.steps:,}{slower}). More minutes may help."
        )
    if rung.context < below.context:
        return f"its receptive field is {span(rung.context)}, that of {below.backbone} {span(below.context)}."
    return "its loss had levelled off by the end of training, so more minutes would hardly help."


def filled_table(header: list[str], rows: list[list]) -> str:
    """Return a table without its empty columns."""
    filled = [i for i in range(len(header)) if any(row[i] is not None for row in rows)]
    return table([header[i] for i in filled], [[row[i] for i in filled] for row in rows])


def bars(steps: list[Rung]) -> Figure:
    """Plot the bits per second of the counted models and of each rung, the lowest rung on top."""
    counted = steps[0].final["baselines"] or {}
    names = [*(f"counted {kind}" for kind in counted if kind != "uniform"), *(rung.backbone for rung in steps)]
    values = [
        *(v["bits_per_second"] for kind, v in counted.items() if kind != "uniform"),
        *(rung.final["bits_per_second"] for rung in steps),
    ]
    colours = ["#b9b4c4"] * (len(names) - len(steps)) + [
        matplotlib.colormaps["magma"](0.25 + 0.5 * i / len(steps)) for i in range(len(steps))
    ]
    figure = Figure(figsize=(7, 0.7 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(names, values, color=colours)
    axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(values))
    axes.set_xlabel("bits per second of held-out sound, lower is better")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def clips(out: Path, frontend: str, steps: list[Rung]) -> list[Clip]:
    """Return clips of two originals with their round trips, then of two samples of each rung."""
    sounds = out / f"{frontend}-sounds"
    pairs = [
        Clip(sounds / f"{kind}-{i}.wav", f"{kind.replace('-', ' ').capitalize()} {i + 1}", "held-out file")
        for i in range(2)
        for kind in ("original", "round-trip")
        if (sounds / f"{kind}-{i}.wav").exists()
    ]
    return pairs + [
        Clip(
            rung.run.folder / "samples" / f"generated-{seed}.wav",
            f"{rung.backbone}, seed {seed}",
            f"sample on {frontend}",
            [f"{rung.loss:.3f} {rung.unit} on held-out files"],
        )
        for rung in steps
        for seed in range(2)
    ]


def cell(value: str | float | int | None) -> str:
    """Format a value for the table that is printed."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else value


if __name__ == "__main__":
    raise SystemExit(run_script(main))
