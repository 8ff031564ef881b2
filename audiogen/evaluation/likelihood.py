"""Held-out likelihood, file by file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.batch import Batch
from ..models.sequence_model import SequenceModel

#: Steps of one batch, all items together, and probabilities of one: they bound memory whatever the files' lengths.
BATCH_STEPS, BATCH_PROBABILITIES = 32_768, 2**24


@dataclass(frozen=True)
class FileLikelihood:
    """Of one sequence: nats in all, entries (codes, or whole frames), frames."""

    nats: float
    entries: int
    frames: int


@torch.inference_mode()
def file_likelihoods(model: SequenceModel, sequences: Iterable[Tensor]) -> Iterator[FileLikelihood]:
    """The likelihood of each sequence (C, T) taken by itself from its first frame, in the order given.

    Sequences of like length share a batch, padded with holes, which count for nothing and which no earlier step sees;
    long ones go through in chunks with their state carried. Neither changes the sum beyond rounding.
    """
    training = model.training
    model.eval()
    try:
        steps = _batch_steps(model)
        for batch in _batches(sequences, steps):
            longest = max(x.shape[1] for x in batch)
            padded = Batch(torch.stack([_padded(x, longest, model.hole) for x in batch]))
            nats = _nats(model, padded.to(model.bos.device), steps)
            for i, x in enumerate(batch):
                yield FileLikelihood(float(nats[i]), model.num_entries(Batch(x[None])), x.shape[1])
    finally:
        model.train(training)


def _batch_steps(model: SequenceModel) -> int:
    """Steps of one batch: fewer where a step has many codes to choose from."""
    return max(1, min(BATCH_STEPS, BATCH_PROBABILITIES // model.spec.num_choices))


def _nats(model: SequenceModel, batch: Batch, steps: int) -> Tensor:
    """The nats of each item, (B,) float64; at most so many steps at once."""
    seq = model.pattern.apply(batch.x, model.hole)
    total, state = torch.zeros(len(seq), dtype=torch.float64), None
    for chunk in seq.split(max(1, steps // len(seq)), dim=2):
        nll, state = model.nll_of_steps(chunk, state)
        total += nll.sum(dim=(1, 2), dtype=torch.float64).cpu()
    return total


def _batches(sequences: Iterable[Tensor], steps: int, most: int = 64) -> Iterator[list[Tensor]]:
    """Neighbours together, as long as padding them to the longest stays within so many steps."""
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
