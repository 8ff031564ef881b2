"""Interpret diagnostics: state in plain English what is wrong with a run.

Thresholds come from runs of four backbones on spoken digits: 200 to 1,500 steps at the default learning rate, 200 at
10, 100 and 1/100 times that, and some with initial weights ten times too large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

#: Fraction of a layer's outputs above which saturation is a fault: at the first step (healthy runs: 0.01; large initial
#: weights: 0.84 to 0.99), and later (gates of a healthy WaveNet: 0.56; at 100 times the learning rate: 0.91 to 1).
MOST_SATURATED, MOST_SATURATED_LATER = 0.5, 0.8
#: Fraction of a layer's units above which dead units are a fault. Healthy runs: 0.04.
MOST_DEAD = 0.25
#: log10 of the median relative weight update (std of dW / std of W) over all matrices, at the largest step. Healthy
#: runs: -1.9 to -0.7 (early, while small weights grow; later -2 to -3). At 100 times the learning rate: -0.5 to 0.8; at
#: 1/100 of it: -4.1 to -2.6.
LARGEST_STEP, SMALLEST_STEP = -0.6, -3.5
#: Standard deviation of the head's initial outputs. Logits of deviation s make the first loss ln V + s ** 2 / 2 nats,
#: so this value costs a quarter of a bit. Healthy runs: 0.1, or 0.4 for a density.
LARGEST_START = 0.6


@dataclass(frozen=True)
class Finding:
    """Something wrong with a run.

    Attributes:
        fault: "initialisation", "learning rate", "saturation" or "dead units".
        text: a sentence without initial capital and full stop.
    """

    fault: str
    text: str


def findings(events: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Return what is wrong with a run, the most fundamental first; an empty list if all is well.

    Args:
        events: `Observation.event()` of some steps in order, each with its "step", counted from 1.
    """
    if not events:
        return []
    found, step = _of_the_start(events[0]["layers"]) if events[0]["step"] == 1 else [], largest_step(events)
    if step is not None and step > LARGEST_STEP:
        found.append(
            Finding(
                "learning rate",
                f"the steps are too large: one changed the median matrix by {share(step)}; lower the learning rate",
            )
        )
    found += _of_the_end(events[-1]["layers"])
    if not found and step is not None and step < SMALLEST_STEP:  # other faults cause small steps too
        found.append(
            Finding(
                "learning rate",
                f"the steps are small: none changed the median matrix by more than {share(step)}; a higher learning "
                "rate would learn faster",
            )
        )
    return found


def largest_step(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Return log10 of the median relative weight update over all matrices, at the largest step; None if unknown."""
    return max((step for step in map(typical_step, events) if step is not None), default=None)


def typical_step(event: Mapping[str, Any]) -> float | None:
    """Return log10 of the median relative weight update over all matrices of one step; None if unknown."""
    return median(updates) if (updates := [m["update"] for m in event["weights"].values() if "update" in m]) else None


def share(update: float) -> str:
    """Format an update given as log10.

    Example:
        >>> share(-1.3), share(-3.1), share(0.8)
        ('5 %', '0.079 %', '630 %')
    """
    return f"{float(f'{100 * 10**update:.2g}'):,g} %"


def worst(layers: Mapping[str, Mapping[str, float]], figure: str) -> tuple[str, float] | None:
    """Return the layer with the largest fraction of "saturated" outputs or "dead" units, and that fraction.

    Args:
        layers: figures of each layer by name.
        figure: "saturated" or "dead".

    Returns:
        The name and the fraction; None if no layer has the figure.
    """
    parts = {
        name: layer[figure] / (layer.get("units") or 1 if figure == "dead" else 1)
        for name, layer in layers.items()
        if figure in layer
    }
    return max(parts.items(), key=lambda item: item[1], default=None)


def _of_the_start(layers: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    found, top = [], worst(layers, "saturated")
    if top is not None and top[1] > MOST_SATURATED:
        found.append(
            Finding(
                "initialisation",
                f"before the first step {top[1]:.0%} of {top[0]} was saturated: the "
                "initial weights before it are too large",
            )
        )
    name = next(reversed(list(layers)), "")
    if "head" in name.split(".") and layers[name].get("std", 0) > LARGEST_START:
        found.append(
            Finding(
                "initialisation",
                f"before the first step the outputs of {name} had a standard deviation "
                f"of {layers[name]['std']:.1f}, so the untrained model was overconfident: its initial weights are "
                "too large",
            )
        )
    return found


def _of_the_end(layers: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    found = []
    squashing = {
        name: layer for name, layer in layers.items() if not name.endswith(" attention")
    }  # attention may be sharp
    for fault, figure, most, said in (
        ("saturation", "saturated", MOST_SATURATED_LATER, "{:.0%} of {} is saturated"),
        ("dead units", "dead", MOST_DEAD, "{:.0%} of the units of {} are dead"),
    ):
        top = worst(squashing, figure)
        if top is not None and top[1] > most:
            found.append(Finding(fault, said.format(top[1], top[0]) + ": hardly any gradient passes through it"))
    return found
