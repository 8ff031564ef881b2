"""The contract of a backbone."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ...errors import ConfigError
from ...spec import Spec
from ..layers import State


class Backbone(nn.Module):
    """Map hidden (B, S, D) to hidden (B, S, D), S >= 1, causally. Built from an instance of the nested Config.

    Whole equals any chunking: `forward(x, state)` continues from the state that the last call returned, and consumes
    it. The state is a tree of tensors of fixed shape, so every step costs the same.
    """

    Config: Any  # a frozen dataclass of settings
    config: Any
    dim: int  # D
    receptive_field: float  # steps that y[:, t] depends on, including t; math.inf if unbounded
    #: Default training settings by `Spec.signal`. Samples need long crops, frames short ones; the loss of real-valued
    #: features keeps falling slowly, so they take many steps with few crops each.
    training_defaults: ClassVar[dict[str, dict[str, Any]]] = {
        "samples": {"crop_frames": 2048, "batch_size": 8, "learning_rate": 2e-3, "weight_decay": 0.01},
        "frames": {"crop_frames": 256, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.1},
        "runs": {"crop_frames": 256, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.1},
        "features": {"crop_frames": 256, "batch_size": 4, "learning_rate": 3e-3, "weight_decay": 0.1},
    }

    @classmethod
    def defaults(cls, spec: Spec, num_codes: float = math.inf) -> tuple[Any, dict[str, Any]]:
        """Return the default config and training settings for a spec.

        Args:
            spec: the front-end's spec.
            num_codes: approximate number of codes to train on; infinity if unknown.

        Returns:
            A `Config`, and fields of `TrainingConfig` by name (crop_frames, batch_size, learning_rate, ...).
        """
        return cls.Config(), cls.training_defaults[spec.signal]

    @classmethod
    def for_crops(cls, config: Any, num_steps: int) -> Any:
        """Adapt default settings to training crops of `num_steps` steps (after the pattern)."""
        return config

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Process a chunk of steps.

        Args:
            x: (B, S, D), S >= 1.
            state: the state after the steps before x; None at the beginning. Its tensors may be overwritten.

        Returns:
            y (B, S, D), and the state after x.
        """
        raise NotImplementedError

    def parts(self) -> Sequence[nn.Module]:
        """Return the modules that `forward` calls one after another, if they are alike and hold most of the weights.

        Training compiles each of them by itself, and with several processes may put one at a time together.
        """
        return ()


#: Maximum numbers in the state of one item: 1 GiB in fp32. Weights of valid shapes do not limit it.
MAX_STATE_SIZE = 2**28
#: Upper bounds that catch typos and untrusted configs that would exhaust memory or take hours to build.
MAX_LAYERS, MAX_SETTING = 1024, 2**20


def check_sizes(config: Any) -> None:
    """Check every integer setting of a Config; meant for its __post_init__.

    Raises:
        ConfigError: a setting is below 1 or too large; names it.
    """
    for field in dataclasses.fields(config):
        value, most = getattr(config, field.name), MAX_LAYERS if field.name == "num_layers" else MAX_SETTING
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if value < 1:
            raise ConfigError(f"backbone.{field.name}: must be 1 or more, got {value}")
        if value > most:
            raise ConfigError(f"backbone.{field.name}: must be {most} or less, got {value}")


def check_state(size: int, what: str) -> None:
    """Check the size of the state.

    Args:
        size: numbers in the state of one item.
        what: the settings that determine it, for the message.

    Raises:
        ConfigError: the size exceeds MAX_STATE_SIZE.
    """
    if size > MAX_STATE_SIZE:
        raise ConfigError(
            f"{what}: the state of one item would hold {size:,} numbers, more than the limit of {MAX_STATE_SIZE:,}; "
            "choose smaller values"
        )
