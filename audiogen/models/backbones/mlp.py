"""A multi-layer perceptron over a fixed context of steps."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...spec import Spec
from ..layers import CausalConv, LayerState
from .base import Backbone, check_sizes, check_state


class MLP(Backbone):
    """The last `context` steps, concatenated and passed through hidden layers with tanh.

    Source: Bengio et al. 2003, A Neural Probabilistic Language Model, section 2; Karpathy, makemore part 2.
    Computed for all steps at once, the first layer is a causal convolution of kernel size `context`.

    With `batch_norm`, each hidden layer is normalised before tanh (Ioffe and Szegedy 2015, Batch Normalization,
    section 3). Training uses the mean and variance of the batch, over items and steps, so a step also depends on later
    ones; evaluation uses running statistics, so held-out scores do not depend on the future.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            dim: D, width of the embedding of a step.
            context: steps that the first layer sees, including the current one.
            hidden_dim: width of the hidden layers.
            num_layers: hidden layers.
            batch_norm: normalise each hidden layer over the batch.
        """

        dim: int = 64
        context: int = 16
        hidden_dim: int = 512
        num_layers: int = 1
        batch_norm: bool = False

        def __post_init__(self):
            check_sizes(self)
            check_state(self.context * self.dim, "backbone.context, dim")

    @classmethod
    def defaults(cls, spec: Spec, num_codes: float = math.inf) -> tuple[Config, dict[str, Any]]:
        config = {
            "samples": cls.Config(dim=32, context=32, hidden_dim=384, num_layers=2),
            "frames": cls.Config(dim=64, context=8, hidden_dim=512),
            "runs": cls.Config(dim=64, context=8, hidden_dim=512),
            "features": cls.Config(dim=128, context=8, hidden_dim=512),
        }[spec.signal]
        return config, cls.training_defaults[spec.signal]

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.dim, self.receptive_field = config, config.dim, config.context
        self.first = CausalConv(config.dim, config.hidden_dim, config.context)
        self.hidden = nn.ModuleList(
            nn.Linear(config.hidden_dim, config.hidden_dim) for _ in range(config.num_layers - 1)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(config.hidden_dim) for _ in range(config.num_layers) if config.batch_norm
        )
        self.last = nn.Linear(config.hidden_dim, config.dim)

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        x, next_state = self.first(x, state)  # (B, S, hidden_dim)
        x = self._activated(x, 0)
        for layer, linear in enumerate(self.hidden, 1):
            x = self._activated(linear(x), layer)
        return self.last(x), next_state  # (B, S, D)

    def _activated(self, x: Tensor, layer: int) -> Tensor:
        if self.config.batch_norm:
            x = self.norms[layer](x.flatten(0, 1)).view_as(x)
        return x.tanh()
