"""Show how good a run is: learning curve, and figures beside those of count-based models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.wording import verdict
from .charts import Line, line_chart, value_range
from .html import Html, card, glossary, table, text
from .run_reader import RunFolder, number

COUNTED = ("uniform", "unigram", "bigram")
BASELINES = (*COUNTED, "gaussian", "autoregression")
# Names of the evaluation's other figures; those not listed here keep their own name.
WORDS = {
    "round_trip files": "round trip: files",
    "round_trip si_sdr": "round trip: SI-SDR (dB)",
    "round_trip mel_distance": "round trip: mel distance",
    "files": "files held out",
    "seconds": "seconds held out",
    **{f"base_bits_per_second {name}": f"{name} of the codes before merging: bits per second" for name in COUNTED},
}

MEANINGS = {
    "bits per code": "How unsure the model is of the next code, on average, in recordings that it was not trained on. "
    "With n bits it is as unsure as someone guessing among 2 to the power of n equally likely codes. Lower is better.",
    "bits per second": "Bits per second of audio: what the model would need to store it. A CD takes 1,411,200.",
    "bits per sample": "Bits per sample of the waveform, for front-ends with one code per sample.",
    "nats per frame": "How unlikely the next frame is to the model, on average, in recordings that it was not trained "
    "on. It can be negative, and is not comparable with bits. Lower is better.",
    "bigram": "A table of which code follows which, counted on the training files. A useful model is below it.",
    "unigram": "How often each code occurs, whatever came before.",
    "uniform": "A pure guess: all codes are equally likely.",
    "autoregression": "A linear prediction of each frame from the previous one, plus normal noise, fitted to the "
    "training files. A useful model is below it.",
    "gaussian": "Independent normal frames with the means and covariance of the training files.",
    "round trip: SI-SDR (dB)": "How far the error of the front-end's round trip lies below the original; higher is "
    "better. It compares waveforms, so it is left out below 0 dB, where phases are not kept, as those of mel are not.",
    "round trip: mel distance": "How far the round trip's spectrogram is from the original's; 0 is perfect.",
}


@dataclass(frozen=True)
class Figures:
    """The last evaluation, or the best held-out loss as long as there is none.

    Attributes:
        unit: "bits per code" or "nats per frame".
        loss: in `unit`; None before the first evaluation.
        per_second: bits per second of audio, if known.
        per_sample: bits per sample, if each code is one sample.
        step: step of the weights, if known.
        baselines: losses of the simple models, in `unit`.
        more: the evaluation's other figures by name.
        turned: whether the held-out loss had stopped improving before training ended.
    """

    unit: str
    loss: float | None
    per_second: float | None
    per_sample: float | None
    step: float | None
    baselines: dict[str, float]
    more: dict[str, float]
    turned: bool


def read_figures(run: RunFolder) -> Figures:
    """Read the figures of a run from its events."""
    final, held_out = flat(run.last("final")), best_held_out(run)
    counted = flat(run.last("baselines"))
    baselines = {
        name: value
        for name in BASELINES
        if (value := final.get(f"baselines {name} loss", counted.get(name))) is not None
    }
    report = final if "loss" in final else held_out
    bits = set(COUNTED) & baselines.keys() or number(report.get("bits_per_second")) is not None
    more = {
        WORDS.get(name, name.replace("_", " ")): value
        for name, value in final.items()
        if name not in ("loss", "step", "bits_per_second", "bits_per_sample") and not name.startswith("baselines ")
        if name != "round_trip si_sdr" or value > 0  # else the waveform is another one, which says nothing of its sound
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
    """Return the event with the lowest held-out loss, empty if there is none."""
    events = [e for e in run.events if e.get("event") == "held_out" and number(e.get("loss")) is not None]
    return min(events, key=lambda e: e["loss"], default={})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten the finite numbers of nested dicts: {"a": {"b": 1}} -> {"a b": 1}."""
    out: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key} ")
        elif number(value) is not None:
            out[f"{prefix}{key}"] = value
    return out


def learning_curve(run: RunFolder, y_range: tuple[float, float]) -> Html:
    """Plot training and held-out loss by step, with count-based models as horizontal lines."""
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
    """Return the curves of held-out and training loss."""
    return [Line("held-out files", *run.curve("held_out")), Line("training files", *run.curve("train"))]


def learning_curves(runs: Sequence[RunFolder]) -> list[Html]:
    """Plot the learning curve of each run; those with the same unit share their y axis."""
    ranges = {}
    for unit in {read_figures(run).unit for run in runs}:
        alike = [run for run in runs if read_figures(run).unit == unit]
        lines = [line for run in alike for line in curve_lines(run)]
        levels = [value for run in alike for value in read_figures(run).baselines.values()]
        ranges[unit] = value_range(lines, levels)
    return [learning_curve(run, ranges[read_figures(run).unit]) for run in runs]


def figures_table(run: RunFolder) -> Html:
    """Tabulate the run's figures beside those of the count-based models, with a verdict."""
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
    """Explain the terms that occur in the tables."""
    names: set[str] = set()
    for f in map(read_figures, runs):
        names |= {f.unit, *f.baselines, *f.more}
        names |= {"bits per second"} if f.per_second is not None else set()
        names |= {"bits per sample"} if f.per_sample is not None else set()
    return glossary({name: meaning for name, meaning in MEANINGS.items() if name in names})
