"""The own codec's encoder and decoder: causal convolutions from samples to frames and back."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv1d(nn.Conv1d):
    """(B, C, N) -> (B, C', N / stride); output t sees inputs up to (t + 1) * stride - 1, zeros before the start."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation=dilation)
        _keep_variance(self, in_channels * kernel_size)

    @property
    def past(self) -> int:
        """How many inputs before its own stride an output sees."""
        return (self.kernel_size[0] - 1) * self.dilation[0] + 1 - self.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        # kernel_size 4, stride 2:   0  0  x0 x1 x2 x3
        #                            `---y0----'
        #                                  `---y1----'
        return super().forward(F.pad(x, (self.past, 0)))


class CausalUpsample1d(nn.ConvTranspose1d):
    """(B, C, T) -> (B, C', T * stride), kernel of 2 strides; output n sees input n // stride and the one before it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__(in_channels, out_channels, 2 * stride, stride)
        _keep_variance(self, in_channels * 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., : -self.stride[0]]  # what reaches beyond the last frame belongs to the next


class ResidualUnit(nn.Module):
    """x + convolution of x over 3 steps, `dilation` apart: (B, C, N) -> (B, C, N)."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ELU(),
            CausalConv1d(channels, channels // 2, 3, dilation=dilation),
            nn.ELU(),
            CausalConv1d(channels // 2, channels, 1),
        )
        with torch.no_grad():
            self.layers[-1].weight *= 0.3  # near to the identity at first

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Encoder(nn.Sequential):
    """Wav (B, 1, T * hop_length) -> (B, dim, T); hop_length is the product of the strides.

    The first layer alone works on samples: a learned lapped transform, whose stride may be long. (Channels at full
    rate, as in SEANet, cost most of the time and, in the minutes that a fit takes, gain nothing.)

    Source: SEANet as in EnCodec (Défossez et al. 2022), without its LSTM.
    """

    upsamples: ClassVar[bool] = False

    def __init__(self, channels: int, strides: Sequence[int], dim: int):
        layers: list[nn.Module] = [CausalConv1d(1, channels, 2 * strides[0], strides[0])]
        layers += [ResidualUnit(channels, dilation=1), ResidualUnit(channels, dilation=3)]
        for stride in strides[1:]:
            layers += [nn.ELU(), CausalConv1d(channels, 2 * channels, 2 * stride, stride)]
            channels *= 2
            layers += [ResidualUnit(channels, dilation=1), ResidualUnit(channels, dilation=3)]
        layers += [nn.ELU(), CausalConv1d(channels, dim, 3)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """(B, dim, T) -> wav (B, 1, T * hop_length): the encoder in a mirror."""

    upsamples: ClassVar[bool] = True

    def __init__(self, channels: int, strides: Sequence[int], dim: int):
        channels *= 2 ** (len(strides) - 1)
        layers: list[nn.Module] = [CausalConv1d(dim, channels, 3)]
        layers += [ResidualUnit(channels, dilation=1), ResidualUnit(channels, dilation=3)]
        for stride in reversed(strides[1:]):
            layers += [nn.ELU(), CausalUpsample1d(channels, channels // 2, stride)]
            channels //= 2
            layers += [ResidualUnit(channels, dilation=1), ResidualUnit(channels, dilation=3)]
        layers += [nn.ELU(), CausalUpsample1d(channels, 1, strides[0])]
        with torch.no_grad():
            layers[-1].weight *= 0.1  # quiet at first, so that the phases need not be unlearned
        super().__init__(*layers)


def context_frames(network: Encoder | Decoder, hop_length: int) -> int:
    """How many frames before its own an output sees at most."""
    past, rate = 0.0, 1.0 if network.upsamples else float(hop_length)  # in frames; steps per frame at this depth
    for layer in network.modules():
        if isinstance(layer, CausalConv1d):
            past += layer.past / rate
            rate /= layer.stride[0]
        elif isinstance(layer, CausalUpsample1d):
            past += 1 / rate
            rate *= layer.stride[0]
    return math.ceil(past)


def blockwise(network: Encoder | Decoder, x: Tensor, hop_length: int, block_frames: int) -> Tensor:
    """network(x) in blocks of frames from the start, each with the past that it sees: beyond its result, memory
    does not grow with x.

    Args:
        network: an Encoder for wav (B, 1, T * hop_length), or a Decoder for (B, dim, T).
    """
    into, out = (1, hop_length) if network.upsamples else (hop_length, 1)  # steps per frame
    context = context_frames(network, hop_length)
    blocks = []
    for start in range(0, x.shape[-1] // into, block_frames):
        first = max(0, start - context)
        y = network(x[..., first * into : (start + block_frames) * into])
        blocks.append(y[..., (start - first) * out :])
    return torch.cat(blocks, dim=-1)


def _keep_variance(layer: nn.Conv1d | nn.ConvTranspose1d, fan_in: int) -> None:
    """Starts a layer so that what follows an ELU keeps its variance; torch's default loses two thirds a layer."""
    nn.init.normal_(layer.weight, std=1.2 / math.sqrt(fan_in))
    nn.init.zeros_(layer.bias)
