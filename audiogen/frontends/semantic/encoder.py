"""A transformer over frames, in which each layer attends to a window around the frame."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.layers import rotary, rotate

NEIGHBOURS = 1  # frames on each side that the first layer sees beside the frame itself


class Encoder(nn.Module):
    """Frames (B, T, F) -> hidden vectors (B, T, D), each of which depends on `reach` frames on either side.

    From each frame, the mean of the frames around it is subtracted first, over as many as the layers see. This removes
    the channel and part of the voice.

    Source: HuBERT (Hsu et al. 2021), with rotary positions in place of its convolution, and attention to a window, so
    that a recording of any length is encoded in bounded memory.
    """

    def __init__(self, num_features: int, dim: int, num_layers: int, num_heads: int, window: int):
        super().__init__()
        self.dim, self.window, self.head_dim = dim, window, dim // num_heads
        self.around = num_layers * window
        self.reach = self.around + NEIGHBOURS + num_layers * window
        self.mask_vector = nn.Parameter(torch.zeros(num_features))
        self.enter = nn.Linear((1 + 2 * NEIGHBOURS) * num_features, dim)
        self.layers = nn.ModuleList([Layer(dim, num_heads) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, masked: Tensor | None = None, piece: Tensor | None = None) -> Tensor:
        """Return the hidden vectors.

        Args:
            x: (B, T, F).
            masked: (B, T) bool, frames to hide.
            piece: (B, T) int64; frames see only those of the same piece.
        """
        t = torch.arange(x.shape[1], device=x.device)
        apart = (t[:, None] - t).abs()[None]  # (1, T, T)
        around, seen = apart <= self.around, apart <= self.window
        if piece is not None:
            same = piece[:, :, None] == piece[:, None]
            around, seen = around & same, seen & same
        if masked is not None:
            around = around & ~masked[:, None]
        around = around.to(x.dtype)
        x = x - (around / around.sum(2, keepdim=True).clamp_min(1)) @ x
        if masked is not None:
            x = torch.where(masked[..., None], self.mask_vector.to(x.dtype), x)
        beside = [F.pad(x, (0, 0, NEIGHBOURS, NEIGHBOURS))[:, k : k + len(t)] for k in range(1 + 2 * NEIGHBOURS)]
        if piece is not None:
            own = F.pad(piece, (NEIGHBOURS, NEIGHBOURS), value=-1)
            beside = [
                torch.where((own[:, k : k + len(t)] == piece)[..., None], part, 0) for k, part in enumerate(beside)
            ]
        x = self.enter(torch.cat(beside, 2))
        angles = rotary(t, self.head_dim)
        for layer in self.layers:
            x = layer(x, seen[:, None], angles)
        return self.norm(x)


class Layer(nn.Module):
    """A pre-norm transformer layer: (B, T, D) -> (B, T, D).

    Attention is written out, because with a mask it trains several times as fast on a CPU as PyTorch's fused one.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, seen: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Attend where `seen` (B or 1, 1, T, T) is true."""
        B, T, _ = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q / math.sqrt(q.shape[-1]), *angles), rotate(k, *angles)
        scores = (q @ k.transpose(2, 3)).masked_fill(~seen, -math.inf)  # (B, H, T, T)
        y = scores.softmax(-1).to(v.dtype) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norm_feed_forward(x))))
