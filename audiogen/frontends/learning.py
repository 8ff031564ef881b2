"""What front-ends that learn by gradient train on: crops of the files, varied, and of about unit power."""

import math
from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from ..codec.crops import CropBatches, generator_for
from ..codec.losses import ReconstructionLoss
from ..codec.training import Trainer
from ..codec.variations import longer, vary
from ..spec import Spec
from .base import training_wavs

CROP_SECONDS = 1.0
POOL_SECONDS = 3600  # of training audio in memory at once: 230 MB at 16 kHz
QUIETEST = 1e-4  # level below which training audio is not made louder


class Learner(Protocol):
    """A front-end that learns by gradient."""

    def trainer(self, wavs: Iterable[Tensor]) -> Trainer:
        """What trains it from scratch, step by step, on a re-iterable of files (1, N); it has no weights till `take`.

        Raises:
            DataError: there are no wavs.
        """

    def take(self, trainer: Trainer) -> None:
        """The weights of a trainer as they stand."""


def learn(learner: Learner, wavs: Iterable[Tensor], steps: int, what: str) -> None:
    """Trains for so many steps, under a progress bar that says `what` is being fitted.

    Raises:
        DataError: there are no wavs.
        TrainingError: the loss is not a number, again and again.
    """
    trainer = learner.trainer(wavs)
    for step in tqdm(range(steps), desc=f"fitting {what}", unit="step", disable=None):
        trainer.advance(step / steps)
    learner.take(trainer)


def training_batches(wavs: Iterable[Tensor], spec: Spec, batch_size: int, seed: int
                     ) -> tuple[Tensor, Callable[[int], Tensor]]:
    """The level of the files, and step -> varied crops (B, 1, N) of about a second, divided by it.

    However long the files are, what is in memory does not grow.

    Args:
        wavs: re-iterable of (1, N) at spec.sample_rate.
        spec: N is a multiple of its hop.
        batch_size: B.
        seed: decides the crops, and how they are varied.

    Returns:
        The root mean square of the crops, a scalar on the CPU; and the batches, a pure function of the step.

    Raises:
        DataError: there are no wavs.
    """
    shortest = ReconstructionLoss(spec.sample_rate).shortest
    num_samples = spec.hop_length * math.ceil(max(CROP_SECONDS * spec.sample_rate, shortest) / spec.hop_length)
    capacity = math.ceil(POOL_SECONDS * spec.sample_rate / longer(num_samples))
    crops = CropBatches(lambda: training_wavs(wavs), longer(num_samples), batch_size, capacity, seed)
    level = crops.crops.square().mean().sqrt().clamp_min(QUIETEST)

    def batch(step: int) -> Tensor:
        return vary(crops.batch(step), num_samples, generator_for(seed, step, 2)) / level

    return level, batch
