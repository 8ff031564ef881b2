"""A multi-layer perceptron over a fixed context of steps."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..layers import CausalConv
from .base import Backbone, check_sizes


class MLP(Backbone):
    """The last `context` steps side by side, through hidden layers with tanh.

    Source: Bengio et al. 2003, A Neural Probabilistic Language Model, section 2; Karpathy, makemore part 2.
    Seen over all steps at once, the first layer is a causal convolution of kernel size `context`.
    """

    @dataclass(frozen=True)
    class Config:
        dim: int = 64
        context: int = 16
        hidden_dim: int = 512
        num_layers: int = 1     # hidden layers

        def __post_init__(self):
            check_sizes(self)

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.dim, self.receptive_field = config, config.dim, config.context
        self.first = CausalConv(config.dim, config.hidden_dim, config.context)
        self.hidden = nn.ModuleList(nn.Linear(config.hidden_dim, config.hidden_dim)
                                    for _ in range(config.num_layers - 1))
        self.last = nn.Linear(config.hidden_dim, config.dim)

    def forward(self, x: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        x, state = self.first(x, state)                     # (B, S, hidden_dim)
        x = x.tanh()
        for linear in self.hidden:
            x = linear(x).tanh()
        return self.last(x), state                          # (B, S, D)
