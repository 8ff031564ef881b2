"""Embeddings: codes or frames -> hidden (B, S, D)."""

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..spec import FrameSpec, TokenSpec


class CodeEmbedding(nn.Module):
    """Sum one learned vector per row: (B, K, S) int64 in [0, V], V being the hole -> (B, S, D)."""

    offsets: Tensor

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
        """Return which codes (B, K, S) are holes: (B, K, S) bool."""
        return x == self.hole

    def check(self, x: Tensor) -> None:
        """Check the codes of a prompt, since a code that is too large would look up the vector of another row.

        Raises:
            ConfigError: a code is outside [0, V).
        """
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.hole:
            raise ConfigError(f"prompt: codes must be from 0 to {self.hole - 1}, got {int(x.min())} to {int(x.max())}")

    def empty(self, batch_size: int) -> Tensor:
        """Return items without steps: (B, K, 0)."""
        return self.offsets.new_empty(batch_size, len(self.offsets), 0)


class FrameEmbedding(nn.Module):
    """Apply one linear layer to the features: (B, F, S) -> (B, S, D); a hole (NaN) embeds as a frame of zeros."""

    hole = math.nan

    def __init__(self, spec: FrameSpec, dim: int):
        super().__init__()
        self.linear = nn.Linear(spec.num_features, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.nan_to_num(0.0).to(self.linear.weight.dtype).transpose(1, 2))

    def leading_bands(self, weights: dict[str, Tensor], num_features: int) -> dict[str, Tensor]:
        """Return the weights of an embedding that sees only the first `num_features` values; the others count as 0."""
        return {"linear.weight": weights["linear.weight"][:, :num_features], "linear.bias": weights["linear.bias"]}

    def is_hole(self, x: Tensor) -> Tensor:
        """Return which frames (B, F, S) are holes: (B, 1, S) bool."""
        return x.isnan().any(dim=1, keepdim=True)

    def check(self, x: Tensor) -> None:
        """Check the frames of a prompt, since NaN would be taken for a hole.

        Raises:
            ConfigError: a value is not finite.
        """
        if not x.isfinite().all():
            raise ConfigError("prompt: frames must be finite, got NaN or infinity")

    def empty(self, batch_size: int) -> Tensor:
        """Return items without steps: (B, F, 0)."""
        return self.linear.weight.new_empty(batch_size, self.linear.in_features, 0)
