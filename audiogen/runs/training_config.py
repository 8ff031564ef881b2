"""What can be set of a training run."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

#: Beyond these, a setting is a slip, or that of a stranger who would have us fill memory or the process table.
MOST_WORKERS, MOST, MOST_FRAMES, MOST_SECONDS = 256, 2**40, 2**28, 3600.0


@dataclass(frozen=True)
class DataConfig:
    """How the corpus is held.

    Attributes:
        held_out: fraction of the files that is held out, by rank of content hash.
        num_workers: loader processes; changes speed, never a batch.
    """

    held_out: float = 0.1
    num_workers: int = 0

    def __post_init__(self):
        if not 0 < self.held_out < 1:
            raise ConfigError(f"data.held_out: must lie between 0 and 1, got {self.held_out}")
        _check("data.num_workers", self.num_workers, 0, MOST_WORKERS)


@dataclass(frozen=True)
class GuidanceConfig:
    """How conditions are learned and followed.

    Attributes:
        dropout: probability that a crop loses all its conditions, and that it loses each of them by itself: so the
            model learns what a sound is like without them, from which guidance leads away.
        scale: of the guidance where nobody asks for another; 1 is none.
    """

    dropout: float = 0.1
    scale: float = 1.0

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"guidance.dropout: must be from 0 to below 1, got {self.dropout}")
        if not 0 <= self.scale <= 100:
            raise ConfigError(f"guidance.scale: must be from 0 to 100, got {self.scale}")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how a model is trained.

    Attributes:
        steps: optimizer steps; or
        minutes: of training time alone, evaluation and saving not counted. Exactly one of the two is set.
        seed: decides initial weights, crops and dropout.
        crop_frames: frames of one crop.
        batch_size: crops of one batch.
        accumulation: batches of one optimizer step.
        learning_rate: at the top of the schedule.
        warmup: fraction of the run in which the learning rate rises.
        final_learning_rate: fraction of `learning_rate` at which the cosine ends.
        weight_decay: on matrices alone.
        gradient_clip: largest norm of the gradient.
        precision: "bf16" runs matrix products in bfloat16, "auto" chooses it where it is known to pay.
        compile: torch.compile the model; pays on GPUs.
        average: decay per step of the averaged weights (Polyak averaging), null for none.
        evaluations: how often in the run the held-out loss is taken.
        evaluation_frames: held-out frames that these use at most; the final one uses all.
        patience: stop after so many evaluations without a better held-out loss, though not in the first third of the
            budget, nor within 100 steps; null for never.
        sample_every: evaluations between sample WAVs, null for only at the end.
        sample_seconds: length of a sample.
    """

    steps: int | None = None
    minutes: float | None = 10.0
    seed: int = 0
    crop_frames: int = 512
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.03
    final_learning_rate: float = 0.05
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    average: float | None = None
    evaluations: int = 20
    evaluation_frames: int = 100_000
    patience: int | None = 5
    sample_every: int | None = None
    sample_seconds: float = 4.0

    def __post_init__(self):
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError("training: set either steps or minutes, the other to null")
        for name in (
            "steps",
            "crop_frames",
            "batch_size",
            "accumulation",
            "evaluations",
            "evaluation_frames",
            "patience",
            "sample_every",
        ):
            _check(f"training.{name}", getattr(self, name), 1, MOST)
        if self.batch_size * self.crop_frames > MOST_FRAMES:
            raise ConfigError(
                f"training.batch_size, training.crop_frames: a batch of {self.batch_size} crops of {self.crop_frames} "
                f"frames has more than {MOST_FRAMES}; lower one, and raise training.accumulation for the other"
            )
        if self.sample_seconds > MOST_SECONDS:
            raise ConfigError(f"training.sample_seconds: must be {MOST_SECONDS:g} or less, got {self.sample_seconds}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"training.seed: must be from 0 to {2**31 - 1}, got {self.seed}")
        for name in ("minutes", "learning_rate", "gradient_clip", "sample_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"training.{name}: must be above 0, got {value}")
        for name in ("warmup", "final_learning_rate", "weight_decay", "average"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"training.{name}: must lie between 0 and 1, got {value}")


def _check(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        wanted = f"{least} or more" if value < least else f"{most} or less"
        raise ConfigError(f"{name}: must be {wanted}, got {value}")
