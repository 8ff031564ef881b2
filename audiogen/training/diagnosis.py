"""What diagnostics amount to, in plain English.

Thresholds are from runs of the four backbones on spoken digits: 200 to 1,500 steps at their default learning rate, 200
at 10, 100 and 1/100 of it, and some with weights ten times as large as they should be at the start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

#: A layer is in trouble if so much of its output is saturated: at the first step (healthy runs: 0.01; large weights:
#: 0.84 to 0.99), and later (the gates of a healthy WaveNet: 0.56; at 100 times the rate 0.91 to 1).
MOST_SATURATED, MOST_SATURATED_LATER = 0.5, 0.8
#: The same of its dead units. Healthy runs: 0.04.
MOST_DEAD = 0.25
#: log10 of the part of itself by which the middle one of the matrices is changed in the largest of the steps. Healthy
#: runs: -1.9 to -0.7 (early, while small weights grow; later -2 to -3). At 100 times the rate -0.5 to 0.8, at 1/100 of
#: it -4.1 to -2.6.
LARGEST_STEP, SMALLEST_STEP = -0.6, -3.5
#: Standard deviation of the head's outputs at the start. Logits of deviation s make the first loss ln V + s ** 2 / 2
#: nats, so that this one costs a quarter of a bit. Healthy runs: 0.1, and 0.4 for a density.
LARGEST_START = 0.6


@dataclass(frozen=True)
class Finding:
    """`fault` is "initialisation", "learning rate", "saturation" or "dead units"; `text` is a sentence without its
    first letter's capital and its full stop."""

    fault: str
    text: str


def findings(events: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What is wrong with a run, the most fundamental first; nothing if all is well.

    Args:
        events: `Observation.event()` of some of its steps in order, each with its "step", counted from 1.
    """
    if not events:
        return []
    found, step = _of_the_start(events[0]["layers"]) if events[0]["step"] == 1 else [], largest_step(events)
    if step is not None and step > LARGEST_STEP:
        found.append(
            Finding(
                "learning rate",
                "the steps are too large: one changed the middle one of the matrices by "
                f"{share(step)} of its size; lower the learning rate",
            )
        )
    found += _of_the_end(events[-1]["layers"])
    if not found and step is not None and step < SMALLEST_STEP:  # else they are small because of what was found
        found.append(
            Finding(
                "learning rate",
                "the steps are small: none changed the middle one of the matrices by "
                f"more than {share(step)} of its size; a higher learning rate would "
                "learn sooner",
            )
        )
    return found


def largest_step(events: Sequence[Mapping[str, Any]]) -> float | None:
    """log10 of the part of itself by which the middle matrix was changed in the largest of the steps."""
    return max((step for step in map(typical_step, events) if step is not None), default=None)


def typical_step(event: Mapping[str, Any]) -> float | None:
    """The same of one step: half of the matrices were changed by more, half by less."""
    return median(updates) if (updates := [m["update"] for m in event["weights"].values() if "update" in m]) else None


def share(update: float) -> str:
    """-1.3 -> "5 %", -3.1 -> "0.08 %", 0.8 -> "630 %"."""
    return f"{float(f'{100 * 10**update:.2g}'):,g} %"


def worst(layers: Mapping[str, Mapping[str, float]], figure: str) -> tuple[str, float] | None:
    """The layer whose "saturated" or "dead" is the largest part -> its name and that part; None if no layer has it."""
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
                "weights before it are initialised too large",
            )
        )
    name = next(reversed(layers), "")
    if "head" in name.split(".") and layers[name].get("std", 0) > LARGEST_START:
        found.append(
            Finding(
                "initialisation",
                f"before the first step the outputs of {name} had a standard deviation "
                f"of {layers[name]['std']:.1f}, so that the model was sure of what it "
                "could not know: its weights are initialised too large",
            )
        )
    return found


def _of_the_end(layers: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    found = []
    squashing = {name: layer for name, layer in layers.items() if not name.endswith(" attention")}  # may be sharp
    for fault, figure, most, said in (
        ("saturation", "saturated", MOST_SATURATED_LATER, "{:.0%} of {} is saturated"),
        ("dead units", "dead", MOST_DEAD, "{:.0%} of the units of {} are dead"),
    ):
        top = worst(squashing, figure)
        if top is not None and top[1] > most:
            found.append(Finding(fault, said.format(top[1], top[0]) + ": hardly any gradient gets through it"))
    return found
