"""8-bit linear PCM: one code per sample, evenly spaced. The simplest front-end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spec import TokenSpec
from .base import Frontend, check_setting


class PCM(Frontend):
    """Samples rounded to 256 evenly spaced levels, as in an 8-bit WAV; silence is code 128.

    The rounding error is at most 1/256; values above 127/128 are clipped to it.

    Example:
        >>> frontend = PCM(PCM.Config(sample_rate=8000))
        >>> frontend.encode(torch.tensor([[[-1.0, 0.0, 0.5, 1.0]]]))
        tensor([[[  0, 128, 192, 255]]])
    """

    block_frames = 4096
    overshoots = False

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            sample_rate: Hz.
        """

        sample_rate: int = 16000

        def __post_init__(self) -> None:
            check_setting(1000 <= self.sample_rate <= 768000, "sample_rate", "from 1000 to 768000 Hz", self.sample_rate)

    def __init__(self, config: Config):
        super().__init__(config)
        self.spec = TokenSpec(config.sample_rate, hop_length=1, num_codebooks=1, codebook_size=256)

    def encode_block(self, wav: Tensor, state: None, last: bool) -> tuple[Tensor, None]:
        """Encode (B, 1, n) in [-1, 1] as codes (B, 1, n) in [0, 256)."""
        return (128 * wav + 128).round().clamp(0, 255).to(torch.int64), None

    def decode_block(self, x: Tensor, state: None, last: bool) -> tuple[Tensor, None]:
        """Decode codes (B, 1, t) to a wav (B, 1, t) in [-1, 127/128]."""
        return (x.to(self.dtype) - 128) / 128, None
