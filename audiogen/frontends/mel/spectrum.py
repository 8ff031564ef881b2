"""A network that estimates the linear spectrum from mel frames, for Griffin-Lim to start from."""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...audio.dsp import leading_bands, mel_filterbank

SHIPPED = Path(__file__).parents[2] / "weights" / "spectrum-44khz.safetensors"
#: The mel frames that the network was trained on; `frames_at` gives those that it takes at other sample rates.
SAMPLE_RATE, N_FFT, NUM_BANDS, TOP = 44_100, 2048, 100, 20_000.0
DIM, NUM_LAYERS, KERNEL = 384, 4, 5
REACH = 1 + NUM_LAYERS * (KERNEL // 2)  # frames on either side that an estimate depends on
FLOOR = 1e-9 * (N_FFT / 4) ** 2  # 90 dB below the peak of a full-scale sine
MEAN, STD = -2.0, 4.0  # roughly, of the log power of bands, in nats


class Block(nn.Module):
    """A residual block of a depthwise convolution over time and a wide MLP: (B, T, D) -> (B, T, D).

    Source: Liu et al. 2022, A ConvNet for the 2020s, in one dimension as in Vocos (Siuzdak 2023), section 3.
    """

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(DIM, DIM, KERNEL, padding=KERNEL // 2, groups=DIM)
        self.norm = nn.LayerNorm(DIM)
        self.wide, self.narrow = nn.Linear(DIM, 3 * DIM), nn.Linear(3 * DIM, DIM)
        self.scale = nn.Parameter(torch.full((DIM,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.line(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.narrow(F.gelu(self.wide(self.norm(y))))


class SpectrumNetwork(nn.Module):
    """Estimates linear power from mel power: (B, F, T) -> (B, bins, T), for frames of one sample rate.

    Above 1 kHz a mel band spans several harmonics, so its power does not say where they lie. But they lie at multiples
    of a frequency that the narrow low bands tell. The network has learned from recordings which spectrum to expect; it
    predicts how far the log power of each bin lies above or below the interpolated envelope.

    Args:
        sample_rate: Hz. The frames must be those of `frames_at`.
    """

    into_bins: Tensor
    to_own_bins: Tensor | None
    widths: Tensor

    def __init__(self, sample_rate: int = SAMPLE_RATE):
        super().__init__()
        num_bands, hop_length, top = frames_at(sample_rate)
        n_fft = 4 * hop_length
        self.missing = NUM_BANDS - num_bands  # bands above half the sample rate
        self.gain = 2 * math.log(n_fft / N_FFT)  # of the log power, since windows have another number of samples
        self.into = nn.Conv1d(NUM_BANDS, DIM, 3, padding=1)
        self.norm = nn.LayerNorm(DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_LAYERS))
        self.last_norm = nn.LayerNorm(DIM)
        self.out = nn.Linear(DIM, N_FFT // 2 + 1)
        basis = mel_filterbank(SAMPLE_RATE, N_FFT, NUM_BANDS, TOP)
        bins = torch.arange(N_FFT // 2 + 1).double()
        own = torch.arange(n_fft // 2 + 1).double() * (sample_rate / n_fft) / (SAMPLE_RATE / N_FFT)
        for name, value in {
            "into_bins": _interpolation(basis @ bins / basis.sum(1), bins),  # (N_FFT / 2 + 1, F)
            "to_own_bins": None if sample_rate == SAMPLE_RATE else _interpolation(bins, own),  # (own, N_FFT / 2 + 1)
            "widths": mel_filterbank(sample_rate, n_fft, num_bands, top).sum(1, keepdim=True),  # (F, 1)
        }.items():
            self.register_buffer(name, None if value is None else value.float(), persistent=False)

    def load_shipped(self) -> "SpectrumNetwork":
        """Load the shipped weights and return self."""
        self.load_state_dict(load_file(SHIPPED))
        return self

    def forward(self, power: Tensor) -> Tensor:
        """Estimate linear power (B, bins, T) from mel power (B, F, T)."""
        level = torch.log(power / self.widths * math.exp(-self.gain) + FLOOR)
        level = F.pad(level, (0, 0, 0, self.missing), value=math.log(FLOOR))
        log_power = self.envelope(level) + self.deviation(level)  # (B, T, N_FFT / 2 + 1)
        if self.to_own_bins is not None:
            log_power = F.linear(log_power, self.to_own_bins)
        return (log_power + self.gain).exp().transpose(1, 2)

    def envelope(self, level: Tensor) -> Tensor:
        """Interpolate the level of bands: (B, NUM_BANDS, T) -> (B, T, N_FFT / 2 + 1), of bins at 44.1 kHz.

        Args:
            level: log of the mean power of the bins in each band, plus FLOOR.
        """
        return F.linear(level.transpose(1, 2), self.into_bins)

    def deviation(self, level: Tensor) -> Tensor:
        """Predict the log power of bins beside their envelope, in nats: (B, NUM_BANDS, T) -> (B, T, N_FFT / 2 + 1)."""
        x = self.norm(self.into((level - MEAN) / STD).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.out(self.last_norm(x))


def frames_at(sample_rate: int) -> tuple[int, int, float]:
    """Return the number of bands, the hop in samples and the upper edge in Hz of frames at a sample rate."""
    return leading_bands(SAMPLE_RATE, NUM_BANDS, N_FFT // 4, TOP, sample_rate)


def _interpolation(at: Tensor, wanted: Tensor) -> Tensor:
    """Return the matrix (wanted, at) that interpolates values at increasing positions, constant beyond the ends."""
    right = torch.searchsorted(at, wanted).clamp(1, len(at) - 1)
    weight = ((wanted - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    rows, matrix = torch.arange(len(wanted)), torch.zeros(len(wanted), len(at), dtype=torch.float64)
    matrix[rows, right - 1] = 1 - weight
    matrix[rows, right] = weight
    return matrix
