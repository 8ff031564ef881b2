"""The contract of a backbone."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...errors import ConfigError
from ...spec import Spec
from ..layers import State


class Backbone(nn.Module):
    """Hidden (B, S, D) -> hidden (B, S, D) for any S >= 1, causal; made by `__init__(config)` from its nested Config.

    Whole equals any chunking: `forward(x, state)` goes on from the state that the last call gave, and consumes it.
    The state is a tree of tensors of fixed shape, so that a step costs the same however far it has gone.
    """

    dim: int  # D
    receptive_field: float  # steps that y[:, t] depends on, step t included; math.inf where there is no bound
    #: Training settings by `Spec.signal`, where the user names none. Samples need long crops, frames short ones; the
    #: loss of real-valued features falls slowly towards its end, so they take many steps of few crops.
    training: ClassVar[dict[str, dict[str, Any]]] = {
        "samples": {"crop_frames": 2048, "batch_size": 8, "learning_rate": 2e-3, "weight_decay": 0.01},
        "frames": {"crop_frames": 256, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.1},
        "runs": {"crop_frames": 256, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.1},
        "features": {"crop_frames": 256, "batch_size": 4, "learning_rate": 3e-3, "weight_decay": 0.1},
    }

    @dataclass(frozen=True)
    class Config:
        pass

    @classmethod
    def defaults(cls, spec: Spec, num_codes: float = math.inf) -> tuple[Any, dict[str, Any]]:
        """Return the config and the training settings that suit a spec, where the user names none.

        Args:
            spec: of the front-end.
            num_codes: roughly how many codes there are to train on; infinity where that is not known.

        Returns:
            A `Config`, and fields of `TrainingConfig` by name (crop_frames, batch_size, learning_rate, ...).
        """
        return cls.Config(), cls.training[spec.signal]

    @classmethod
    def for_crops(cls, config: Any, num_steps: int) -> Any:
        """Adapt default settings to training crops of `num_steps` steps (after the pattern)."""
        return config

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        raise NotImplementedError


#: Numbers in the state of one item: 1 GiB in fp32. Nothing in the weights' shapes tells of it.
MAX_STATE_SIZE = 2**28
#: Sizes beyond these are a slip, or the config of a stranger who would have us fill memory, or build layers for hours.
MAX_LAYERS, MAX_SETTING = 1024, 2**20


def check_sizes(config: Any) -> None:
    """For a Config's __post_init__: raises the ConfigError that names a whole-number setting out of range."""
    for field in dataclasses.fields(config):
        value, most = getattr(config, field.name), MAX_LAYERS if field.name == "num_layers" else MAX_SETTING
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if value < 1:
            raise ConfigError(f"backbone.{field.name}: must be 1 or more, got {value}")
        if value > most:
            raise ConfigError(f"backbone.{field.name}: must be {most} or less, got {value}")


def check_state(size: int, what: str) -> None:
    """Raises the ConfigError of a state of so many numbers an item, if these are too many."""
    if size > MAX_STATE_SIZE:
        raise ConfigError(
            f"{what}: the state of one item would take {size:,} numbers, and at most {MAX_STATE_SIZE:,} are "
            "taken; choose smaller ones"
        )
