"""How far a decoded wav is from the original, for training the own codec."""

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

FLOOR = 1e-3  # of the magnitude of a sine with peak 1


class SpectralLoss(nn.Module):
    """Distance of magnitude spectra at several window lengths: log-mel (what is heard) plus linear (the loud parts).

    Source: the multi-scale mel loss of the Descript Audio Codec (Kumar et al. 2023) and the spectral convergence of
    Parallel WaveGAN (Yamamoto et al. 2020).
    """

    def __init__(self, sample_rate: int, windows: tuple[float, ...] = (0.008, 0.016, 0.032, 0.064, 0.128)):
        super().__init__()
        self.n_ffts = [2 * round(seconds * sample_rate / 2) for seconds in windows]
        self.shortest = max(self.n_ffts) // 2 + 1       # samples that it takes, at least
        for index, n_fft in enumerate(self.n_ffts):
            num_bins = n_fft // 2 + 1
            filters = torchaudio.functional.melscale_fbanks(
                num_bins, 0.0, sample_rate / 2, min(80, num_bins // 5), sample_rate, norm=None, mel_scale="slaney")
            window = torch.hann_window(n_fft)
            window = 2 * window / window.sum()  # a sine of peak 1 then has magnitude 1
            self.register_buffer(f"filters_{index}", filters.T.contiguous(), persistent=False)  # (F, bins)
            self.register_buffer(f"window_{index}", window, persistent=False)  # (n_fft,)

    def forward(self, decoded: Tensor, wav: Tensor) -> Tensor:
        """(B, 1, N), (B, 1, N) -> the mean over window lengths; N at least `shortest`."""
        total = wav.new_zeros(())
        for index, n_fft in enumerate(self.n_ffts):
            filters, window = getattr(self, f"filters_{index}"), getattr(self, f"window_{index}")
            both = torch.cat([decoded, wav]).squeeze(1)
            spectrum = torch.stft(both, n_fft, n_fft // 4, window=window, return_complex=True)
            magnitude = torch.view_as_real(spectrum).square().sum(-1).add(1e-12).sqrt()  # smooth at 0
            mine, theirs = magnitude.chunk(2)
            log_mine, log_theirs = (torch.log(filters @ x + FLOOR) for x in (mine, theirs))
            total = total + F.l1_loss(log_mine, log_theirs) + F.l1_loss(mine, theirs) / theirs.mean().clamp_min(FLOOR)
        return total / len(self.n_ffts)
