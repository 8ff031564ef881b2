"""How close a front-end's round trip comes to the sound it was given."""

import math

import torch
from torch import Tensor

from ..frontends.mel import mel_filters


def si_sdr(reference: Tensor, estimate: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio of (..., N) wavs, in dB; higher is closer.

    Source: Le Roux et al. 2019, SDR - half-baked or well done?, equation 3. Mean-free signals; infinite for a perfect
    round trip, and NaN for a silent reference, which has no ratio.
    """
    reference, estimate = (x.double().flatten() - x.double().mean() for x in (reference, estimate))
    energy = reference.dot(reference)
    if energy == 0:
        return math.nan
    target = reference * (estimate.dot(reference) / energy)
    noise = estimate - target
    return float(10 * torch.log10(target.dot(target) / noise.dot(noise)))


def mel_distance(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Mean absolute difference of log10 mel magnitudes of (..., N) wavs, over several resolutions; 0 is perfect.

    Source: Kumar et al. 2023, Improved RVQGAN (DAC), section 3.4: windows of 32 to 2048 samples with 5 to 320 bands at
    44.1 kHz, magnitudes floored at 1e-5. Windows follow the sample rate here: the same milliseconds, to the next power
    of two.
    """
    shortest = 2 ** round(math.log2(32 * sample_rate / 44_100))
    distances = []
    for level, bands in enumerate((5, 10, 20, 40, 80, 160, 320)):
        n_fft = max(8, shortest << level)
        bank = mel_filters(sample_rate, n_fft, min(bands, n_fft // 4)).to(reference)
        bank = bank[bank.sum(dim=1) > 0]                # the lowest may lie between two bins, and hold nothing
        logs = [_log_mel(x.reshape(1, -1), n_fft, bank) for x in (reference, estimate)]
        distances.append((logs[0] - logs[1]).abs().mean())
    return float(torch.stack(distances).mean())


def _log_mel(wav: Tensor, n_fft: int, bank: Tensor) -> Tensor:
    """(1, N) -> (bands, T)."""
    window = torch.hann_window(n_fft, dtype=wav.dtype, device=wav.device)
    padded = torch.nn.functional.pad(wav, (n_fft // 2, n_fft // 2))
    spectrum = torch.stft(padded, n_fft, n_fft // 4, window=window, center=False, return_complex=True).abs()[0]
    return (bank @ spectrum).clamp(min=1e-5).log10()
