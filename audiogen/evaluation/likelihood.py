"""Compute the likelihood of held-out files."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..distributed import World
from ..models.batch import Batch
from ..models.conditioning import Conditions
from ..models.sequence_model import SequenceModel

#: Limits of one batch, which bound memory for any file length: steps of all items, and probabilities.
BATCH_STEPS, BATCH_PROBABILITIES = 32_768, 2**24
#: Frames of which reports compute the exact likelihood where a bound would take less time: over a minute of sound.
EXACT_FRAMES = 1500


@dataclass(frozen=True)
class FileLikelihood:
    """The negative log-likelihood of one sequence in nats, and its numbers of entries (codes or frames) and frames."""

    nats: float
    entries: int
    frames: int


@torch.inference_mode()
def file_likelihoods(
    model: SequenceModel,
    sequences: Iterable[Tensor],
    conditions: Iterable[Conditions] | None = None,
    world: World = World(),
    exact: bool = True,
) -> Iterator[FileLikelihood]:
    """Yield the likelihood of each sequence (C, T) on its own, in the given order.

    `conditions` are those of each sequence by name, (1, F, 1 or T) each.

    Neighbours of similar length share a batch, padded with holes, which do not count. Long sequences are processed in
    chunks, with state. Both change the result only by rounding. The ranks of `world` share out the batches, and each
    gets all results, which do not depend on their number. Where the head has a bound that takes less time, not `exact`
    takes that.
    """
    found = _share(model, sequences, conditions, world, exact)
    if world.size > 1:
        found = list(found)
        [nats] = world.add_up([torch.tensor([file.nats for file in found], dtype=torch.float64)])  # 0 for all but one
        found = [replace(file, nats=x) for file, x in zip(found, nats.tolist(), strict=True)]
    yield from found


def _share(
    model: SequenceModel,
    sequences: Iterable[Tensor],
    conditions: Iterable[Conditions] | None,
    world: World,
    exact: bool,
) -> Iterator[FileLikelihood]:
    """Yield the likelihood of each sequence, with 0 nats in the batches of other ranks."""
    training = model.training
    model.eval()
    try:
        steps, known = _batch_steps(model), None if conditions is None else iter(conditions)
        for number, batch in enumerate(_batches(sequences, steps)):
            longest = max(x.shape[1] for x in batch)
            given = None if known is None else joined(list(itertools.islice(known, len(batch))))
            padded = Batch(torch.stack([_padded(x, longest, model.hole) for x in batch]), given)
            own = number % world.size == world.rank
            nats = _nats(model, padded.to(model.bos.device), steps, exact) if own else torch.zeros(len(batch))
            for i, x in enumerate(batch):
                yield FileLikelihood(float(nats[i]), model.num_entries(Batch(x[None])), x.shape[1])
    finally:
        model.train(training)


def _batch_steps(model: SequenceModel) -> int:
    """Return the steps of one batch: fewer if each step has many probabilities."""
    return max(1, min(BATCH_STEPS, BATCH_PROBABILITIES // model.spec.num_choices))


def _nats(model: SequenceModel, batch: Batch, steps: int, exact: bool) -> Tensor:
    """Compute the nats of each item, (B,) float64, at most `steps` steps at once."""
    seq = model.pattern.apply(batch.x, model.hole)
    given = model.prepare(batch.conditions)
    total, state, start = torch.zeros(len(seq), dtype=torch.float64), None, 0
    for chunk in seq.split(max(1, steps // len(seq)), dim=2):
        stop = start + chunk.shape[2]
        memory = model.memory(given, start, stop)
        nll, state = model.nll_of_steps(chunk, state, model.added(given, start, stop), memory, exact)
        start = stop
        total += nll.sum(dim=(1, 2), dtype=torch.float64).cpu()
    return total


def joined(items: list[Conditions]) -> Conditions:
    """Join the conditions of items, (1, F, 1 or T) each: (B, F, 1 or T), NaN where an item has none.

    After the end of a shorter item its last frame is repeated, as it is where the item is alone.
    """
    found = {}
    for name in dict.fromkeys(name for item in items for name in item):
        given = [item[name] for item in items if name in item]
        longest = max(x.shape[2] for x in given)
        nothing = given[0].new_full((*given[0].shape[:2], longest), math.nan)
        rows = [item.get(name, nothing) for item in items]
        found[name] = torch.cat([torch.cat([x, x[:, :, -1:].expand(-1, -1, longest - x.shape[2])], 2) for x in rows])
    return found


def _batches(sequences: Iterable[Tensor], steps: int, most: int = 64) -> Iterator[list[Tensor]]:
    """Group neighbours into batches of at most `steps` steps after padding to the longest."""
    batch: list[Tensor] = []
    for x in sequences:
        longest = max([x.shape[1], *(y.shape[1] for y in batch)])
        if batch and (len(batch) == most or longest * (len(batch) + 1) > steps):
            yield batch
            batch = []
        batch.append(x)
    if batch:
        yield batch


def _padded(x: Tensor, length: int, hole: float) -> Tensor:
    return torch.cat([x, x.new_full((x.shape[0], length - x.shape[1]), hole)], dim=1)
