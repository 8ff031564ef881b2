"""Signal processing shared by several packages: the mel scale and its filterbank."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BREAK_HZ, BREAK_MEL = 1000.0, 15.0  # Slaney's scale is linear up to here, 3 mel per 200 Hz
MEL_PER_LOG = 27 / math.log(6.4)  # and logarithmic above, 27 mel per factor of 6.4

#: Highest sample rate (Hz) of mel frames by default; their frame rate does not depend on the sample rate.
HIGHEST_MEL_RATE = 48_000


def hz_to_mel(hertz: float) -> float:
    """Convert a frequency in Hz (0 or more) to Slaney's mel scale, as `librosa.hz_to_mel(htk=False)`."""
    if hertz < BREAK_HZ:
        return hertz * 3 / 200
    return BREAK_MEL + MEL_PER_LOG * math.log(hertz / BREAK_HZ)


def mel_to_hz(mel: float) -> float:
    """Convert Slaney's mel scale to a frequency in Hz, the inverse of `hz_to_mel`."""
    if mel < BREAK_MEL:
        return mel * 200 / 3
    return BREAK_HZ * math.exp((mel - BREAK_MEL) / MEL_PER_LOG)


def leading_bands(
    sample_rate: int, num_bands: int, hop_length: int, top: float, to_rate: int
) -> tuple[int, int, float]:
    """Find how many of a set of mel bands fit another sample rate, and the hop of the same duration.

    Args:
        sample_rate: Hz.
        num_bands: number of bands at `sample_rate`.
        hop_length: samples at `sample_rate`.
        top: upper edge of the last band in Hz.
        to_rate: the other sample rate in Hz.

    Returns:
        The number of bands that end below to_rate / 2, at least 1; the hop in samples at `to_rate`, whose
        duration differs by 4 % at most; and the upper edge of the last band in Hz.
    """
    spacing = hz_to_mel(top) / (num_bands + 1)  # mel
    bands = max(1, min(num_bands, int(hz_to_mel(to_rate / 2) / spacing + 1e-6) - 1))
    hop_length = 2 * _fast_length(round(hop_length * to_rate / sample_rate / 2))  # even, for a vocoder
    return bands, hop_length, round(mel_to_hz(spacing * (bands + 1)), 3)


def _fast_length(length: int) -> int:
    """Return the next length without prime factors above 7, for which Fourier transforms are fast."""
    length = rest = max(1, length)
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    return length if rest == 1 else _fast_length(length + 1)


def mel_filterbank(
    sample_rate: int, n_fft: int, num_bands: int, top: float | None = None, unit_area: bool = True
) -> "Tensor":
    """Build triangular filters, evenly spaced on Slaney's mel scale from 0 Hz to `top`.

    Equals `librosa.filters.mel(htk=False, norm="slaney")`, in float64 and without importing librosa.

    Args:
        sample_rate: Hz.
        n_fft: length of the Fourier transform, in samples.
        num_bands: F.
        top: upper edge of the last filter in Hz; None for sample_rate / 2. Bins end at sample_rate / 2 all the same.
        unit_area: scale each filter to an area of 1 (in Hz); otherwise its peak is 1.

    Returns:
        (num_bands, n_fft // 2 + 1) float64, at least 0.
    """
    import torch  # the mel scale alone does without

    nyquist = sample_rate / 2
    mels = torch.linspace(0, hz_to_mel(nyquist if top is None else top), num_bands + 2, dtype=torch.float64)
    corners = torch.where(
        mels < BREAK_MEL, mels * 200 / 3, BREAK_HZ * torch.exp((mels - BREAK_MEL) / MEL_PER_LOG)
    )  # Hz
    bins = torch.linspace(0, nyquist, n_fft // 2 + 1, dtype=torch.float64)  # Hz
    lower, centre, upper = corners[:-2, None], corners[1:-1, None], corners[2:, None]  # (F, 1)
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return triangles * 2 / (upper - lower) if unit_area else triangles
