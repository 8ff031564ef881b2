"""How far a set of sounds is from another as a set: KAD and Fréchet distance over embeddings, and an embedding.

An embedding is one vector per window of sound, (N, D). Distances compare the two clouds of points, so they see what no
single clip shows: sounds that are alike too often, too rarely, or nowhere among the recordings. A bare distance means
nothing. Show it between its floor (training recordings against held-out ones) and its ceiling (noise of their
spectrum).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio.dsp import mel_filterbank

#: Power below the peak of a full-scale sine at which the logarithm is floored: 80 dB, about where rooms are silent.
FLOOR = 1e-8


@dataclass(frozen=True)
class Distance:
    """A distance with the interval that holds 95 % of its bootstrap replicates, and the number of windows compared."""

    value: float
    low: float
    high: float
    n: int


def kad(
    reference: Tensor, other: Tensor, bandwidth: float | None = None, replicates: int = 200, seed: int = 0
) -> Distance:
    """Measure the unbiased squared maximum mean discrepancy (MMD) of (N, D) and (M, D), with a Gaussian kernel.

    It is 0 on average for two samples of one distribution, whatever N and M are, so it may come out slightly below 0;
    at most 2. The bootstrap draws windows of both sets with replacement and skips pairs of a window with itself, which
    would make every replicate look closer than the samples are.

    Args:
        bandwidth: of the kernel exp(-d^2 / (2 bandwidth^2)); None: the median distance within the reference.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than two windows in a set.

    Source: Gretton et al. 2012, A Kernel Two-Sample Test, equation 3; Chung et al. 2025, KAD.
    """
    reference, other = reference.double(), other.double()
    if min(len(reference), len(other)) < 2:
        raise ValueError(f"need two windows or more of each, got {len(reference)} and {len(other)}")
    bandwidth = bandwidth or median_distance(reference)
    kernels = [_kernel(x, y, bandwidth) for x, y in ((reference, reference), (other, other), (reference, other))]
    for within in kernels[:2]:
        within.fill_diagonal_(0)
    value = _weighted_mmd(*kernels, torch.ones(1, len(reference)).double(), torch.ones(1, len(other)).double())
    generator = torch.Generator().manual_seed(seed)
    weights = [_counts(len(x), replicates, generator) for x in (reference, other)]
    low, high = torch.quantile(_weighted_mmd(*kernels, *weights), torch.tensor([0.025, 0.975]).double()).tolist()
    return Distance(float(value), low, high, len(other))


def frechet(reference: Tensor, other: Tensor) -> float:
    """Measure the squared Fréchet distance of (N, D) and (M, D), each taken as one Gaussian.

    Biased upwards by about D / N, so compare values of the same N and M only; below D windows the covariances are
    singular, which the matrix root bears.

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
    """The median distance between two different rows of (N, D); 1 where most rows are equal."""
    return float(torch.pdist(x.double()).median()) or 1.0


def log_mel_statistics(wavs: Iterable[Tensor], sample_rate: int, seconds: float = 1.0, bands: int = 64) -> Tensor:
    """Embed sounds (1, n) as mean and standard deviation over time of each log-mel band: (N, 2 bands), in dB.

    The sounds are joined end to end and cut into windows of `seconds`, so that short ones count too; what is left over
    is dropped.
    """
    wav = torch.cat([wav.flatten() for wav in wavs])
    length = round(seconds * sample_rate)
    windows = wav[: len(wav) // length * length].view(-1, length)  # (N, n)
    n_fft = 2 ** round(math.log2(0.046 * sample_rate))
    window = torch.hann_window(n_fft, dtype=wav.dtype)
    bank = mel_filterbank(sample_rate, n_fft, bands).to(wav)  # (bands, bins)
    bank = bank / bank.sum(dim=1, keepdim=True)
    spectrum = torch.stft(windows, n_fft, n_fft // 4, window=window, center=False, return_complex=True)
    power = bank @ spectrum.abs().square() / (n_fft / 4) ** 2  # (N, bands, T), 1 for a full-scale sine
    levels = 10 * (power + FLOOR).log10()
    return torch.cat([levels.mean(dim=2), levels.std(dim=2)], dim=1)


def noise_of_spectrum(wavs: Iterable[Tensor], seed: int = 0) -> list[Tensor]:
    """Turn sounds (1, n) into noise of their own spectrum and power: the same Fourier magnitudes, other phases."""
    generator, noises = torch.Generator().manual_seed(seed), []
    for wav in wavs:
        spectrum = torch.fft.rfft(wav)
        phases = 2 * math.pi * torch.rand(spectrum.shape, generator=generator)
        noises.append(torch.fft.irfft(torch.polar(spectrum.abs(), phases), n=wav.shape[-1]))
    return noises


def _kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    return torch.exp(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / (-2 * bandwidth**2))


def _weighted_mmd(xx: Tensor, yy: Tensor, xy: Tensor, wx: Tensor, wy: Tensor) -> Tensor:
    """Kernels (N, N) and (M, M) with zero diagonals, and (N, M); weights (R, N), (R, M) -> (R,)."""
    within = [
        torch.einsum("ri,ij,rj->r", w, k, w) / (w.sum(dim=1).square() - w.square().sum(dim=1))
        for k, w in ((xx, wx), (yy, wy))
    ]
    between = torch.einsum("ri,ij,rj->r", wx, xy, wy) / (wx.sum(dim=1) * wy.sum(dim=1))
    return within[0] + within[1] - 2 * between


def _counts(n: int, replicates: int, generator: torch.Generator) -> Tensor:
    """How often each of n is drawn in n draws with replacement: (replicates, n)."""
    drawn = torch.randint(n, (replicates, n), generator=generator)
    return torch.zeros(replicates, n).double().scatter_add_(1, drawn, torch.ones(replicates, n).double())
