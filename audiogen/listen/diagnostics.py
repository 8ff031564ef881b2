"""Show training diagnostics: updates, saturation and dead units of runs trained with --diagnostics."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..training.diagnosis import findings, largest_step, share, worst
from ..training.diagnostics import SATURATED
from .html import Html, bullets, card, details, picture, table
from .run_reader import RunFolder, number

#: Fewer steps than this are too few to call a run healthy.
FEW_STEPS = 100

INTRODUCTION = (
    "Each line is a part of the network, dark at the input and bright at the output. Left: the size of each step "
    "relative to its weight matrix. A thousandth (dashed) is good for most of a run; ten times as much is usual at the "
    "start. Parts whose lines rise, or lie apart from the rest, learn at a different rate. Middle: the share of each "
    f"tanh and sigmoid in the outermost {1 - SATURATED:.0%} of its range, where hardly any gradient passes. Right: the "
    "strength of the signal on its way forward and of the gradient on its way back. If it falls or rises by powers of "
    "ten from layer to layer, some layers learn far too slowly or too fast."
)


def insides(run: RunFolder) -> Html:
    """Make a card with a verdict, a picture over the steps and the figures of each layer; "" without diagnostics."""
    events = observed(run)
    if not events:
        return ""
    last = events[-1]
    rows = [
        [name, *(layer.get(key) for key in ("mean", "std", "grad_std", "saturated")), dead_text(layer)]
        for name, layer in last["layers"].items()
    ]
    matrices = [
        [name, matrix.get("std"), matrix.get("grad_std"), matrix.get("update")]
        for name, matrix in last["weights"].items()
    ]
    return card(
        bullets(*verdict(events)),
        picture(
            draw(events),
            f"Steps of {len(matrices)} matrices, saturation and signal of {len(rows)} layers, over "
            f"{len(events)} observed steps",
        ),
        details(
            f"Layers at step {last['step']:,}",
            table(["output of", "mean", "deviation", "of its gradient", "saturated", "dead units"], rows_text(rows)),
        ),
        details(
            f"Matrices at step {last['step']:,}",
            table(["matrix", "deviation", "of its gradient", "step, log10 of its relative size"], rows_text(matrices)),
        ),
    )


def verdict(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return sentences that say what is wrong, or what was checked and found to be fine."""
    said = [finding.text[0].upper() + finding.text[1:] + "." for finding in findings(events)]
    if said:
        return said
    steps = events[-1]["step"]
    said = (
        ["No problem found inside the network."]
        if steps >= FEW_STEPS
        else [f"No problem found inside the network, but {steps} steps are too few to judge."]
    )
    if (step := largest_step(events)) is not None:
        said.append(f"The largest step changed the median matrix by {share(step)} of its size.")
    for figure, what in (("saturated", "of the outputs are saturated"), ("dead", "of the units are dead")):
        if (top := worst(events[-1]["layers"], figure)) is not None:
            said.append(f"At most {top[1]:.1%} {what}: in {top[0]}.")
    return said


def observed(run: RunFolder) -> list[dict[str, Any]]:
    """Return the valid diagnostics events of a run."""
    events = []
    for event in run.events:
        step = number(event.get("step"))
        parts = [part for part in map(event.get, ("layers", "weights")) if isinstance(part, dict)]
        if event.get("event") == "diagnostics" and step is not None and len(parts) == 2:
            layers, weights = (
                {
                    name: {key: value for key, value in figures.items() if number(value) is not None}
                    for name, figures in part.items()
                    if isinstance(figures, dict)
                }
                for part in parts
            )
            events.append({"step": int(step), "layers": layers, "weights": weights})
    return events


def draw(events: Sequence[dict[str, Any]]) -> Figure:
    """Plot each matrix's update and each layer's saturation over the steps, and signal and gradient at the last."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    curves(left, events, "weights", "update")
    left.axhline(-3, color="grey", linestyle="--", linewidth=1)
    left.set(title="steps", xlabel="training steps", ylabel="log10 of the relative change", ylim=(-6, 1))
    curves(middle, events, "layers", "saturated")
    middle.set(title="saturated", xlabel="training steps", ylabel="fraction of the outputs", ylim=(-0.02, 1.02))
    layers = events[-1]["layers"].values()
    for key, name in (("std", "outputs"), ("grad_std", "gradient")):
        values = np.array([layer.get(key, np.nan) for layer in layers])
        right.plot(np.where(values > 0, values, np.nan), ".-", label=name)
    right.set(
        title=f"signal and gradient at step {events[-1]['step']:,}",
        xlabel="layer, from input to output",
        ylabel="deviation",
        yscale="log",
    )
    right.legend()
    return figure


def curves(ax: Any, events: Sequence[dict[str, Any]], part: str, key: str) -> None:
    """Plot a line over the steps for each layer or matrix that has the figure."""
    names = [name for name, figures in events[-1][part].items() if key in figures]
    for place, name in enumerate(names):
        points = [(event["step"], event[part][name][key]) for event in events if key in event[part].get(name, {})]
        ax.plot(
            *zip(*points, strict=True),
            marker="." if len(points) == 1 else "",
            linewidth=1.2,
            color=matplotlib.colormaps["viridis"](place / max(1, len(names) - 1)),
        )
    if not names:
        ax.text(0.5, 0.5, "no such layers", transform=ax.transAxes, ha="center", color="grey")


def dead_text(layer: dict[str, float]) -> str | None:
    """Return the number of dead units in words; None for layers without."""
    return f"{layer['dead']:g} of {layer['units']:g}" if {"dead", "units"} <= layer.keys() else None


def rows_text(rows: list[list[Any]]) -> list[list[Any]]:
    """Format floats to three digits, since these figures span many powers of ten."""
    return [[f"{value:.3g}" if isinstance(value, float) else value for value in row] for row in rows]
