"""Two short experiments: can a model overfit one batch, and does it learn from the order of the sound?

Each runs on a copy of the model:

    overfit     one batch, again and again: tests initial weights, learning rate and optimizer
    order       batch after batch, beside the same frames in shuffled order: both have the same code frequencies, so
                the difference of the losses is what the model learns from the order

Diagnostics of the first experiment (training/diagnostics.py) show why and where it fails.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..models.batch import Batch
from ..models.sequence_model import SequenceModel
from ..runs.training_config import TrainingConfig
from ..spec import Spec
from ..training.diagnostics import observe
from ..training.schedule import make_optimizer

#: Maximum steps of each experiment, and steps of its warm-up; enough for models of the default sizes.
STEPS, WARMUP = 200, 40
#: Entries (codes or frames) per step, so that 200 steps take seconds on a CPU.
ENTRIES = 1024
#: The order matters if, averaged over WINDOW steps, the loss has fallen further than the shuffled loss by the fraction
#: ORDER of the total decrease. On spoken digits, backbones reached 0.14 to 0.8, and at most 0.06 on sound that had been
#: shuffled. The decrease must be at least the fraction SHORTEST_WAY of the reference, or it is too small to measure.
ORDER, WINDOW, SHORTEST_WAY = 0.1, 20, 0.05
#: Once the shuffled loss is below this fraction of the loss of code frequencies, frames are being memorised, and the
#: difference no longer measures order.
MEMORISED = 0.6
#: A batch of codes counts as memorised below this fraction of the reference.
BY_HEART = 0.02
#: Steps that are observed.
OBSERVED = {1, 2, 5, 10, 20, 50, 100, 200}


@dataclass(frozen=True)
class Overfit:
    """The results of the experiments. Losses are bits per code or nats per frame, one value before each step.

    Attributes:
        spec: spec of the codes or frames.
        reference: loss of a model that knows nothing: log2 V, or the nats of a standard Gaussian on the batch.
        frequencies: loss of a model that knows only the frequencies of codes in the batch; for densities, the
            reference.
        goal: loss at which the batch counts as memorised.
        learning_rate: learning rate of the training settings.
        losses: losses of the overfit experiment.
        events: observations of some of its steps, for `training.diagnosis.findings`.
        retries: losses at other learning rates, by rate; only tried if the first run failed.
        given, shuffled: losses of the order experiment, in the original and in shuffled order.
    """

    spec: Spec
    reference: float
    frequencies: float
    goal: float
    learning_rate: float
    losses: list[float]
    events: list[dict[str, Any]]
    retries: dict[float, list[float]]
    given: list[float]
    shuffled: list[float]

    @property
    def order_gain(self) -> float | None:
        """How much further the loss has fallen than the shuffled loss, as a fraction of the decrease.

        None if the decrease was too small to tell.
        """
        last = min(WINDOW, len(self.given))
        if last == 0:
            return None
        given, shuffled = (sum(losses[-last:]) / last for losses in (self.given, self.shuffled))
        way = self.given[0] - min(given, shuffled)
        return (shuffled - given) / way if way > SHORTEST_WAY * self.reference else None

    @property
    def order_told(self) -> bool:
        """Whether the model learned from the order."""
        return self.order_gain is not None and self.order_gain > ORDER

    @property
    def starts_far(self) -> bool:
        """Whether the first loss is NaN or far above the reference."""
        return not self.losses[0] <= self.reference + self.tolerance

    def ran_away(self, losses: list[float]) -> bool:
        """Return whether a loss diverged: rose far above its start, or became NaN."""
        return not all(loss <= losses[0] + self.tolerance for loss in losses)

    def settled(self, losses: list[float]) -> bool:
        """Return whether a loss never rose far above its minimum so far."""
        lowest = itertools.accumulate(losses, min)
        return all(loss <= low + self.tolerance for loss, low in zip(losses, lowest, strict=True))

    def learned(self, losses: list[float]) -> bool:
        """Return whether a run learned more than the frequencies of codes."""
        return not self.ran_away(losses) and losses[-1] < self.frequencies - 0.05 * self.reference

    @property
    def better_rate(self) -> float | None:
        """A learning rate among the retries at which the loss fell steadily, and further or faster; None if none."""

        def rank(losses: list[float]) -> tuple[bool, float]:
            return (False, len(losses)) if losses[-1] < self.goal else (True, losses[-1])

        better = [
            (rank(losses), rate)
            for rate, losses in self.retries.items()
            if self.learned(losses) and self.settled(losses) and rank(losses) < rank(self.losses)
        ]
        return min(better)[1] if better else None

    @property
    def tolerance(self) -> float:
        """Distance above the reference that counts as far: a quarter of a bit, or of a nat per feature."""
        return 0.25 * self.spec.values_per_entry


def overfit(model: SequenceModel, crops: Tensor, training: TrainingConfig, steps: int = STEPS) -> Overfit:
    """Run the experiments on copies of a model.

    Args:
        model: an untrained model, on its device.
        crops: (N, C, T) codes or frames; the first of them are the batch to overfit.
        training: supplies learning rate, weight decay and gradient clipping.
        steps: maximum number of steps of each experiment.

    Raises:
        DataError: the crops have a single frame.
    """
    if crops.shape[2] < 2:
        raise DataError("crops have a single frame, so there is no order to learn; add longer files")
    spec = model.spec
    crops = crops.to(model.bos.device)
    size = max(2, ENTRIES // (spec.num_rows * crops.shape[2]))
    batch = crops[:size]
    reference, frequencies, goal = _yardsticks(spec, batch)
    rate = training.learning_rate
    found = Overfit(spec, reference, frequencies, goal, rate, [], [], {}, [], [])
    for loss in _by_heart(model, batch, training, rate, goal, steps, found.events):
        found.losses.append(loss)
        if found.starts_far or found.ran_away(found.losses):
            return found  # this fault hides all others
    settled = found.settled(found.losses)
    if not found.learned(found.losses) or not settled:
        # A steady run that learns too little needs a higher rate first.
        for factor in (10, 0.1, 0.01) if settled else (0.1, 0.01, 10):
            other = factor * rate
            found.retries[other] = list(_by_heart(model, batch, training, other, goal, steps))
            if found.better_rate:
                break
    better = found.better_rate
    # If the rate is too low, the order is compared at the better one; if it is too high, that is the verdict.
    if better is None or better > rate:
        _compare_order(model, crops, size, training, better or rate, steps, found)
    return found


def _compare_order(
    model: SequenceModel, crops: Tensor, size: int, training: TrainingConfig, rate: float, steps: int, found: Overfit
) -> None:
    generator = torch.Generator().manual_seed(1)
    order = torch.stack([torch.randperm(crops.shape[2], generator=generator) for _ in crops]).to(crops.device)
    mixed = crops.gather(2, order[:, None].expand_as(crops))  # rows of a frame stay together
    runs = zip(
        _learn(model, _batches(crops, size), training, rate),
        _learn(model, _batches(mixed, size), training, rate),
        strict=True,
    )
    for given, shuffled in itertools.islice(runs, steps):
        if not (math.isfinite(given) and math.isfinite(shuffled)):
            break
        found.given.append(given)
        found.shuffled.append(shuffled)
        told = len(found.given) >= WINDOW and found.order_told
        if told or shuffled < MEMORISED * found.frequencies:
            break


def _learn(
    model: SequenceModel,
    batches: Iterable[Tensor],
    training: TrainingConfig,
    rate: float,
    events: list[dict[str, Any]] | None = None,
) -> Iterator[float]:
    """Train a copy, and yield the loss of each batch before its step; append observations of some steps to `events`."""
    # Evaluation mode, since dropout would hinder overfitting.
    model = copy.deepcopy(model).eval()
    optimizer = make_optimizer(model, training)
    for step, x in enumerate(batches, 1):
        with observe(model) if events is not None and step in OBSERVED else nullcontext() as seen:
            loss = model(Batch(x)).sum() / model.num_entries(Batch(x))
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, step / WARMUP)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
            optimizer.step()
        if seen is not None and events is not None:
            events.append({"step": step, **seen.event()})
        yield model.spec.unit.of_nats(float(loss.detach()))


def _by_heart(
    model: SequenceModel,
    batch: Tensor,
    training: TrainingConfig,
    rate: float,
    goal: float,
    steps: int,
    events: list[dict[str, Any]] | None = None,
) -> Iterator[float]:
    """Yield `steps` losses and the one after them; stop early if the goal is reached or the loss is not finite."""
    learning = _learn(model, itertools.repeat(batch), training, rate, events)
    for loss in itertools.islice(learning, steps + 1):
        yield loss
        if not math.isfinite(loss) or loss < goal:
            break


def _batches(crops: Tensor, size: int) -> Iterator[Tensor]:
    """Yield batches forever, in passes over all crops, each in a new random order."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(crops), generator=generator).to(crops.device)
        for first in range(0, max(1, len(crops) - size + 1), size):
            yield crops[order[first : first + size]]


def _yardsticks(spec: Spec, batch: Tensor) -> tuple[float, float, float]:
    """Return the reference, frequencies and goal of `Overfit`."""
    if spec.uniform_loss is not None:
        frequencies = _entropy(batch, spec.num_choices // spec.num_rows)
        return spec.uniform_loss, frequencies, BY_HEART * spec.uniform_loss
    # Bits can't fall below 0, but densities have no bound; the goal corresponds to deviations of e^-2.
    gaussian = float((0.5 * (batch.double().square() + math.log(2 * math.pi))).sum(dim=1).mean())
    return gaussian, gaussian, gaussian - 2 * spec.values_per_entry


def _entropy(codes: Tensor, codebook_size: int) -> float:
    """Return the bits per code of (B, K, T) for a model that knows the frequencies of each row only."""
    bits = []
    for row in codes.unbind(1):
        p = torch.bincount(row.flatten(), minlength=codebook_size).double() / row.numel()
        bits.append(float(-(p[p > 0] * p[p > 0].log2()).sum()))
    return sum(bits) / len(bits)
