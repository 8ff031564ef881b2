"""The bigram: predict the next code from the current one alone."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...spec import Spec
from ..layers import LayerState
from .base import Backbone, check_sizes


class Bigram(Backbone):
    """A table of pairs: predicts the next code from the current one alone.

    The backbone is the identity: embedding times head is the full transition table if dim >= codebook_size.

    Source: Karpathy, makemore part 1, where the same table is one linear layer over one-hot inputs.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            dim: D, rank of the transition table.
        """

        dim: int = 256

        def __post_init__(self):
            check_sizes(self)

    receptive_field = 1
    training_defaults = {
        "samples": {"crop_frames": 4096, "batch_size": 16, "learning_rate": 1e-2, "weight_decay": 0.0},
        "frames": {"crop_frames": 256, "batch_size": 16, "learning_rate": 3e-3, "weight_decay": 0.1},
        "runs": {"crop_frames": 256, "batch_size": 16, "learning_rate": 3e-3, "weight_decay": 0.1},
        "features": {"crop_frames": 256, "batch_size": 16, "learning_rate": 1e-2, "weight_decay": 0.1},
    }

    @classmethod
    def defaults(cls, spec: Spec, num_codes: float = math.inf) -> tuple[Config, dict[str, Any]]:
        dim = {"samples": 256, "frames": 512, "runs": 1024, "features": 512}[spec.signal]
        return cls.Config(dim), cls.training_defaults[spec.signal]

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.dim = config, config.dim

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        return x, {}
