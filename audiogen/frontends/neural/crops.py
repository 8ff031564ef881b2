"""Crops of audio for training a codec or a vocoder, as a pure function of the step."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .reservoir import Reservoir

POOL_PASSES = 4  # over the crops in memory, before new ones are drawn


class CropBatches:
    """Batches of crops (B, 1, num_samples) as a function of the step, so that resuming needs only the step.

    A pool of crops is drawn from the files and passed over in several random orders; then a new pool is drawn.

    Args:
        wavs: returns a new iterator over the training files (1, N).
        num_samples: length of a crop.
        batch_size: B.
        capacity: most crops in memory.
        seed: determines all draws.
    """

    def __init__(
        self, wavs: Callable[[], Iterable[Tensor]], num_samples: int, batch_size: int, capacity: int, seed: int
    ):
        self.wavs, self.num_samples, self.batch_size = wavs, num_samples, batch_size
        self.capacity, self.seed = capacity, seed
        self._load(0)
        # Set by the first pool; the size of later ones may differ by a crop.
        self.steps_per_pool = max(1, POOL_PASSES * len(self.crops) // batch_size)

    def batch(self, step: int) -> Tensor:
        """Return the crops of a step: (B, 1, num_samples)."""
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
    """Return a CPU generator seeded by several numbers, such as (seed, step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def draw_crops(wavs: Iterable[Tensor], num_samples: int, capacity: int, generator: torch.Generator) -> Tensor:
    """Draw up to `capacity` crops uniformly from wavs (1, N) joined end to end: (M, 1, num_samples).

    The position of the first cut is random. The ends are padded with silence.
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
