"""Train front-ends by gradient, on augmented crops of the files normalised to about RMS 1."""

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from ...spec import Spec
from ..base import check_setting, training_wavs
from .augmentation import longer, vary
from .crops import CropBatches, generator_for
from .losses import ReconstructionLoss
from .trainer import Trainer, TrainingSettings

log = logging.getLogger("audiogen")

#: Lines on the progress where there is no terminal.
LINES = 10
CROP_SECONDS = 1.0
POOL_SECONDS = 3600  # training audio in memory: 230 MB at 16 kHz
QUIETEST = 1e-4  # lower bound of the RMS that training audio is divided by


class Learner(Protocol):
    """A front-end trained by gradient."""

    def trainer(self, wavs: Iterable[Tensor]) -> Trainer:
        """Return a trainer, from scratch, on a re-iterable of wavs (1, N); there are no weights until `load_trained`.

        Raises:
            DataError: there are no wavs.
        """
        ...

    def load_trained(self, trainer: Trainer) -> None:
        """Copy the current weights of a trainer."""


def learn(learner: Learner, wavs: Iterable[Tensor], steps: int, what: str) -> None:
    """Train for a number of steps, and show the progress of `what`.

    Raises:
        DataError: there are no wavs.
        TrainingError: the loss is NaN or explodes repeatedly.
    """
    trainer = learner.trainer(wavs)
    for step in shown(steps, what):
        trainer.train_step(step / steps)
    learner.load_trained(trainer)


def shown(steps: int, what: str) -> Iterator[int]:
    """Count steps, with a progress bar that names `what`, or a few lines where there is no terminal."""
    for step in tqdm(range(steps), desc=f"fitting {what}", unit="step", disable=None):
        yield step
        if not sys.stderr.isatty() and (step + 1) * LINES // steps > step * LINES // steps:
            log.info("fitting %s: step %d of %d", what, step + 1, steps)


def check_training(settings: TrainingSettings, group: str = "") -> None:
    """Check the range of training settings; for a Config's __post_init__.

    Args:
        settings: the settings.
        group: prefix of their keys within the front-end's settings, such as "vocoder.".

    Raises:
        ConfigError: a setting is out of range.
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
    """Prepare training batches: augmented crops (B, 1, N) of about a second, divided by the files' RMS.

    Memory is bounded, whatever the total length of the files.

    Args:
        wavs: re-iterable of (1, N) at spec.sample_rate.
        spec: N is a multiple of its hop_length, if that is fixed.
        batch_size: B.
        seed: determines crops and augmentation.

    Returns:
        The RMS, a scalar on the CPU, and a pure function from the step to its batch.

    Raises:
        DataError: there are no wavs.
    """
    shortest = ReconstructionLoss(spec.sample_rate).shortest
    hop_length = spec.hop_length or 1
    num_samples = hop_length * math.ceil(max(CROP_SECONDS * spec.sample_rate, shortest) / hop_length)
    capacity = math.ceil(POOL_SECONDS * spec.sample_rate / longer(num_samples))
    crops = CropBatches(lambda: training_wavs(wavs), longer(num_samples), batch_size, capacity, seed)
    level = crops.crops.square().mean().sqrt().clamp_min(QUIETEST)

    def batch(step: int) -> Tensor:
        return vary(crops.batch(step), num_samples, generator_for(seed, step, 2)) / level

    return level, batch
