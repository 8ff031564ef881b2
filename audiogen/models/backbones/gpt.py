"""GPT: a decoder-only transformer with rotary positions and an attention window."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ...errors import ConfigError
from ...spec import Spec
from ..layers import CausalAttention, LayerState
from .base import Backbone, check_sizes, check_state

#: Below this many codes the larger model overfits before it has learned what they have in common. On 16 unlike clips of
#: music, 22,500 codes, it was best after 13 steps, at 8.43 bits, worse than a blind guess; the smaller model after 88,
#: at 7.75. From 18 minutes of spoken digits, 66,000 codes, the larger one learns.
FEW_CODES = 50_000


class GPT(Backbone):
    """A decoder-only transformer: attention over a window of the last steps, with rotary positions.

    Pre-norm blocks of attention and a feed-forward layer are each added to the residual stream.

    Source: Radford et al. 2019, GPT-2, section 2.3 (pre-norm, residual layers scaled by 1 / sqrt(number of them));
    Su et al. 2021 (rotary positions); Beltagy et al. 2020, Longformer, section 3.1 (sliding window). Attention always
    has a window: each layer sees `window` steps, so that the model stays sound past the length it was trained on.
    """

    @dataclass(frozen=True)
    class Config:
        dim: int = 256
        num_layers: int = 6
        num_heads: int = 4
        window: int = 256  # steps that one layer sees, the present one included
        dropout: float = 0.0

        def __post_init__(self):
            check_sizes(self)
            check_state(2 * self.num_layers * self.window * self.dim, "backbone.window, num_layers, dim")
            if not 0 <= self.dropout < 1:
                raise ConfigError(f"backbone.dropout: must be from 0 to below 1, got {self.dropout}")

    training = {
        "samples": {"crop_frames": 512, "batch_size": 8, "learning_rate": 2e-3, "weight_decay": 0.1},
        "frames": {"crop_frames": 256, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.1},
        "runs": {"crop_frames": 256, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.1},
        "features": {"crop_frames": 256, "batch_size": 4, "learning_rate": 3e-3, "weight_decay": 0.1},
    }

    @classmethod
    def defaults(cls, spec: Spec, num_codes: float = math.inf) -> tuple[Config, dict[str, Any]]:
        if spec.signal == "samples":
            config = cls.Config(dim=128, num_layers=4)
        elif spec.signal == "frames" and num_codes < FEW_CODES:
            config = cls.Config(dim=96, num_layers=2, dropout=0.3)
        elif spec.signal == "features" and num_codes < FEW_CODES:
            # In the same minutes it makes twice the steps of the larger one, and each gets as far.
            config = cls.Config(dim=128, num_layers=3, dropout=0.1)
        else:
            config = cls.Config(dim=192, num_layers=4, dropout=0.1)
        return config, cls.training[spec.signal]

    @classmethod
    def for_crops(cls, config: Config, num_steps: int) -> Config:
        """Half a crop as the window: the other half teaches steps whose window does not reach the beginning."""
        return replace(config, window=max(1, num_steps // 2))

    def __init__(self, config: Config):
        super().__init__()
        if config.dim % (2 * config.num_heads):
            raise ConfigError(
                f"backbone.dim: {config.dim} must be a multiple of twice backbone.num_heads "
                f"({config.num_heads}), since rotary positions turn pairs"
            )
        self.config, self.dim = config, config.dim
        self.receptive_field = 1 + config.num_layers * (config.window - 1)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.apply(_initialise)
        for block in self.blocks:
            for linear in (block.attention.out, block.down):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * config.num_layers))

    def forward(self, x: Tensor, state: list[LayerState] | None = None) -> tuple[Tensor, list[LayerState]]:
        x, states = self.dropout(x), []
        for layer, block in enumerate(self.blocks):
            x, layer_state = block(x, None if state is None else state[layer])
            states.append(layer_state)
        return self.norm(x), states


class Block(nn.Module):
    def __init__(self, config: GPT.Config):
        super().__init__()
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention = CausalAttention(config.dim, config.num_heads, config.window, config.dropout)
        self.up, self.down = nn.Linear(config.dim, 4 * config.dim), nn.Linear(4 * config.dim, config.dim)
        self.dropout, self.gelu = nn.Dropout(config.dropout), nn.GELU(approximate="tanh")

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        y, state = self.attention(self.norm_attention(x), state)
        x = x + self.dropout(y)
        x = x + self.dropout(self.down(self.gelu(self.up(self.norm_feed_forward(x)))))
        return x, state


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
