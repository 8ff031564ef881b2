"""How good a run is, in words and numbers: the learning curve and the figures beside those of counting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.wording import verdict
from .charts import Line, line_chart, value_range
from .html import Html, card, glossary, table, text
from .run_reader import RunFolder, number

BASELINES = ("uniform", "unigram", "bigram")
# The evaluation's other figures in words; one that is not listed is shown under its own name.
WORDS = {
    "round_trip si_sdr": "round trip: SI-SDR (dB)",
    "round_trip mel_distance": "round trip: mel distance",
    "files": "files held out",
    "seconds": "seconds held out",
    **{f"base_bits_per_second {name}": f"{name} of the codes before merging: bits per second" for name in BASELINES},
}

MEANINGS = {
    "bits per code": "How unsure the model is of the next code, on average, in sound that it was not trained on. With "
    "n bits it is as unsure as someone who guesses among 2 to the power of n equally likely codes. "
    "Lower is better.",
    "bits per second": "The same over a second of sound: what the model would need to store it. A CD takes 1,411,200.",
    "bits per sample": "The same per number of the waveform. Only front-ends that keep each sample have it.",
    "nats per frame": "How unlikely the model finds the next frame, on average, in sound that it was not trained on. "
    "It can be negative, and can't be compared with bits. Lower is better.",
    "bigram": "A table of which code follows which, counted on the training files. A model worth its name is below it.",
    "unigram": "How often each code occurs, and no idea of what came before.",
    "uniform": "No idea at all: each code is as likely as any other.",
    "round trip: SI-SDR (dB)": "How far what the front-end's round trip adds lies below the original; higher is "
    "closer. It compares waveforms, so a front-end that makes up its phases, such as mel, "
    "is low even where it sounds right.",
    "round trip: mel distance": "How far the round trip's spectrogram lies from the original's; 0 is perfect.",
}


@dataclass(frozen=True)
class Figures:
    """The last evaluation, or the best held-out loss while there is none.

    Attributes:
        loss: bits per code or nats per frame, as `unit` says; None before the first evaluation.
        step: of the weights, None where it is not known.
        baselines: bits per code of the counting models.
        more: what else the evaluation reports, in words -> value.
        turned: whether the held-out loss had stopped getting better before training ended.
    """

    unit: str
    loss: float | None
    per_second: float | None
    per_sample: float | None
    step: int | None
    baselines: dict[str, float]
    more: dict[str, float]
    turned: bool


def read_figures(run: RunFolder) -> Figures:
    final, held_out = flat(run.last("final")), best_held_out(run)
    counted = flat(run.last("baselines"))
    baselines = {
        name: value
        for name in BASELINES
        if (value := final.get(f"baselines {name} loss", counted.get(name))) is not None
    }
    report = final if "loss" in final else held_out
    bits = baselines or number(report.get("bits_per_second")) is not None
    more = {
        WORDS.get(name, name.replace("_", " ")): value
        for name, value in final.items()
        if name not in ("loss", "step", "bits_per_second", "bits_per_sample") and not name.startswith("baselines ")
    }
    return Figures(
        "bits per code" if bits else "nats per frame",
        number(report.get("loss")),
        number(report.get("bits_per_second")),
        number(report.get("bits_per_sample")),
        number(report.get("step")),
        baselines,
        more,
        run.last("final").get("turned") is True,
    )


def best_held_out(run: RunFolder) -> dict[str, Any]:
    events = [e for e in run.events if e.get("event") == "held_out" and number(e.get("loss")) is not None]
    return min(events, key=lambda e: e["loss"], default={})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested dicts as one dict: {"a": {"b": 1}} -> {"a b": 1}."""
    out: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key} ")
        elif number(value) is not None:
            out[f"{prefix}{key}"] = value
    return out


def learning_curve(run: RunFolder, y_range: tuple[float, float]) -> Html:
    """Train and held-out loss by step, with the counting models as level lines."""
    figures = read_figures(run)
    lines = curve_lines(run)
    if not any(line.x for line in lines):
        return card(text("No step has been logged yet.", style="note"))
    best = best_held_out(run)
    alt = (
        f"Loss in {figures.unit} by training step."
        + (f" The best held-out loss is {best['loss']:.3f} at step {best.get('step')}." if best else "")
        + "".join(f" The {name} model is at {value:.3f}." for name, value in figures.baselines.items())
    )
    return card(
        line_chart(lines, figures.baselines, "training steps", f"Loss in {figures.unit}, lower is better", alt, y_range)
    )


def curve_lines(run: RunFolder) -> list[Line]:
    return [Line("held-out files", *run.curve("held_out")), Line("training files", *run.curve("train"))]


def learning_curves(runs: Sequence[RunFolder]) -> list[Html]:
    """The curve of each run; those measured in the same unit share their y axis."""
    ranges = {}
    for unit in {read_figures(run).unit for run in runs}:
        alike = [run for run in runs if read_figures(run).unit == unit]
        lines = [line for run in alike for line in curve_lines(run)]
        levels = [value for run in alike for value in read_figures(run).baselines.values()]
        ranges[unit] = value_range(lines, levels)
    return [learning_curve(run, ranges[read_figures(run).unit]) for run in runs]


def figures_table(run: RunFolder) -> Html:
    """The run's figures beside those of the counting models, and what they say."""
    f = read_figures(run)
    if f.loss is None:
        return card(text("No held-out file has been evaluated yet.", style="note"))
    columns = {f.unit: 1.0}  # name -> factor from the loss
    if f.per_second is not None and f.loss:
        columns["bits per second"] = f.per_second / f.loss
    if f.per_sample is not None and f.loss:
        columns["bits per sample"] = f.per_sample / f.loss
    rows = [
        [name, *(value * factor for factor in columns.values())]
        for name, value in [("this model", f.loss), *((n, f.baselines[n]) for n in reversed(f.baselines))]
    ]
    said = verdict(f.loss, f.unit.split()[0], f.baselines, f.step, f.turned)
    blocks = [table(["", *columns], rows, main_row=0), text(said, style="note")]
    if f.more:
        blocks.append(table(["evaluation", ""], [[name, value] for name, value in f.more.items()]))
    return card(*blocks)


def meanings(runs: Sequence[RunFolder]) -> Html:
    """What the words of the tables mean: of those that occur."""
    names: set[str] = set()
    for f in map(read_figures, runs):
        names |= {f.unit, *f.baselines, *f.more}
        names |= {"bits per second"} if f.per_second is not None else set()
        names |= {"bits per sample"} if f.per_sample is not None else set()
    return glossary({name: meaning for name, meaning in MEANINGS.items() if name in names})
