"""EnCodec's encoder and decoder for inference: weight norm folded in, blocks that fit the cache, explicit state.

Layers work on (S, B, C), steps first: a convolution is then one matrix product per tap, on rows that are not copied.
Block by block they compute what the networks of the `encodec` package compute for a whole file, including the reflected
ends:

    whole file     reflected | x0 x1 ............................ | reflected, to a whole number of strides
    here           reflected | block 0 | block 1 | ... | the rest | reflected
                               each with the last steps of the previous block

Source: SEANet as in EnCodec (Défossez et al. 2022, section 3.1), the causal 24 kHz model; modules/seanet.py, conv.py
and lstm.py of the package. Weights keep the package's names.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIMENSION, NUM_FILTERS, STRIDES = 128, 32, (2, 4, 5, 8)
PIECE_FRAMES = 16  # at once in layers with many steps and few channels, so that activations stay in cache
START_FRAMES = 7  # minimum of the first block, to reflect the file's beginning, unless the file is shorter


class Conv(nn.Module):
    """A strided causal convolution, (S, B, C) -> (ceil(S / stride), B, C'); state: the last kernel - stride inputs."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride)
        conv.weight.data = _order(conv.weight.data, (2, 1, 0))  # memory layout: one matrix (C, C') per tap
        self.conv = nn.ModuleDict({"conv": conv})
        self.past = kernel_size - stride

    @property
    def layer(self) -> nn.Conv1d:
        """The layer of torch that holds the weights."""
        layer = self.conv["conv"]
        assert isinstance(layer, nn.Conv1d)
        return layer

    def forward(self, x: Tensor, state: Tensor | None, last: bool) -> tuple[Tensor, Tensor | None]:
        conv, bias = self.layer, self.layer.bias
        assert bias is not None
        (kernel_size,), (stride,) = conv.kernel_size, conv.stride
        missing = -len(x) % stride  # only at the end of a file
        if state is None:
            rows = reflect(x, self.past, missing)
        else:
            rows = reflect(torch.cat([state, x]), 0, missing)
        if self.past and not last:
            state = rows[-self.past :].clone()
        weight = conv.weight.permute(2, 1, 0)  # (kernel, C, C')
        if conv.in_channels == 1:  # one input channel: all taps in one matrix product
            windows = rows[..., 0].unfold(0, kernel_size, stride)  # (T, B, kernel)
            y = torch.addmm(bias, windows.flatten(0, 1), weight.flatten(0, 1))
            return y.unflatten(0, windows.shape[:2]), state
        # Each frame of `stride` steps is multiplied by its part of the kernel: stride 2, kernel 4
        #    past | x0 x1 | x2 x3 |         y0 = W0 (past) + W1 (x0 x1)
        #         | y0    | y1    |         y1 = W0 (x0 x1) + W1 (x2 x3)
        batch_size, taps = x.shape[1], kernel_size // stride
        frames = rows.unflatten(0, (-1, stride)).transpose(1, 2).flatten(2).flatten(0, 1)  # (T' B, stride C)
        weight = weight.reshape(taps, -1, conv.out_channels)
        count = len(frames) - (taps - 1) * batch_size
        y = torch.addmm(bias, frames[:count], weight[0])
        for tap in range(1, taps):
            y.addmm_(frames[tap * batch_size : tap * batch_size + count], weight[tap])
        return y.unflatten(0, (-1, batch_size)), state


class Upsample(nn.Module):
    """A transposed convolution of kernel 2 stride, (S, B, C) -> (S stride, B, C'); state: the last input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        conv = nn.ConvTranspose1d(in_channels, out_channels, 2 * stride, stride)
        conv.weight.data = _order(conv.weight.data, (0, 2, 1))  # memory layout: a matrix (C, 2 stride C')
        self.convtr = nn.ModuleDict({"convtr": conv})

    @property
    def layer(self) -> nn.ConvTranspose1d:
        """The layer of torch that holds the weights."""
        layer = self.convtr["convtr"]
        assert isinstance(layer, nn.ConvTranspose1d)
        return layer

    def forward(self, x: Tensor, state: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        conv, bias = self.layer, self.layer.bias
        assert bias is not None
        (stride,), batch_size = conv.stride, x.shape[1]
        rows = torch.cat([torch.zeros_like(x[:1]) if state is None else state, x])  # (S + 1, B, C)
        now, after = conv.weight.permute(0, 2, 1).flatten(1).chunk(2, dim=1)  # (C, stride C') each
        y = torch.addmm(bias.repeat(stride), rows[1:].flatten(0, 1), now)
        y.addmm_(rows[:-1].flatten(0, 1), after)
        y = y.view(len(x), batch_size, stride, -1).transpose(1, 2).flatten(0, 1)
        return y, rows[-1:].clone()


class Residual(nn.Module):
    """A shortcut of kernel 1 beside two convolutions over half the channels: (S, B, C) -> (S, B, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.shortcut = Conv(channels, channels, 1)
        self.block = nn.Sequential(
            nn.ELU(), Conv(channels, channels // 2, 3), nn.ELU(), Conv(channels // 2, channels, 1)
        )

    def forward(self, x: Tensor, state: Tensor | None, last: bool) -> tuple[Tensor, Tensor | None]:
        y, state = self.block[1](F.elu(x), state, last)
        y, _ = self.block[3](F.elu_(y), None, last)
        return y.add_(self.shortcut(x, None, last)[0]), state


class SkipLSTM(nn.Module):
    """A two-layer LSTM with a skip connection: (S, B, C) -> (S, B, C); state: (h, c), each (2, B, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers=2)

    def forward(self, x: Tensor, state: tuple | None, last: bool) -> tuple[Tensor, tuple | None]:
        if x.device.type != "cpu":
            y, state = self.lstm(x, state)
            return y.add_(x), state
        from .lstm import lstm_layer  # imports numba, which is slow

        zeros = x.new_zeros(2, *x.shape[1:])
        h, c = (zeros, zeros.clone()) if state is None else (part.clone() for part in state)
        y = x
        for layer in range(2):
            weight_in, weight, bias_in, bias = (
                getattr(self.lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            y = lstm_layer(F.linear(y, weight_in, bias_in + bias), weight, h[layer], c[layer])
        return y + x, (h, c)


class Network(nn.Module):
    """Layers over (S, B, C); those with many steps process `PIECE_FRAMES` at a time."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.model = nn.Sequential(*layers)

    def run(self, first: int, stop: int, x: Tensor, state: list, last: bool) -> Tensor:
        """Run layers [first, stop) and write their states into `state`."""
        for i in range(first, stop):
            if isinstance(self.model[i], nn.ELU):
                x = F.elu_(x)
            else:
                x, state[i] = self.model[i](x, state[i], last)
        return x

    def run_pieces(self, first: int, stop: int, x: Tensor, state: list, last: bool, steps: int) -> Tensor:
        """Run layers [first, stop) on pieces of `steps` steps."""
        pieces = x.split(steps)
        done = [self.run(first, stop, piece, state, last and i == len(pieces) - 1) for i, piece in enumerate(pieces)]
        return torch.cat(done)


class Encoder(Network):
    """Encodes a wav (B, 1, N) as (B, 128, ceil(N / 320)), block by block. Only the last N may be no multiple of 320."""

    SPLIT = 10  # layers 0 to 9 have 600 or more steps per second

    def __init__(self):
        channels = NUM_FILTERS
        layers: list[nn.Module] = [Conv(1, channels, 7)]
        for stride in STRIDES:
            layers += [Residual(channels), nn.ELU(), Conv(channels, 2 * channels, 2 * stride, stride)]
            channels *= 2
        layers += [SkipLSTM(channels), nn.ELU(), Conv(channels, DIMENSION, 7)]
        super().__init__(layers)

    def forward(self, wav: Tensor, state: list | None = None, last: bool = True) -> tuple[Tensor, list]:
        state = [None] * len(self.model) if state is None else list(state)
        x = self.run_pieces(0, self.SPLIT, wav.permute(2, 0, 1), state, last, PIECE_FRAMES * 320)
        return self.run(self.SPLIT, len(self.model), x, state, last).permute(1, 2, 0), state


class Decoder(Network):
    """Decodes (B, 128, T) to a wav (B, 1, 320 T), block by block."""

    SPLIT = 6

    def __init__(self):
        channels = NUM_FILTERS * 2 ** len(STRIDES)
        layers: list[nn.Module] = [Conv(DIMENSION, channels, 7), SkipLSTM(channels)]
        for stride in reversed(STRIDES):
            layers += [nn.ELU(), Upsample(channels, channels // 2, stride), Residual(channels // 2)]
            channels //= 2
        layers += [nn.ELU(), Conv(channels, 1, 7)]
        super().__init__(layers)

    def forward(self, x: Tensor, state: list | None = None, last: bool = True) -> tuple[Tensor, list]:
        state = [None] * len(self.model) if state is None else list(state)
        x = self.run(0, self.SPLIT, x.permute(2, 0, 1), state, last)
        x = self.run_pieces(self.SPLIT, len(self.model), x, state, last, PIECE_FRAMES * STRIDES[-1])
        return x.permute(1, 2, 0), state


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Mirror both ends of x (S, ...), without repeating the outermost step; pad an x that is too short with zeros.

    Source: pad1d in the package's modules/conv.py.
    """
    if not left and not right:
        return x
    lacking = max(0, max(left, right) + 1 - len(x))
    x = torch.cat([x, x.new_zeros(lacking, *x.shape[1:])])
    padded = torch.cat([x[1 : left + 1].flip(0), x, x[len(x) - 1 - right : -1].flip(0)])
    return padded[: len(padded) - lacking]


def _order(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Store a weight in memory in the order of `dims`, a permutation that is its own inverse."""
    return weight.permute(dims).contiguous().permute(dims)
