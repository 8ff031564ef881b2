"""The bigram: the next code from the present one alone."""

from dataclasses import dataclass

from torch import Tensor

from .base import Backbone, check_sizes


class Bigram(Backbone):
    """The identity. Embedding times head is then the whole table of transitions wherever dim >= codebook_size.

    Source: Karpathy, makemore part 1, where the same table is one linear layer over one-hot inputs.
    """

    @dataclass(frozen=True)
    class Config:
        dim: int = 256

        def __post_init__(self):
            check_sizes(self)

    receptive_field = 1

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.dim = config, config.dim

    def forward(self, x: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        return x, {}
