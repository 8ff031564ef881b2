"""Distances between sets of audio: KAD and Fréchet distance over embeddings, and a simple embedding.

An embedding (N, D) has one vector per window of audio. Comparing distributions shows what no single clip does: kinds of
sound that are too frequent, too rare, or absent from the recordings. A distance alone means nothing. Report it between
its floor (training against held-out recordings) and its ceiling (noise with their spectrum).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio.dsp import mel_filterbank

#: Floor of the power, relative to the peak of a full-scale sine: -80 dB, about the noise of a quiet room.
FLOOR = 1e-8


@dataclass(frozen=True)
class Distance:
    """A distance, the interval of 95 % of its bootstrap replicates, and the number of windows of the second set."""

    value: float
    low: float
    high: float
    n: int


def kad(
    reference: Tensor, other: Tensor, bandwidth: float | None = None, replicates: int = 200, seed: int = 0
) -> Distance:
    """Compute the kernel audio distance: the unbiased squared maximum mean discrepancy (MMD) with a Gaussian kernel.

    It is at most 2. For two samples of the same distribution its mean is 0, whatever N and M are, so it can be slightly
    negative. The bootstrap resamples the windows of both sets and skips pairs of a window with itself, which would make
    the sets look closer than they are.

    Example:
        >>> one, two = torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(0))
        >>> abs(kad(one, two).value) < 0.01 < kad(one, two + 1).low
        True

    Args:
        reference: embeddings (N, D).
        other: embeddings (M, D).
        bandwidth: of the kernel exp(-d^2 / (2 bandwidth^2)); None: the median distance within the reference.
        replicates: number of bootstrap replicates.
        seed: of the bootstrap.

    Raises:
        ValueError: a set has fewer than two windows.

    Source: Gretton et al. 2012, A Kernel Two-Sample Test, equation 3; Chung et al. 2025, KAD.
    """
    reference, other = reference.double(), other.double()
    if min(len(reference), len(other)) < 2:
        raise ValueError(f"need at least two windows of each set, got {len(reference)} and {len(other)}")
    bandwidth = bandwidth or median_distance(reference)
    xx, yy = (_kernel(x, x, bandwidth).fill_diagonal_(0) for x in (reference, other))
    xy = _kernel(reference, other, bandwidth)
    value = _weighted_mmd(xx, yy, xy, *(torch.ones(1, len(x)).double() for x in (reference, other)))
    generator = torch.Generator().manual_seed(seed)
    wx, wy = (_counts(len(x), replicates, generator) for x in (reference, other))
    found = _weighted_mmd(xx, yy, xy, wx, wy)  # NaN if all draws are of one window
    low, high = torch.nanquantile(found, torch.tensor([0.025, 0.975]).double()).tolist()
    return Distance(float(value), low, high, len(other))


def frechet(reference: Tensor, other: Tensor) -> float:
    """Compute the squared Fréchet distance of embeddings (N, D) and (M, D), each modelled as a Gaussian.

    It is biased upwards by about D / N, so compare only values of the same N and M. Fewer than D windows are allowed;
    their covariance is singular.

    Example:
        >>> x = torch.randn(100, 4)
        >>> round(frechet(x, x + 1), 3)
        4.0

    Source: Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule, equation 6; Kilgour et al. 2019, FAD.
    """
    reference, other = reference.double(), other.double()
    difference = reference.mean(dim=0) - other.mean(dim=0)
    one, two = (torch.atleast_2d(x.T.cov()) for x in (reference, other))
    values, vectors = torch.linalg.eigh(one)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # The trace of (one two)^(1/2) is that of the symmetric (root two root)^(1/2).
    trace = torch.linalg.eigvalsh(root @ two @ root).clamp_min(0).sqrt().sum()
    return float(difference.square().sum() + one.trace() + two.trace() - 2 * trace)


def median_distance(x: Tensor) -> float:
    """Return the median distance between different rows of (N, D), or 1 if most rows are equal."""
    return float(torch.pdist(x.double()).median()) or 1.0


def log_mel_statistics(wavs: Iterable[Tensor], sample_rate: int, seconds: float = 1.0, bands: int = 64) -> Tensor:
    """Embed wavs (1, n) as mean and standard deviation over time of each log-mel band: (N, 2 bands), in dB.

    The wavs are joined end to end and cut into windows, so that short ones count too. The remainder is dropped, so N is
    0 if all are shorter than a window together.

    Example:
        >>> log_mel_statistics([torch.zeros(1, 8000), torch.zeros(1, 24000)], sample_rate=16000).shape
        torch.Size([2, 128])

    Args:
        wavs: at least one wav.
        sample_rate: Hz.
        seconds: length of a window.
        bands: number of mel bands.
    """
    wav = torch.cat([wav.flatten() for wav in wavs])
    length = round(seconds * sample_rate)
    windows = wav[: len(wav) // length * length].view(-1, length)  # (N, n)
    if not len(windows):
        return windows.new_zeros(0, 2 * bands)
    return mean_and_deviation(log_mel_levels(windows, sample_rate, bands))


def log_mel_levels(wavs: Tensor, sample_rate: int, bands: int = 64) -> Tensor:
    """Compute the level of mel bands in dB relative to a full-scale sine: (B, n) -> (B, bands, T).

    Windows last about 46 ms and overlap by three quarters; only whole ones count.
    """
    n_fft = 2 ** round(math.log2(0.046 * sample_rate))
    window = torch.hann_window(n_fft, dtype=wavs.dtype)
    bank = mel_filterbank(sample_rate, n_fft, bands).to(wavs)  # (bands, bins)
    bank = bank / bank.sum(dim=1, keepdim=True)
    wavs = torch.nn.functional.pad(wavs, (0, max(0, n_fft - wavs.shape[1])))
    spectrum = torch.stft(wavs, n_fft, n_fft // 4, window=window, center=False, return_complex=True)
    power = bank @ spectrum.abs().square() / (n_fft / 4) ** 2  # (B, bands, T), 1 for a full-scale sine
    return 10 * (power + FLOOR).log10()


def mean_and_deviation(windows: Tensor) -> Tensor:
    """Embed windows of features (N, F, T) as mean and standard deviation over time of each feature: (N, 2 F)."""
    return torch.cat([windows.mean(dim=2), windows.std(dim=2)], dim=1)


def noise_of_spectrum(wavs: Iterable[Tensor], seed: int = 0) -> list[Tensor]:
    """Make noise with the Fourier magnitudes of each wav (1, n) and random phases."""
    generator, noises = torch.Generator().manual_seed(seed), []
    for wav in wavs:
        spectrum = torch.fft.rfft(wav)
        phases = 2 * math.pi * torch.rand(spectrum.shape, generator=generator)
        noises.append(torch.fft.irfft(torch.polar(spectrum.abs(), phases), n=wav.shape[-1]))
    return noises


def _kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    return torch.exp(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / (-2 * bandwidth**2))


def _weighted_mmd(xx: Tensor, yy: Tensor, xy: Tensor, wx: Tensor, wy: Tensor) -> Tensor:
    """Compute the MMD of kernels (N, N), (M, M) with zero diagonals, and (N, M); weights (R, N), (R, M) -> (R,)."""
    within = [
        torch.einsum("ri,ij,rj->r", w, k, w) / (w.sum(dim=1).square() - w.square().sum(dim=1))
        for k, w in ((xx, wx), (yy, wy))
    ]
    between = torch.einsum("ri,ij,rj->r", wx, xy, wy) / (wx.sum(dim=1) * wy.sum(dim=1))
    return within[0] + within[1] - 2 * between


def _counts(n: int, replicates: int, generator: torch.Generator) -> Tensor:
    """Count how often each of n items is drawn in n draws with replacement: (replicates, n)."""
    drawn = torch.randint(n, (replicates, n), generator=generator)
    return torch.zeros(replicates, n).double().scatter_add_(1, drawn, torch.ones(replicates, n).double())
