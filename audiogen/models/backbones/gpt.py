"""GPT: a decoder-only transformer with rotary position embeddings and sliding-window attention."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import ConfigError
from ...spec import Spec
from ..layers import CausalAttention, CrossAttention, LayerState, Memory
from .base import Backbone, check_sizes, check_state

#: Below this many codes, the larger model overfits before it generalises. On 16 unlike clips of music (22,500 codes) it
#: was best after 13 steps, at 8.43 bits, worse than a uniform guess; the smaller model after 88, at 7.75. With 18
#: minutes of spoken digits (66,000 codes) the larger one learns.
FEW_CODES = 50_000


class GPT(Backbone):
    """A decoder-only transformer: attention over a window of the last steps, with rotary positions.

    Each block adds the output of a pre-norm attention and of a pre-norm feed-forward layer to the residual stream.

    Source: Radford et al. 2019, GPT-2, section 2.3 (pre-norm; residual layers initialised by 1 / sqrt(their number));
    Su et al. 2021 (rotary positions); Beltagy et al. 2020, Longformer, section 3.1 (sliding window). Because each layer
    attends to at most `window` steps, the model keeps working beyond the length it was trained on.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            dim: D, width of the residual stream; a multiple of 2 num_heads.
            num_layers: blocks of attention and feed-forward.
            num_heads: attention heads per layer.
            window: steps that one layer attends to, including the current one.
            dropout: probability at the input and at the outputs of attention and feed-forward, from 0 to below 1.
            cross_attention: whether each block also attends to the bytes of the run's text, which otherwise enters as
                one vector per frame. Such a model runs in the plain loop only.
            recompute: in training, keep only what enters each block, and compute what happens in it again in the
                backward pass (activation checkpointing). A fraction of the memory, a third more time, the same result.
        """

        dim: int = 256
        num_layers: int = 6
        num_heads: int = 4
        window: int = 256
        dropout: float = 0.0
        cross_attention: bool = False
        recompute: bool = False

        def __post_init__(self):
            check_sizes(self)
            check_state(2 * self.num_layers * self.window * self.dim, "backbone.window, num_layers, dim")
            if not 0 <= self.dropout < 1:
                raise ConfigError(f"backbone.dropout: must be from 0 to below 1, got {self.dropout}")

    training_defaults = {
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
            # It takes twice as many steps per minute as the larger one, and each step lowers the loss as much.
            config = cls.Config(dim=128, num_layers=3, dropout=0.1)
        else:
            config = cls.Config(dim=192, num_layers=4, dropout=0.1)
        return config, cls.training_defaults[spec.signal]

    @classmethod
    def for_crops(cls, config: Config, num_steps: int) -> Config:
        """Set the window to half a crop, so that half of the steps have a window that lies within the crop."""
        return replace(config, window=max(1, num_steps // 2))

    def __init__(self, config: Config):
        super().__init__()
        if config.dim % (2 * config.num_heads):
            raise ConfigError(
                f"backbone.dim: {config.dim} must be a multiple of twice backbone.num_heads "
                f"({config.num_heads}), since rotary positions rotate pairs of dimensions"
            )
        self.config, self.dim = config, config.dim
        self.receptive_field = 1 + config.num_layers * (config.window - 1)
        self.dropout = nn.Dropout(config.dropout)
        blocks = [Block(config) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.dim)
        self.apply(_initialise)
        for block in blocks:
            for linear in (block.attention.out, block.down):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * config.num_layers))
            if block.cross_attention is not None:
                nn.init.zeros_(block.cross_attention.out.weight)

    def forward(
        self, x: Tensor, state: list[LayerState] | None = None, memory: Memory | None = None
    ) -> tuple[Tensor, list[LayerState]]:
        x, states = self.dropout(x), []
        for layer, block in enumerate(self.blocks):
            x, layer_state = block(x, None if state is None else state[layer], memory, layer)
            states.append(layer_state)
        return self.norm(x), states

    def parts(self) -> list[nn.Module]:
        return list(self.blocks)


class Block(nn.Module):
    """One pre-norm transformer block: (B, S, D) -> (B, S, D)."""

    def __init__(self, config: GPT.Config):
        super().__init__()
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention = CausalAttention(config.dim, config.num_heads, config.window)
        self.up, self.down = nn.Linear(config.dim, 4 * config.dim), nn.Linear(4 * config.dim, config.dim)
        self.dropout, self.gelu = nn.Dropout(config.dropout), nn.GELU(approximate="tanh")
        self.cross_attention, self.recompute = None, config.recompute
        if config.cross_attention:
            self.norm_cross = nn.LayerNorm(config.dim)
            self.cross_attention = CrossAttention(config.dim, config.num_heads)

    def forward(
        self, x: Tensor, state: LayerState | None = None, memory: Memory | None = None, layer: int = 0
    ) -> tuple[Tensor, LayerState]:
        """Process a chunk (B, S, D); see `Backbone.forward`."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._forward, x, state, memory, layer, use_reentrant=False)  # pyright: ignore
        return self._forward(x, state, memory, layer)

    def _forward(
        self, x: Tensor, state: LayerState | None, memory: Memory | None, layer: int
    ) -> tuple[Tensor, LayerState]:
        y, next_state = self.attention(self.norm_attention(x), state)
        x = x + self.dropout(y)
        if self.cross_attention is not None and memory is not None:
            x = x + self.dropout(self.cross_attention(self.norm_cross(x), memory, layer))
        x = x + self.dropout(self.down(self.gelu(self.up(self.norm_feed_forward(x)))))
        return x, next_state


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
