"""Signal processing shared by several packages: the mel scale and its filterbank."""

import math

import torch
from torch import Tensor

BREAK_HZ, BREAK_MEL = 1000.0, 15.0  # Slaney's scale is linear up to here, 3 mel per 200 Hz
MEL_PER_LOG = 27 / math.log(6.4)  # and logarithmic above, 27 mel per factor of 6.4


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


def mel_filterbank(
    sample_rate: int, n_fft: int, num_bands: int, top: float | None = None, unit_area: bool = True
) -> Tensor:
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
