"""Invert mel power without a network: spread each band over its bins, then estimate phases (Griffin-Lim)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOMENTUM = 0.99  # Perraudin et al. 2013, "A fast Griffin-Lim algorithm"
SPREAD_ITERATIONS = 30
CEILING = 0.98  # of full scale; the limiter reduces louder peaks to it
LIMITER_SECONDS = 0.005  # attack and release time around a peak


def mel_to_wav(power: Tensor, basis: Tensor, n_fft: int, hop_length: int, iterations: int) -> Tensor:
    """Find a wav whose mel power is close to `power`: (B, F, T) -> (B, T * hop_length).

    Initial phases are seeded noise, the same for each item, so that results are reproducible and independent of the
    batch. Each iteration projects onto the spectrograms of real signals (overlapping frames agree), then scales the
    bins toward the target mel power. Plain Griffin-Lim would instead restore the initial estimate of the linear
    spectrum, which has no harmonics within a band; scaling halves the distance to the target mel spectrogram. All
    frames are needed at once, about 40 n_fft bytes each.

    Args:
        power: (B, F, T), nonnegative.
        basis: (F, n_fft // 2 + 1) mel filters, nonnegative.
        n_fft: samples per Hann window.
        hop_length: samples per frame; frame t is centred at t * hop_length.
        iterations: number of iterations.
    """
    # One more frame, so that windows overlap in the last hop as in the others.
    power = torch.cat([power, power[..., -1:]], dim=-1)  # (B, F, T + 1)
    num_samples = (power.shape[-1] - 1) * hop_length
    window = torch.hann_window(n_fft, dtype=power.dtype, device=power.device)

    def to_wav(spectrum: Tensor) -> Tensor:  # (B, bins, T + 1) -> (B, T * hop_length)
        return torch.istft(spectrum, n_fft, hop_length, window=window, center=True, length=num_samples)

    def to_spectrum(wav: Tensor) -> Tensor:  # (B, T * hop_length) -> (B, bins, T + 1)
        return torch.stft(wav, n_fft, hop_length, window=window, center=True, pad_mode="constant", return_complex=True)

    linear = spread(power, basis)  # (B, bins, T + 1)
    noise = torch.rand(linear.shape[2], linear.shape[1], generator=torch.Generator().manual_seed(0))  # (T + 1, bins)
    phase = 2 * math.pi * noise.T.to(power)  # drawn frame by frame, so that they do not depend on T
    target = torch.polar(linear.sqrt(), phase.expand_as(linear))
    previous = None
    for _ in range(iterations):
        spectrum = to_spectrum(to_wav(target))
        linear = toward(spectrum.abs().square(), power, basis)
        ahead = spectrum if previous is None else spectrum + MOMENTUM * (spectrum - previous)
        previous = spectrum
        target = ahead * (linear.sqrt() / ahead.abs().clamp_min(1e-16))
    return to_wav(target)


def limit(wav: Tensor, sample_rate: int) -> Tensor:
    """Limit peaks above `CEILING` by a smooth gain instead of clipping them: (B, N) -> (B, N).

    The gain is the minimum over `LIMITER_SECONDS` around each sample, then smoothed over the same time, so every sample
    is reduced at least as much as it needs. Samples farther than twice that time from a loud one are unchanged.
    """
    reach = max(1, round(LIMITER_SECONDS * sample_rate))
    excess = 1 - CEILING / wav.abs().clamp_min(CEILING)  # (B, N), 0 where no gain is needed
    if not bool(excess.any()):
        return wav
    excess = F.max_pool1d(
        F.pad(excess, (2 * reach, 2 * reach))[:, None], 2 * reach + 1, stride=1
    )  # (B, 1, N + 2 reach)
    window = torch.hann_window(2 * reach + 3, periodic=False, dtype=wav.dtype, device=wav.device)[1:-1]
    smooth = F.conv1d(excess, (window / window.sum())[None, None])[:, 0]  # (B, N)
    return (wav * (1 - smooth)).clamp(-1, 1)  # clamps only rounding errors


def spread(power: Tensor, basis: Tensor) -> Tensor:
    """Estimate nonnegative linear power with the given mel power: (B, F, T) -> (B, bins, T).

    Of the many solutions this finds a smooth one: it starts from the interpolated envelope and scales each bin by the
    ratio of target to actual power in its bands (Richardson-Lucy; Lee and Seung 2001 prove that each step improves it).
    """
    linear = basis.T @ (power / basis.sum(1, keepdim=True)) / _reach(basis)
    for _ in range(SPREAD_ITERATIONS):
        linear = toward(linear, power, basis)
    return linear


def toward(linear: Tensor, power: Tensor, basis: Tensor) -> Tensor:
    """Scale `linear` (B, bins, T) one step toward mel power (B, F, T); bins outside all filters become 0."""
    lack = power / torch.maximum(basis @ linear, 1e-6 * power).clamp_min(torch.finfo(power.dtype).tiny)  # (B, F, T)
    return linear * (basis.T @ lack / _reach(basis))


def _reach(basis: Tensor) -> Tensor:
    """Sum the filters (F, bins) for each bin, with 1 in place of 0: (bins, 1)."""
    reach = basis.sum(0).unsqueeze(1)
    return torch.where(reach > 0, reach, 1)
