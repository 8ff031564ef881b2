"""The contract of a backbone."""

from typing import Any

from torch import Tensor, nn


class Backbone(nn.Module):
    """Hidden (B, S, D) -> hidden (B, S, D) for any S >= 1, causal; made by `__init__(config)` from its nested Config.

    Whole equals any chunking: `forward(x, state)` goes on from the state that the last call gave, and consumes it.
    The state is a tree of tensors of fixed shape, so that a step costs the same however far it has gone.
    """

    dim: int                    # D
    receptive_field: int        # steps that y[:, t] depends on, step t included

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        raise NotImplementedError
