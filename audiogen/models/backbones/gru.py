"""GRU: a stack of gated recurrent layers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Backbone, check_sizes, check_state


class GRU(Backbone):
    """Gated recurrent layers, whose state can remember any number of steps.

    The output of the last layer is added to the input of the first.

    Source: Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder, section 2.3; Karpathy, makemore
    part 2 and its `RNN` and `GRU` models. A step depends on all steps before it, so the receptive field is infinite.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            dim: D, width of the hidden and of each layer's state.
            num_layers: layers, each on top of the previous one.
        """

        dim: int = 256
        num_layers: int = 2

        def __post_init__(self):
            check_sizes(self)
            check_state(self.num_layers * self.dim, "backbone.num_layers, dim")

    receptive_field = math.inf

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.dim = config, config.dim
        self.layers = nn.GRU(config.dim, config.dim, config.num_layers, batch_first=True)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # torch's state is (num_layers, B, D); states of all backbones begin with the batch dimension.
        y, h = self.layers(x, None if state is None else state.transpose(0, 1).contiguous())  # y is (B, S, D)
        return x + y, h.detach().transpose(0, 1).clone(memory_format=torch.contiguous_format)
