"""Reconstruction losses between a decoded wav and the original."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...audio.dsp import mel_filterbank

FLOOR = 1e-5  # relative to the magnitude of a sine with peak 1
WINDOWS = (0.008, 0.016, 0.032, 0.064, 0.128)  # seconds


class ReconstructionLoss(nn.Module):
    """Distances between waveforms, and between magnitude spectra at several window lengths (seconds, at least).

    Source: the multi-scale mel loss of the Descript Audio Codec (Kumar et al. 2023, section 3.4) and the spectral
    convergence of Parallel WaveGAN (Yamamoto et al. 2020).
    """

    def __init__(self, sample_rate: int, windows: tuple[float, ...] = WINDOWS):
        super().__init__()
        self.n_ffts = [2 * fast_length(round(seconds * sample_rate / 2)) for seconds in windows]
        self.shortest = max(self.n_ffts) // 2 + 1  # minimum number of samples
        for index, n_fft in enumerate(self.n_ffts):
            num_bins = n_fft // 2 + 1
            filters = mel_filterbank(sample_rate, n_fft, min(80, num_bins // 5), unit_area=False)
            self.register_buffer(f"filters_{index}", filters.T.float(), persistent=False)  # (bins, F)
            self.register_buffer(f"window_{index}", sine_window(n_fft), persistent=False)  # (n_fft,)

    def forward(self, decoded: Tensor, wav: Tensor) -> dict[str, Tensor]:
        """Compute three losses between wavs (B, 1, N): scalars that are 0 if both are equal. N must be >= `shortest`.

        `wave` is the mean absolute difference of samples. `mel` is that of log mel magnitudes, which is close to what
        ears hear. `stft` is that of linear magnitudes, divided by the mean magnitude of `wav`; loud parts dominate it.
        `mel` and `stft` are averaged over window lengths.
        """
        mel = stft = wav.new_zeros(())
        for index in range(len(self.n_ffts)):
            filters, window = getattr(self, f"filters_{index}"), getattr(self, f"window_{index}")
            mine = magnitudes(decoded, window)
            with torch.no_grad():
                theirs = magnitudes(wav, window)
                log_theirs = torch.log(theirs @ filters + FLOOR)
            mel = mel + F.l1_loss(torch.log(mine @ filters + FLOOR), log_theirs) / len(self.n_ffts)
            stft = stft + F.l1_loss(mine, theirs) / theirs.mean().clamp_min(1e-3) / len(self.n_ffts)
        return {"wave": F.l1_loss(decoded, wav), "mel": mel, "stft": stft}


def fast_length(length: int) -> int:
    """Return the smallest number from `length` on without prime factors above 5: Fourier transforms of it are fast."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def sine_window(n_fft: int) -> Tensor:
    """Return a Hann window scaled so that a sine of peak 1 has magnitude 1: (n_fft,)."""
    window = torch.hann_window(n_fft)
    return 2 * window / window.sum()


def magnitudes(wav: Tensor, window: Tensor) -> Tensor:
    """Compute STFT magnitudes with fourfold overlap, differentiable at 0: (B, 1, N) -> (B, T, bins)."""
    n_fft = len(window)
    spectrum = torch.stft(wav.squeeze(1), n_fft, n_fft // 4, window=window, return_complex=True)
    return torch.view_as_real(spectrum.transpose(1, 2)).square().sum(-1).add(1e-12).sqrt()
