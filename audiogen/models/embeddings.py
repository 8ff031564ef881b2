"""Embeddings: what a front-end makes -> hidden (B, S, D)."""

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..spec import FrameSpec, TokenSpec


class CodeEmbedding(nn.Module):
    """The sum of one vector a row: (B, K, S) int64 in [0, V], V being the hole -> (B, S, D)."""

    def __init__(self, spec: TokenSpec, dim: int):
        super().__init__()
        self.hole = spec.codebook_size
        rows = spec.codebook_size + 1
        self.table = nn.Embedding(spec.num_codebooks * rows, dim)
        nn.init.normal_(self.table.weight, std=1 / math.sqrt(spec.num_codebooks))
        self.register_buffer("offsets", torch.arange(spec.num_codebooks)[:, None] * rows, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x + self.offsets).sum(dim=1)

    def is_hole(self, x: Tensor) -> Tensor:
        """(B, K, S) -> (B, K, S) bool."""
        return x == self.hole

    def check(self, x: Tensor) -> None:
        """Raises a ConfigError unless all of a prompt is codes: one too large would embed as another row's."""
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.hole:
            raise ConfigError(f"prompt: codes must be from 0 to {self.hole - 1}, got {int(x.min())} to {int(x.max())}")

    def empty(self, batch_size: int) -> Tensor:
        """Items of no steps yet, (B, K, 0)."""
        return self.offsets.new_empty(batch_size, len(self.offsets), 0)


class FrameEmbedding(nn.Module):
    """One linear layer over the features: (B, F, S) -> (B, S, D)."""

    hole = math.nan

    def __init__(self, spec: FrameSpec, dim: int):
        super().__init__()
        self.linear = nn.Linear(spec.num_features, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.nan_to_num(0.0).to(self.linear.weight.dtype).transpose(1, 2))

    def is_hole(self, x: Tensor) -> Tensor:
        """(B, F, S) -> (B, 1, S) bool."""
        return x.isnan().any(dim=1, keepdim=True)

    def check(self, x: Tensor) -> None:
        """Raises a ConfigError unless all of a prompt is numbers: NaN would be taken for a hole."""
        if not x.isfinite().all():
            raise ConfigError("prompt: frames must be finite, got NaN or infinity")

    def empty(self, batch_size: int) -> Tensor:
        """Items of no steps yet, (B, F, 0)."""
        return self.linear.weight.new_empty(batch_size, self.linear.in_features, 0)
