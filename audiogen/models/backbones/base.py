"""The contract of a backbone."""

import dataclasses
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError


class Backbone(nn.Module):
    """Hidden (B, S, D) -> hidden (B, S, D) for any S >= 1, causal; made by `__init__(config)` from its nested Config.

    Whole equals any chunking: `forward(x, state)` goes on from the state that the last call gave, and consumes it.
    The state is a tree of tensors of fixed shape, so that a step costs the same however far it has gone.
    """

    dim: int  # D
    receptive_field: int  # steps that y[:, t] depends on, step t included

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
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
