"""Mel-VQ: mel frames quantized by k-means on the training files."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import DataError
from ...spec import TokenSpec
from ..base import check_setting, check_weights, training_wavs
from ..determinism import full_precision
from ..neural.quantizer import ResidualVQ
from ..neural.reservoir import Reservoir
from .mel import Mel
from .vocoder import MelFrontend, Vocoder


class MelVQ(MelFrontend):
    """Codes (B, K, T) of the nearest centroids of standardised mel frames; decoded by Griffin-Lim or a vocoder.

    Each codebook quantizes the residual of the previous ones, so the first rows alone decode to coarser audio. A
    vocoder is trained on the quantized frames.
    """

    lookahead, block_frames = Mel.lookahead, Mel.block_frames
    reconfigurable = frozenset({"num_codebooks", "griffin_lim_iterations"})

    @dataclass(frozen=True)
    class Config(Mel.Config):
        # On spoken digits, four residual codebooks reach a mel distance of 0.21, one reaches 0.26.
        num_codebooks: int = 4
        codebook_size: int = 256
        fit_frames: int = 100_000  # most frames for k-means, drawn evenly from the training files
        seed: int = 0

        def __post_init__(self) -> None:
            super().__post_init__()
            check_setting(self.stack == 1, "stack", "1 for codes of single frames", self.stack)
            check_setting(1 <= self.num_codebooks <= 64, "num_codebooks", "from 1 to 64", self.num_codebooks)
            check_setting(2 <= self.codebook_size <= 65536, "codebook_size", "from 2 to 65536", self.codebook_size)
            check_weights(
                self.num_codebooks * self.codebook_size * self.num_features,
                "num_codebooks, codebook_size, num_features",
            )
            check_setting(1 <= self.fit_frames <= 10_000_000, "fit_frames", "from 1 to 10000000", self.fit_frames)

    def __init__(self, config: Config):
        super().__init__(config)
        self.mel = Mel(config)
        hop_length = self.mel.spec.hop_length
        self.spec = TokenSpec(config.sample_rate, hop_length, config.num_codebooks, config.codebook_size)
        self.quantizer = ResidualVQ(config.num_codebooks, config.codebook_size, config.num_features)

    def encode_block(self, wav: Tensor, state: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        """Encode a wav (B, 1, N) as codes (B, K, ceil(N / hop_length))."""
        frames, state = self.mel.encode_block(wav, state, last)
        with full_precision(wav.device):
            return self.quantizer.encode(frames), state

    @property
    def vocoder(self) -> Vocoder | None:
        """The vocoder, or None for Griffin-Lim."""
        return self.mel.vocoder

    def decode_block(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Decode a block of codes (B, k, t), of the first k <= K codebooks."""
        return self.mel.decode_block(self.frames_of(x), state, last)

    def frames_of(self, x: Tensor) -> Tensor:
        """Convert codes (B, k, T) to standardised mel frames (B, F, T)."""
        return self.quantizer.decode(x)

    @torch.no_grad()
    def fit_analysis(self, wavs: Iterable[Tensor]) -> None:
        """Fit the mel statistics and the centroids."""
        self.mel.fit(wavs)
        generator = torch.Generator().manual_seed(self.config.seed)
        reservoir = Reservoir(self.config.fit_frames, generator)
        for wav in training_wavs(wavs):
            reservoir.add(self.mel.encode(wav.to(self.mel.mean).unsqueeze(0))[0].T)  # (T, F)
        frames = reservoir.rows()
        try:
            self.quantizer.fit(frames, generator)
        except ValueError as error:
            raise DataError(
                f"frontend.codebook_size: {self.config.codebook_size} codes are too many for {len(frames)} "
                f"training frames ({error}): choose fewer, or add recordings"
            ) from error
