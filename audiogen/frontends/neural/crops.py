"""Crops of sound for training a codec or a vocoder, as a pure function of the step."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .reservoir import Reservoir

POOL_PASSES = 4  # over the crops in memory, before others are drawn


class CropBatches:
    """batch(step) -> (B, 1, num_samples), the same for the same step, so that resuming needs one integer.

    A pool of crops is drawn from the files, shuffled a few times over, and drawn anew, cut elsewhere.

    Args:
        wavs: gives a fresh pass over the training files (1, N).
        num_samples: of a crop.
        batch_size: crops of a batch.
        capacity: crops in memory at most.
        seed: decides all of it.
    """

    def __init__(
        self, wavs: Callable[[], Iterable[Tensor]], num_samples: int, batch_size: int, capacity: int, seed: int
    ):
        self.wavs, self.num_samples, self.batch_size = wavs, num_samples, batch_size
        self.capacity, self.seed = capacity, seed
        self._load(0)
        # Of the first pool, since where another one is cut may make it a crop longer or shorter.
        self.steps_per_pool = max(1, POOL_PASSES * len(self.crops) // batch_size)

    def batch(self, step: int) -> Tensor:
        number, place = divmod(step, self.steps_per_pool)
        if number != self.number:
            self._load(number)
        places = torch.arange(place * self.batch_size, (place + 1) * self.batch_size)
        return self.crops[self.order[places % len(self.order)]]

    def _load(self, number: int) -> None:
        generator = generator_for(self.seed, number)
        self.number = number
        self.crops = draw_crops(self.wavs(), self.num_samples, self.capacity, generator)  # (M, 1, num_samples)
        passes = max(POOL_PASSES, math.ceil(self.batch_size / len(self.crops)))
        self.order = torch.cat([torch.randperm(len(self.crops), generator=generator) for _ in range(passes)])


def generator_for(*numbers: int) -> torch.Generator:
    """A generator on the CPU that these numbers decide, such as (seed, step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def draw_crops(wavs: Iterable[Tensor], num_samples: int, capacity: int, generator: torch.Generator) -> Tensor:
    """At most `capacity` crops, each with the same chance, of the wavs (1, N) joined end to end: (M, 1, num_samples).

    The first cut lies at random, so that each call cuts elsewhere; the ends are filled with silence.
    """
    reservoir = Reservoir(capacity, generator)
    rest = torch.zeros(1, int(torch.randint(num_samples, (1,), generator=generator)))
    for wav in wavs:
        joined = torch.cat([rest, wav.float().cpu()], dim=1)
        num_crops = joined.shape[1] // num_samples
        reservoir.add(joined[:, : num_crops * num_samples].view(num_crops, 1, num_samples).clone())
        rest = joined[:, num_crops * num_samples :].clone()
    if rest.shape[1]:
        reservoir.add(F.pad(rest, (0, num_samples - rest.shape[1])).unsqueeze(0))
    return reservoir.rows()
