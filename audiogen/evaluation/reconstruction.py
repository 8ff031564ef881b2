"""Measure the round trip of a front-end against the original, and the usage of its codes."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..audio.dsp import mel_filterbank
from ..audio.io import resample
from ..errors import AudiogenError
from ..spec import TokenSpec


def si_sdr(reference: Tensor, estimate: Tensor) -> float:
    """Compute the scale-invariant signal-to-distortion ratio of (..., N) wavs, in dB; higher is closer.

    Means are removed first. Infinite for a perfect round trip, NaN for a silent reference.

    Source: Le Roux et al. 2019, SDR - half-baked or well done?, equation 3.
    """
    reference, estimate = (x.double().flatten() - x.double().mean() for x in (reference, estimate))
    energy = reference.dot(reference)
    if energy == 0:
        return math.nan
    target = reference * (estimate.dot(reference) / energy)
    noise = estimate - target
    return float(10 * torch.log10(target.dot(target) / noise.dot(noise)))


def mel_distance(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Compute the mean absolute difference of log10 mel magnitudes of (..., N) wavs; 0 is perfect.

    Source: Kumar et al. 2023, Improved RVQGAN (DAC), section 3.4: windows of 32 to 2048 samples with 5 to 320 bands at
    44.1 kHz, magnitudes floored at 1e-5. At other rates the windows last about as long, rounded to powers of two.
    """
    shortest = 2 ** round(math.log2(32 * sample_rate / 44_100))
    distances = []
    for level, bands in enumerate((5, 10, 20, 40, 80, 160, 320)):
        n_fft = max(8, shortest << level)
        bank = mel_filterbank(sample_rate, n_fft, min(bands, n_fft // 4)).to(reference)
        bank = bank[bank.sum(dim=1) > 0]  # the lowest bands may contain no bin
        logs = [_log_mel(x.reshape(1, -1), n_fft, bank) for x in (reference, estimate)]
        distances.append((logs[0] - logs[1]).abs().mean())
    return float(torch.stack(distances).mean())


def stft_distance(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Compute the mean absolute difference of log10 magnitudes of (..., N) wavs, in 12 and 46 ms windows; 0 is perfect.

    Unlike `mel_distance` it weights all frequencies equally.

    Source: the STFT distance of Kumar et al. 2023, Improved RVQGAN (DAC), section 4.3: windows of 512 and 2048 samples
    at 44.1 kHz.
    """
    distances = []
    for length in (512, 2048):
        n_fft = max(8, 2 ** round(math.log2(length * sample_rate / 44_100)))
        logs = [_magnitude(x.reshape(1, -1), n_fft).clamp(min=1e-5).log10() for x in (reference, estimate)]
        distances.append((logs[0] - logs[1]).abs().mean())
    return float(torch.stack(distances).mean())


def pesq(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Compute PESQ (ITU-T P.862.2 wide band; below 16 kHz P.862 narrow band) of (..., N) wavs; 4.5 is perfect, 1 bad.

    For speech; NaN if none is found, or if there is less than a quarter of a second.

    Raises:
        AudiogenError: the `pesq` package is not installed.
    """
    package = _optional("pesq")
    rate = 16_000 if sample_rate >= 16_000 else 8000
    one, two = (resample(x.flatten().float().cpu(), sample_rate, rate).numpy() for x in (reference, estimate))
    try:
        return float(package.pesq(rate, one, two, "wb" if rate == 16_000 else "nb"))
    except (package.NoUtterancesError, package.BufferTooShortError):
        return math.nan


def stoi(reference: Tensor, estimate: Tensor, sample_rate: int) -> float:
    """Compute the short-time objective intelligibility (Taal et al. 2011) of (..., N) wavs; 1 is perfect.

    Raises:
        AudiogenError: the `pystoi` package is not installed.
    """
    package = _optional("pystoi")
    return float(package.stoi(*(x.flatten().double().cpu().numpy() for x in (reference, estimate)), sample_rate))


def joined(wavs: Iterable[Tensor], sample_rate: int, seconds: float = 10.0) -> list[Tensor]:
    """Join short wavs (1, n) and cut long ones into clips (1, N) of 0.8 to 1.2 times `seconds`.

    In short clips a container's header would dominate the bitrate, and PESQ would find too little speech. A short
    remainder is dropped, unless it is all there is.
    """
    wanted, least = round(seconds * sample_rate), round(0.8 * seconds * sample_rate)
    clips, pieces, count = [], [], 0
    for wav in wavs:
        for piece in wav.split(wanted, dim=1):
            pieces.append(piece[:, : round(1.2 * seconds * sample_rate) - count])
            count += pieces[-1].shape[1]
            if count >= least:
                clips.append(torch.cat(pieces, dim=1))
                pieces, count = [], 0
    return clips or ([torch.cat(pieces, dim=1)] if pieces else [])


def codebook_statistics(sequences: Iterable[Tensor], spec: TokenSpec) -> dict[str, list[float] | float | None]:
    """Measure the usage of each codebook in sequences (K, T) of codes.

    Returns:
        `codebook_usage`: fraction of the codes that occur, for each codebook; `perplexity`: 2 to the power of the
        entropy, at most V, for each codebook; `bits_per_second`: rate of ideal entropy coding by code frequency, at
        most the bitrate, or None where the rate varies.
    """
    counts = torch.zeros(spec.num_codebooks, spec.codebook_size, dtype=torch.float64)
    for codes in sequences:
        for row, book in zip(codes.cpu(), counts, strict=True):
            book += torch.bincount(row, minlength=len(book))
    p = counts / counts.sum(1, keepdim=True)
    entropy = -torch.special.xlogy(p, p).sum(1) / math.log(2)  # (K,) bits
    rate = spec.frame_rate
    return {
        "codebook_usage": (counts > 0).double().mean(1).tolist(),
        "perplexity": entropy.exp2().tolist(),
        "bits_per_second": None if rate is None else float(entropy.sum()) * rate,
    }


def _log_mel(wav: Tensor, n_fft: int, bank: Tensor) -> Tensor:
    """Compute log10 mel magnitudes: (1, N) -> (bands, T)."""
    return (bank @ _magnitude(wav, n_fft)).clamp(min=1e-5).log10()


def _magnitude(wav: Tensor, n_fft: int) -> Tensor:
    """Compute STFT magnitudes: (1, N) -> (n_fft // 2 + 1, T)."""
    window = torch.hann_window(n_fft, dtype=wav.dtype, device=wav.device)
    padded = torch.nn.functional.pad(wav, (n_fft // 2, n_fft // 2))
    return torch.stft(padded, n_fft, n_fft // 4, window=window, center=False, return_complex=True).abs()[0]


def _optional(name: str):
    try:
        return __import__(name)
    except ImportError:
        raise AudiogenError(f"the {name} package is not installed: pip install {name}") from None
