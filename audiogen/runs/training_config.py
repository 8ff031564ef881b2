"""The settings of a training run."""

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

#: Upper bounds that catch typos and untrusted configs that would exhaust memory or the process table.
MOST_WORKERS, MOST, MOST_FRAMES, MOST_SECONDS = 256, 2**40, 2**28, 3600.0
#: Weights of a model up to which each process holds all of them, unless it is told otherwise.
MOST_REPLICATED = 500_000_000


@dataclass(frozen=True)
class DataConfig:
    """Settings of the corpus.

    Attributes:
        held_out: fraction of the files to hold out, by content hash.
        num_workers: loader processes; affects speed only, never the batches.
        weights: how often crops are drawn from each of several folders, in any unit, such as [0.7, 0.3]; empty for as
            often as from any other frame.
        corpora: names of the folders, if there are several: those with which the paths of their files begin. They
            follow from the folders.
    """

    held_out: float = 0.1
    num_workers: int = 0
    weights: tuple[float, ...] = ()
    corpora: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 < self.held_out < 1:
            raise ConfigError(f"data.held_out: must lie between 0 and 1, got {self.held_out}")
        _check("data.num_workers", self.num_workers, 0, MOST_WORKERS)
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ConfigError(f"data.weights: each must be above 0, got {list(self.weights)}")

    @property
    def mixture(self) -> dict[str, float]:
        """The share of the crops that is drawn from each folder, by its name; empty if none is given."""
        total = sum(self.weights)
        return {name: weight / total for name, weight in zip(self.corpora, self.weights, strict=False)}


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
    """Settings of training.

    Attributes:
        steps: budget in optimizer steps. Exactly one of `steps` and `minutes` is set.
        minutes: budget in minutes of training, without evaluation and saving.
        start: initial weights: "base", the model that ships with the package, or "scratch", new ones.
        seed: determines initial weights, crops and dropout.
        crop_frames: frames per crop.
        batch_size: crops per batch.
        accumulation: batches per optimizer step.
        learning_rate: peak of the schedule.
        warmup: fraction of the run in which the learning rate rises; fine-tuning takes at least 40 steps for it.
        final_learning_rate: fraction of `learning_rate` at which the cosine ends.
        weight_decay: applied to matrices only.
        gradient_clip: maximum norm of the gradient.
        scheduled_sampling: maximum probability that the model sees its own draw of a step instead of the recording;
            that of a crop is uniform between 0 and this. It reduces drift in generation, see `SequenceModel.redraw`.
        input_noise: largest deviation of the noise on the frames that the model sees, in deviations of a feature; half
            of the crops have none. It reduces drift in generation, see `SequenceModel.perturb`.
        precision: "bf16" runs matrix products in bfloat16; "auto" does so where it is known to be faster.
        compile: use torch.compile, on each block of a backbone that has blocks; faster on GPUs.
        average: decay per step of averaged weights (Polyak averaging); null for none.
        evaluations: number of held-out evaluations in the run.
        evaluation_frames: maximum number of held-out frames per evaluation; the final one uses all.
        patience: stop after this many evaluations without a better held-out loss, but not in the first third of the
            budget, nor within 100 steps; null for never.
        sample_every: evaluations between sample WAVs; null to write them only at the end.
        sample_seconds: length of a sample.

    Raises:
        ConfigError: a value is out of range; names it.
    """

    steps: int | None = None
    minutes: float | None = 10.0
    start: Literal["base", "scratch"] = "scratch"
    seed: int = 0
    crop_frames: int = 512
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.03
    final_learning_rate: float = 0.05
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    scheduled_sampling: float = 0.0
    input_noise: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    average: float | None = None
    evaluations: int = 20
    evaluation_frames: int = 100_000
    patience: int | None = 5
    sample_every: int | None = None
    sample_seconds: float = 4.0

    @property
    def seconds(self) -> float:
        """Budget in seconds of training; infinity if the budget is in steps."""
        return math.inf if self.minutes is None else 60 * self.minutes

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
        for name in ("warmup", "final_learning_rate", "weight_decay", "scheduled_sampling", "input_noise", "average"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"training.{name}: must lie between 0 and 1, got {value}")


@dataclass(frozen=True)
class DistributedConfig:
    """How several processes train together. None of this, nor their number, is needed to resume.

    Attributes:
        kind: "replicas": each process holds all weights; "sharded": a share of them (torch's FSDP2), for models that
            are too large for one GPU; "auto": sharded above 500 million weights.
        exact: sum gradients in a fixed order, so that any number of processes gives the same bytes; false: in the order
            that suits the network, during the backward pass, and with shards exchange weights as bfloat16 where
            training.precision is; equal within rounding.
        shards: processes among which the weights are shared out, of which each group holds all; null: those of a
            machine.
        timeout: seconds after which a process that does not answer counts as hung.
    """

    kind: Literal["auto", "replicas", "sharded"] = "auto"
    exact: bool = True
    shards: int | None = None
    timeout: float = 300.0

    def sharded(self, num_weights: int) -> bool:
        """Tell whether processes hold shares of a model's weights."""
        return self.kind == "sharded" or self.kind == "auto" and num_weights > MOST_REPLICATED

    def __post_init__(self):
        if not 1 <= self.timeout <= 86_400:
            raise ConfigError(f"distributed.timeout: must be from 1 to 86400 seconds, got {self.timeout}")
        _check("distributed.shards", self.shards, 1, MOST)


def _check(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        wanted = f"{least} or more" if value < least else f"{most} or less"
        raise ConfigError(f"{name}: must be {wanted}, got {value}")
