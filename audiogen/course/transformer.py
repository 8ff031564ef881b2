"""A transformer made of attention.py whose parts can be left out, to see what each of them contributes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.embeddings import FrameEmbedding
from ..models.layers import rotary, rotate
from ..spec import FrameSpec
from .attention import attend, causal_mask, merge_heads, split_heads


class Attention(nn.Module):
    """Multi-head attention: queries from x (B, S, D), keys and values from `source` (B, T, D) -> (B, S, D).

    It is self-attention if `source` is x, otherwise cross-attention.

    Args:
        dim: D.
        num_heads: H.
        turned: apply rotary positions to queries and keys.
    """

    def __init__(self, dim: int, num_heads: int, turned: bool = True):
        super().__init__()
        self.num_heads, self.turned = num_heads, turned
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend to `source`.

        Args:
            x: (B, S, D).
            source: (B, T, D).
            mask: bool, broadcastable to (B, H, S, T), whether a query may attend to a key; None for all.
        """
        return self.out(merge_heads(attend(*self.heads(x, source), mask)))

    def heads(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, S, D / H), keys and values (B, H, T, D / H)."""
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q, k, v = (
            split_heads(F.linear(y, weight, bias), self.num_heads)
            for y, weight, bias in zip((x, source, source), weights, biases, strict=True)
        )
        if self.turned:
            q, k = (rotate(y, *rotary(torch.arange(y.shape[2], device=y.device), y.shape[3])) for y in (q, k))
        return q, k, v


class BatchNorm(nn.BatchNorm1d):
    """Normalise each feature over the steps of all items: (B, S, D) -> (B, S, D).

    In training, a step thus depends on later ones; evaluation uses running statistics.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, S, D)."""
        return super().forward(input.flatten(0, 1)).view_as(input)


class Block(nn.Module):
    """A pre-norm block: attention, then a feed-forward layer, each with a residual connection.

    Args:
        dim: D.
        num_heads: H.
        feed_forward: include the feed-forward layer.
        residual: add the input of each layer to its output.
        norm: class of the norms; nn.Identity for none.
        dropout: probability.
        turned: apply rotary positions.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feed_forward: bool,
        residual: bool,
        norm: type[nn.Module],
        dropout: float,
        turned: bool,
    ):
        super().__init__()
        self.residual, self.dropout, self.attention = residual, nn.Dropout(dropout), Attention(dim, num_heads, turned)
        self.norms = nn.ModuleList(norm(dim) for _ in range(1 + feed_forward))
        self.feed_forward = (
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
            if feed_forward
            else None
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Process (B, S, D) with a mask as in `Attention`."""
        y = self.norms[0](x)
        y = self.dropout(self.attention(y, y, mask))
        x = x + y if self.residual else y
        if self.feed_forward is None:
            return x
        y = self.dropout(self.feed_forward(self.norms[1](x)))
        return x + y if self.residual else y


class Transformer(nn.Module):
    """A stack of blocks, hidden (B, S, D) -> hidden (B, S, D), without a state: it always gets whole sequences.

    Args:
        dim: D.
        num_heads: H.
        num_layers: number of blocks.
        feed_forward: as in `Block`.
        residual: as in `Block`.
        norm: as in `Block`.
        dropout: as in `Block`.
        positions: "rotary"; "learned", a vector for each of `num_steps` positions; or "none".
        num_steps: maximum length with learned positions.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        feed_forward: bool = True,
        residual: bool = True,
        norm: type[nn.Module] = nn.LayerNorm,
        dropout: float = 0.0,
        positions: str = "rotary",
        num_steps: int = 64,
    ):
        super().__init__()
        self.dim, self.norm = dim, norm(dim)
        self.table = nn.Parameter(torch.randn(num_steps, dim)) if positions == "learned" else None
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, feed_forward, residual, norm, dropout, positions == "rotary")
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor, state: None = None, mask: Tensor | None = None) -> tuple[Tensor, None]:
        """Return (B, S, D) and None. The mask is as in `Attention`; None is causal, as for a language model."""
        mask = causal_mask(x.shape[1]).to(x.device) if mask is None else mask
        if self.table is not None:
            x = x + self.table[: x.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x), None


class Namer(nn.Module):
    """A classifier of clips: mel frames (B, F, T), padded with NaN -> logits (B, num_labels).

    Args:
        spec: spec of the frames.
        num_labels: number of classes.
        dim: D.
        num_heads: H.
        mixing: frames attend to all frames of their clip (an encoder); otherwise to themselves only.
        asking: a learned query per label attends to the frames (cross-attention); otherwise frames are averaged.
    """

    def __init__(self, spec: FrameSpec, num_labels: int, dim: int, num_heads: int, mixing: bool, asking: bool):
        super().__init__()
        self.mixing, self.embed = mixing, FrameEmbedding(spec, dim)
        self.encoder = Transformer(dim, num_heads, num_layers=2)
        self.queries = nn.Parameter(torch.randn(1, num_labels, dim)) if asking else None
        self.attention = Attention(dim, num_heads, turned=False) if asking else None
        self.head = nn.Linear(dim, 1 if asking else num_labels)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden (B, T, D), and a mask (B, 1, T) bool of frames that are not padding."""
        real = ~self.embed.is_hole(x)
        mask = real[:, None] if self.mixing else torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
        return self.encoder(self.embed(x), mask=mask)[0], real

    def forward(self, x: Tensor) -> Tensor:
        """Classify clips (B, F, T): logits (B, num_labels)."""
        h, real = self.encode(x)
        if self.queries is None or self.attention is None:
            return self.head((h * real.mT).sum(dim=1) / real.sum(dim=2))
        return self.head(self.attention(self.queries, h, real[:, None]))[..., 0]
