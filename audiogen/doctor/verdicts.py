"""Interpret the experiments in one sentence."""

import math
from dataclasses import dataclass

from ..training.diagnosis import MOST_SATURATED, findings, largest_step, share, worst
from .experiment import Overfit


@dataclass(frozen=True)
class Verdict:
    """The result of the overfit check.

    Attributes:
        fault: None, "initialisation", "learning rate", "dead units", "order", "silence" or "unknown".
        text: the verdict in plain English.
    """

    fault: str | None
    text: str

    def __str__(self) -> str:
        return self.text


def verdict(found: Overfit) -> Verdict:
    """Return the most fundamental fault that the experiments show; a verdict without fault if there is none."""
    unit = found.spec.unit.per_entry
    rate, steps = found.learning_rate, len(found.losses) - 1
    first, last = _number(found.losses[0]), _number(found.losses[-1])
    inside = {finding.fault: finding.text for finding in reversed(findings(found.events))}
    if found.starts_far:
        yardstick = "ln V" if found.spec.discrete else "a standard Gaussian's"
        return Verdict(
            "initialisation",
            f"starting loss is far from {yardstick}: {first} against "
            f"{_number(found.reference)} {found.spec.unit}: the initial weights are too "
            f"large{_saturated(found)}",
        )
    if "initialisation" in inside:
        return Verdict("initialisation", inside["initialisation"])
    if found.ran_away(found.losses):
        how = f"rose from {first} to {last} {unit}" if math.isfinite(found.losses[-1]) else "became NaN or infinite"
        return Verdict(
            "learning rate",
            f"the learning rate of {rate:g} is too high: the loss {how} within {steps} "
            f"steps{_moved(found)}; try --set training.learning_rate={rate / 100:.2g}",
        )
    told = f"loss {first} to {last} {unit} in {steps} steps"
    if (dead := worst(found.events[-1]["layers"], "dead")) is not None and dead[1] == 1:
        return Verdict(
            "dead units",
            f"no gradient passes through {dead[0]}: all of its units are dead, so nothing "
            f"before it learns ({told} on one batch); its initial weights or biases are far off",
        )
    other = found.better_rate
    if found.order_gain is not None and not found.order_told:
        return Verdict(
            "order",
            "the past does not help the model to predict what comes next: it learns the sound no "
            "better than the same frames in a shuffled order; the targets are shuffled, or the "
            "recordings are noise",
        )
    if other:
        much, losses = "high" if other < rate else "low", found.retries[other]
        return Verdict(
            "learning rate",
            f"the learning rate of {rate:g} is too {much}: {told} on one batch, but to "
            f"{_number(losses[-1])} in {len(losses) - 1} at {other:.2g}; try --set "
            f"training.learning_rate={other:.2g}",
        )
    if not found.learned(found.losses):
        why = inside.get("saturation") or inside.get("dead units") or "it may be too small for this front-end"
        return Verdict(
            "unknown",
            f"the model does not learn even one batch: {told}, and no learning rate from "
            f"{rate / 100:.2g} to {10 * rate:.2g} helps; {why}",
        )
    if not found.order_told:
        return Verdict(
            "unknown",
            f"the model memorises one batch ({told}), but learns new batches too slowly to tell "
            "whether the order of the sound helps; try a higher learning rate",
        )
    by_heart = not found.spec.discrete or found.losses[-1] <= 2 * found.goal
    more = "" if by_heart else f" (knowing only how often each code occurs gives {_number(found.frequencies)})"
    return Verdict(None, f"the model can learn this: {told} on one batch{more}")


def _saturated(found: Overfit) -> str:
    top = worst(found.events[0]["layers"], "saturated") if found.events else None
    return f" ({top[1]:.0%} of {top[0]} is saturated)" if top is not None and top[1] > MOST_SATURATED else ""


def _moved(found: Overfit) -> str:
    step = largest_step(found.events)
    return "" if step is None else f", one of which changed the median matrix by {share(step)}"


def _number(loss: float) -> str:
    return f"{loss:.1f}" if abs(loss) < 1e5 else f"{loss:.1g}"
