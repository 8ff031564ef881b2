"""The own codec's encoder and decoder: causal convolutions from samples to frames and back."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv1d(nn.Conv1d):
    """(B, C, N) -> (B, C', N / stride); output t sees inputs up to (t + 1) * stride - 1, zeros before the start."""

    def forward(self, x: Tensor) -> Tensor:
        # k = 4, stride = 2:   0 0 | x0 x1 x2 x3        k - stride zeros
        #                      `----y0---'
        #                          `----y1---'
        reach = (self.kernel_size[0] - 1) * self.dilation[0] + 1
        return super().forward(F.pad(x, (reach - self.stride[0], 0)))


class CausalUpsample1d(nn.ConvTranspose1d):
    """(B, C, T) -> (B, C', T * stride) with a kernel of 2 strides; output n sees inputs n // stride and the one before."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(in_channels, out_channels, 2 * stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : -self.stride[0]]  # what reaches beyond the last frame belongs to the next


class ResidualUnit(nn.Module):
    """x + convolution of x over `kernel_size` samples `dilation` apart: (B, C, N) -> (B, C, N)."""

    def __init__(self, channels: int, dilation: int, kernel_size: int = 3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ELU(),
            CausalConv1d(channels, channels // 2, kernel_size, dilation=dilation),
            nn.ELU(),
            CausalConv1d(channels // 2, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Encoder(nn.Sequential):
    """Wav (B, 1, T * hop_length) -> (B, dim, T), hop_length the product of the strides.

    Source: SEANet as in EnCodec (Defossez et al. 2022), without its LSTM.
    """

    def __init__(self, channels: int, strides: Sequence[int], dim: int):
        layers: list[nn.Module] = [CausalConv1d(1, channels, 7)]
        for stride in strides:
            layers += [
                ResidualUnit(channels, dilation=1),
                nn.ELU(),
                CausalConv1d(channels, 2 * channels, 2 * stride, stride=stride),
            ]
            channels *= 2
        layers += [ResidualUnit(channels, dilation=1), ResidualUnit(channels, dilation=3)]
        layers += [nn.ELU(), CausalConv1d(channels, dim, 3)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """(B, dim, T) -> wav (B, 1, T * hop_length): the encoder in a mirror."""

    def __init__(self, channels: int, strides: Sequence[int], dim: int):
        channels *= 2 ** len(strides)
        layers: list[nn.Module] = [CausalConv1d(dim, channels, 3)]
        layers += [ResidualUnit(channels, dilation=1), ResidualUnit(channels, dilation=3)]
        for stride in reversed(strides):
            layers += [
                nn.ELU(),
                CausalUpsample1d(channels, channels // 2, stride),
                ResidualUnit(channels // 2, dilation=1),
                ResidualUnit(channels // 2, dilation=3),
            ]
            channels //= 2
        layers += [nn.ELU(), CausalConv1d(channels, 1, 7)]
        super().__init__(*layers)


def context_frames(network: nn.Module, hop_length: int) -> int:
    """How many frames before the current one an Encoder or a Decoder sees at most."""
    past, upsampled = 0.0, isinstance(network, Decoder)
    rate = 1.0 if upsampled else float(hop_length)  # steps per frame, here
    for layer in network.modules():
        if isinstance(layer, CausalConv1d):
            past += ((layer.kernel_size[0] - 1) * layer.dilation[0] - (layer.stride[0] - 1)) / rate
            rate /= layer.stride[0]
        elif isinstance(layer, CausalUpsample1d):
            past += 1 / rate
            rate *= layer.stride[0]
    return math.ceil(past)


def blockwise(network: nn.Module, x: Tensor, hop_length: int, block_frames: int) -> Tensor:
    """network(x) in blocks of frames from the start, each with the past that it sees: memory does not grow with x.

    Args:
        x: an Encoder's wav (B, 1, T * hop_length) or a Decoder's (B, dim, T).
    """
    into, out = (1, hop_length) if isinstance(network, Decoder) else (hop_length, 1)  # steps per frame
    num_frames, context = x.shape[-1] // into, context_frames(network, hop_length)
    blocks = []
    for start in range(0, num_frames, block_frames):
        first = max(0, start - context)
        y = network(x[..., first * into : (start + block_frames) * into])
        blocks.append(y[..., (start - first) * out :])
    return torch.cat(blocks, dim=-1)
