"""The own codec's encoder and decoder: causal convolutions from samples to frames and back, streaming like a backbone.

Everything is made of the backbones' `CausalConv` over (B, S, D). Strides are reshapes:

    down by s   (B, S, D) -> (B, S / s, s D), then a convolution over 2 steps:  kernel 2 s, stride s
    up by s     a convolution over 2 steps to s D', then (B, S, s D') -> (B, S s, D'):  its transpose

so that a frame is made of its own samples and of earlier ones, is heard from its first sample on, and nothing waits for
a later frame. State goes in and comes out as in layers.py, which it is made of.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ..layers import CausalConv

State = list[Any]
BOUND = 4.0  # of the encoder's output before it is squeezed to (-1, 1): about its standard deviation at the start
DILATIONS = (1, 3, 9)  # of the residual units between two strides


class ResidualUnit(nn.Module):
    """x + convolution of x over 3 steps, `dilation` apart: (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, dilation: int):
        super().__init__()
        self.conv = CausalConv(dim, dim // 2, kernel_size=3, dilation=dilation)
        self.out = nn.Linear(dim // 2, dim)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.conv(F.elu(x), state)
        return x + self.out(F.elu(y)), state


class Down(nn.Module):
    """(B, S, D) -> (B, S / stride, D'): step t sees inputs (t - 1) stride up to (t + 1) stride - 1."""

    def __init__(self, dim_in: int, dim_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = CausalConv(stride * dim_in, dim_out, kernel_size=2)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        B, S, D = x.shape
        return self.conv(x.reshape(B, S // self.stride, self.stride * D), state)


class Up(nn.Module):
    """(B, S, D) -> (B, S stride, D'): step n sees inputs n // stride and the one before it."""

    def __init__(self, dim_in: int, dim_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = CausalConv(dim_in, stride * dim_out, kernel_size=2)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.conv(x, state)
        return y.reshape(y.shape[0], y.shape[1] * self.stride, -1), state


class Network(nn.Module):
    """Layers one after the other, each of forward(x, state=None) -> (y, state)."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # What follows an ELU keeps its variance; torch's default loses two thirds a layer.
                nn.init.normal_(module.weight, std=1.2 / math.sqrt(module.in_features))
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualUnit):
                with torch.no_grad():
                    module.out.weight *= 0.3  # near to the identity at first

    def run(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """(B, S, D) -> (B, S', D')."""
        states = []
        for layer, before in zip(self.layers, state or [None] * len(self.layers), strict=True):
            x, after = layer(x, before)
            states.append(after)
        return x, states


class Encoder(Network):
    """Wav (B, 1, T hop_length) -> (B, dim, T); hop_length is the product of the strides.

    The first layer alone works on samples: a learned lapped transform, whose stride may be long. (Channels at full
    rate, as in SEANet, cost most of the time and, in the hours that a CPU has, gain nothing.) What leaves is bounded: a
    few loud frames far out would each take a codeword, and the many others would share the rest.

    Source: SEANet as in EnCodec (Défossez et al. 2022), without its LSTM.
    """

    def __init__(self, channels: int, strides: Sequence[int], dim: int):
        layers: list[nn.Module] = [Down(1, channels, strides[0]), *_units(channels)]
        for stride in strides[1:]:
            layers += [_Elu(Down(channels, 2 * channels, stride)), *_units(2 * channels)]
            channels *= 2
        super().__init__([*layers, _Elu(CausalConv(channels, dim, kernel_size=3))])

    def forward(self, wav: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, state = self.run(wav.transpose(1, 2), state)
        return torch.tanh(y / BOUND).transpose(1, 2), state


class Decoder(Network):
    """(B, dim, T) -> wav (B, 1, T hop_length): the encoder in a mirror."""

    def __init__(self, channels: int, strides: Sequence[int], dim: int):
        channels *= 2 ** (len(strides) - 1)
        layers: list[nn.Module] = [CausalConv(dim, channels, kernel_size=3), *_units(channels)]
        for stride in reversed(strides[1:]):
            layers += [_Elu(Up(channels, channels // 2, stride)), *_units(channels // 2)]
            channels //= 2
        last = Up(channels, 1, strides[0])
        super().__init__([*layers, _Elu(last)])
        with torch.no_grad():
            last.conv.linear.weight *= 0.1  # quiet at first, so that the phases need not be unlearned

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, state = self.run(x.transpose(1, 2), state)
        return y.transpose(1, 2), state


class _Elu(nn.Module):
    """A layer behind an ELU."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.layer(F.elu(x), state)


def _units(dim: int) -> list[nn.Module]:
    return [ResidualUnit(dim, dilation) for dilation in DILATIONS]


def add_weight_norm(network: nn.Module) -> None:
    """For training: each row of each weight as a length and a direction (Salimans and Kingma 2016)."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            weight_norm(module)


@torch.no_grad()
def fold_weight_norm(network: nn.Module, plain: nn.Module) -> None:
    """Writes a trained network's weights as they multiply into one of the same shape without weight norm."""
    mine, theirs = ([m for m in side.modules() if isinstance(m, nn.Linear)] for side in (network, plain))
    for source, target in zip(mine, theirs, strict=True):
        target.weight.copy_(source.weight)
        target.bias.copy_(source.bias)
