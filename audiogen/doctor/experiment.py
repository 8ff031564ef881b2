"""Can a model learn one batch by heart, and does the order of the sound teach it anything?

Two short experiments, each on a copy of the model:

    by heart    one batch again and again: shows weights, learning rate and optimizer at work
    order       batch after batch as given, beside the same frames in an order drawn by lot: both hold the same codes
                as often, so that what separates the two losses is what the order tells

What goes on inside the network in the first of them (training/diagnostics.py) tells why, and where.
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

#: Steps of either experiment at most, and of its warm-up; as many are enough for models of the default sizes.
STEPS, WARMUP = 200, 40
#: Entries (codes, or frames) of one step: as many as a CPU learns 200 times in seconds.
ENTRIES = 1024
#: The order tells something if, in the mean of so many steps, the loss as given has fallen further than the shuffled
#: one by this part of the way. On spoken digits each backbone came to 0.14 to 0.8, and to 0.06 at most where the order
#: had been shuffled before. The way must be this part of the reference at least, or it is too short to be measured.
ORDER, WINDOW, SHORTEST_WAY = 0.1, 20, 0.05
#: Once the shuffled loss is below this part of what frequencies give, frames are being learned by heart, as a matter of
#: chance sooner or later, and the difference no longer speaks of order.
MEMORISED = 0.6
#: By heart is below this part of the reference, where codes are concerned.
BY_HEART = 0.02
#: Steps that are looked into.
OBSERVED = {1, 2, 5, 10, 20, 50, 100, 200}


@dataclass(frozen=True)
class Overfit:
    """What the experiments showed. Losses are bits per code or nats per frame, a value before each step.

    Attributes:
        spec: of the codes or frames.
        reference: what a model that knows nothing has: log2 V, or the nats of a standard Gaussian on the batch.
        frequencies: what knowing how often each code occurs in the batch would give; for densities the reference.
        goal: the loss at which the batch counts as known by heart.
        learning_rate: that of the training settings.
        losses: of one batch, again and again.
        events: what `observe` saw of some steps of these, as findings.py takes it.
        retries: losses of the same at other learning rates, by rate; tried only where the first run failed.
        given, shuffled: of batch after batch, as given and with the order of the frames drawn by lot.
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
        """How much further the loss as given has fallen than the shuffled one, in parts of the way; None if the way
        was too short to tell."""
        last = min(WINDOW, len(self.given))
        if last == 0:
            return None
        given, shuffled = (sum(losses[-last:]) / last for losses in (self.given, self.shuffled))
        way = self.given[0] - min(given, shuffled)
        return (shuffled - given) / way if way > SHORTEST_WAY * self.reference else None

    @property
    def order_told(self) -> bool:
        """Whether the order helped."""
        return self.order_gain is not None and self.order_gain > ORDER

    @property
    def starts_far(self) -> bool:
        """Whether the first loss is far above that of knowing nothing, or no number."""
        return not self.losses[0] <= self.reference + self.tolerance

    def ran_away(self, losses: list[float]) -> bool:
        """Whether the loss went far above where it began, or is no number."""
        return not all(loss <= losses[0] + self.tolerance for loss in losses)

    def settled(self, losses: list[float]) -> bool:
        """Whether the loss never went far above the lowest so far."""
        lowest = itertools.accumulate(losses, min)
        return all(loss <= low + self.tolerance for loss, low in zip(losses, lowest, strict=True))

    def learned(self, losses: list[float]) -> bool:
        """Whether a run got to know more than how often each code occurs."""
        return not self.ran_away(losses) and losses[-1] < self.frequencies - 0.05 * self.reference

    @property
    def better_rate(self) -> float | None:
        """Of the learning rates that were tried, one at which the batch is learned quietly, and further or sooner."""

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
        """How far above the reference is far: a quarter of a bit, or of a nat and feature."""
        return 0.25 * self.spec.values_per_entry


def overfit(model: SequenceModel, crops: Tensor, training: TrainingConfig, steps: int = STEPS) -> Overfit:
    """Runs the experiments on copies of a model.

    Args:
        model: as it would begin its training, on its device.
        crops: (N, C, T) codes or frames, the first of which make up the batch to learn by heart; order matters
            along T alone.
        training: learning rate, weight decay and clipping are taken from it.
        steps: of each experiment, at most.
    """
    if crops.shape[2] < 2:
        raise DataError("the crops are of one frame, in which there is no order to learn: give longer files")
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
            return found  # a fault that hides all others
    settled = found.settled(found.losses)
    if not found.learned(found.losses) or not settled:
        # A quiet run that learns too little is slow rather than wild.
        for factor in (10, 0.1, 0.01) if settled else (0.1, 0.01, 10):
            other = factor * rate
            found.retries[other] = list(_by_heart(model, batch, training, other, goal, steps))
            if found.better_rate:
                break
    better = found.better_rate
    # Above a rate that is too low, order can be told; below one that is too high, no more needs to be.
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
    """Trains a copy, and yields the loss of each batch before its step; adds what is seen of some steps to `events`."""
    # Evaluation mode: dropout is there to hinder what is tried here.
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
        if seen is not None:
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
    """The losses of so many steps and the one after them; fewer if the goal is met or there is no number."""
    learning = _learn(model, itertools.repeat(batch), training, rate, events)
    for loss in itertools.islice(learning, steps + 1):
        yield loss
        if not math.isfinite(loss) or loss < goal:
            break


def _batches(crops: Tensor, size: int) -> Iterator[Tensor]:
    """Passes over all crops, each in an order of its own, without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(crops), generator=generator).to(crops.device)
        for first in range(0, max(1, len(crops) - size + 1), size):
            yield crops[order[first : first + size]]


def _yardsticks(spec: Spec, batch: Tensor) -> tuple[float, float, float]:
    """The reference, frequencies and goal of `Overfit`."""
    if spec.uniform_loss is not None:
        return spec.uniform_loss, _entropy(batch, spec.codebook_size), BY_HEART * spec.uniform_loss
    # Bits have a floor of 0; a density has none, so that deviations of e^-2 must do.
    gaussian = float((0.5 * (batch.double().square() + math.log(2 * math.pi))).sum(dim=1).mean())
    return gaussian, gaussian, gaussian - 2 * spec.num_features


def _entropy(codes: Tensor, codebook_size: int) -> float:
    """Bits per code of (B, K, T) when each row's frequencies are known, and nothing else."""
    bits = []
    for row in codes.unbind(1):
        p = torch.bincount(row.flatten(), minlength=codebook_size).double() / row.numel()
        bits.append(float(-(p[p > 0] * p[p > 0].log2()).sum()))
    return sum(bits) / len(bits)
