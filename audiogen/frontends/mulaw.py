"""Mu-law: one code per sample, in finer steps near zero. No weights, no latency."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spec import TokenSpec
from .base import Frontend, check_setting


class MuLaw(Frontend):
    """Mu-law (the curve of ITU-T G.711): each sample a code of 8 bits (2 to 16), in finer steps near zero.

    Codes are identical to torchaudio's.

    Example:
        >>> frontend = MuLaw(MuLaw.Config(sample_rate=8000))
        >>> frontend.encode(torch.tensor([[[-1.0, 0.0, 1.0]]]))
        tensor([[[  0, 128, 255]]])

    The number of codes is even, so none of them is exact silence: 0 becomes V / 2, which decodes to a constant slightly
    above 0 (8.6e-5, or -81 dBFS, at 8 bits). Values outside [-1, 1] are clipped.

    Source: torchaudio.functional.mu_law_encoding, mu_law_decoding
    """

    block_frames = 4096
    overshoots = False

    @dataclass(frozen=True)
    class Config:
        sample_rate: int = 16000  # Hz
        bits: int = 8  # V = 2**bits codes

        def __post_init__(self) -> None:
            check_setting(1000 <= self.sample_rate <= 768000, "sample_rate", "from 1000 to 768000 Hz", self.sample_rate)
            check_setting(2 <= self.bits <= 16, "bits", "from 2 to 16", self.bits)

    def __init__(self, config: Config):
        super().__init__(config)
        self.spec = TokenSpec(config.sample_rate, hop_length=1, num_codebooks=1, codebook_size=2**config.bits)

    def encode_block(self, wav: Tensor, state: None, last: bool) -> tuple[Tensor, None]:
        """Encode a wav (B, 1, N) in [-1, 1] as codes (B, 1, N) in [0, 2**bits); -1 becomes 0."""
        mu = self.spec.codebook_size - 1
        wav = wav.clamp(-1, 1)
        compressed = wav.sign() * torch.log1p(mu * wav.abs()) / self._log1p(mu)  # in [-1, 1]
        return ((compressed + 1) / 2 * mu + 0.5).to(torch.int64), None

    def decode_block(self, x: Tensor, state: None, last: bool) -> tuple[Tensor, None]:
        """Decode codes (B, 1, T) to a wav (B, 1, T) in [-1, 1]."""
        mu = self.spec.codebook_size - 1
        compressed = x.to(self.dtype) / mu * 2 - 1
        return compressed.sign() * (torch.exp(compressed.abs() * self._log1p(mu)) - 1) / mu, None

    def _log1p(self, mu: int) -> Tensor:
        return torch.log1p(torch.tensor(mu, dtype=self.dtype, device=self.device))  # rounds like torchaudio's
