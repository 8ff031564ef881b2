"""What front-ends that learn by gradient train on: crops of the files, varied, and of about unit power."""

import math
from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from ...spec import Spec
from ..base import check_setting, training_wavs
from .augmentation import longer, vary
from .crops import CropBatches, generator_for
from .losses import ReconstructionLoss
from .trainer import Trainer, TrainingSettings

CROP_SECONDS = 1.0
POOL_SECONDS = 3600  # of training audio in memory at once: 230 MB at 16 kHz
QUIETEST = 1e-4  # root mean square below which training audio is not made louder


class Learner(Protocol):
    """A front-end that learns by gradient."""

    def trainer(self, wavs: Iterable[Tensor]) -> Trainer:
        """What trains it from scratch, step by step, on a re-iterable of files (1, N); it has no weights till `take`.

        Raises:
            DataError: there are no wavs.
        """

    def load_trained(self, trainer: Trainer) -> None:
        """The weights of a trainer as they stand."""


def learn(learner: Learner, wavs: Iterable[Tensor], steps: int, what: str) -> None:
    """Trains for so many steps, under a progress bar that says `what` is being fitted.

    Raises:
        DataError: there are no wavs.
        TrainingError: the loss is not a number, again and again.
    """
    trainer = learner.trainer(wavs)
    for step in tqdm(range(steps), desc=f"fitting {what}", unit="step", disable=None):
        trainer.train_step(step / steps)
    learner.load_trained(trainer)


def check_training(settings: TrainingSettings, group: str = "") -> None:
    """For a Config's __post_init__.

    Args:
        group: where in the front-end's settings these lie, such as "vocoder.".

    Raises:
        ConfigError: names the setting that makes no sense.
    """
    windows = settings.discriminator_windows
    for name, good, rule in (
        ("batch_size", 1 <= settings.batch_size <= 4096, "from 1 to 4096"),
        ("learning_rate", 0 < settings.learning_rate <= 1, "above 0, at most 1"),
        ("adversarial_from", 0 <= settings.adversarial_from <= 1, "from 0 to 1"),
        ("discriminator_channels", 1 <= settings.discriminator_channels <= 128, "from 1 to 128"),
        (
            "discriminator_windows",
            len(windows) > 0 and 0.002 <= min(windows) and max(windows) <= 0.5,
            "one or more numbers from 0.002 to 0.5 seconds",
        ),
        ("seed", 0 <= settings.seed < 2**31, f"from 0 to {2**31 - 1}"),
    ):
        check_setting(good, group + name, rule, getattr(settings, name))


def training_batches(
    wavs: Iterable[Tensor], spec: Spec, batch_size: int, seed: int
) -> tuple[Tensor, Callable[[int], Tensor]]:
    """The root mean square of the files, and step -> varied crops (B, 1, N) of about a second, divided by it.

    However long the files are, what is in memory does not grow.

    Args:
        wavs: re-iterable of (1, N) at spec.sample_rate.
        spec: N is a multiple of its hop.
        batch_size: B.
        seed: decides the crops, and how they are varied.

    Returns:
        Their root mean square, a scalar on the CPU; and the batches, a pure function of the step.

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
