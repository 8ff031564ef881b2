"""The own codec: a small causal autoencoder with a residual vector quantizer, fitted to a folder."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codec.losses import SpectralLoss
from ..codec.networks import Decoder, Encoder
from ..codec.quantizer import ResidualVQ
from ..codec.training import draw_batches, draw_crops, train_autoencoder
from ..spec import TokenSpec
from .base import Frontend, check_setting, check_weights, training_wavs
from .precision import full_precision

CROP_FRAMES = 32  # in training
POOL_SECONDS = 600  # of training audio in memory at once
QUIETEST = 1e-4  # level below which training audio is not made louder


class Codec(Frontend):
    """Codes (B, K, T) of a convolutional autoencoder; the first rows alone decode to a coarser sound.

    Causal both ways: frame t is made of samples before (t + 1) * hop_length and heard from t * hop_length on, so the
    latency is one frame, 20 ms as it stands.

    Source: SoundStream (Zeghidour et al. 2021), EnCodec (Défossez et al. 2022); here without discriminators.
    """

    learned = True
    block_frames = 50  # small enough to stay in a processor's cache
    adjustable = frozenset({"num_codebooks"})

    @dataclass(frozen=True)
    class Config:
        sample_rate: int = 16000  # Hz
        num_codebooks: int = 4
        codebook_size: int = 512
        strides: tuple[int, ...] | None = None  # their product is hop_length; None: (r, 4, 4) for about 50 frames/s
        channels: int = 96  # after the first stride; twice as many after each further one
        dim: int = 64  # of what is quantized
        fit_steps: int = 1200
        batch_size: int = 8  # crops of 32 frames
        learning_rate: float = 2e-3
        seed: int = 0

        def __post_init__(self) -> None:
            check_setting(1000 <= self.sample_rate <= 768000, "sample_rate", "from 1000 to 768000 Hz", self.sample_rate)
            check_setting(1 <= self.num_codebooks <= 64, "num_codebooks", "from 1 to 64", self.num_codebooks)
            check_setting(2 <= self.codebook_size <= 65536, "codebook_size", "from 2 to 65536", self.codebook_size)
            strides = self.strides or (1,)
            good_strides = len(strides) <= 6 and min(strides) >= 1 and math.prod(strides) <= 16384
            check_setting(good_strides and self.strides != (), "strides",
                          "null, or 1 to 6 numbers from 1 on with a product of at most 16384", self.strides)
            check_setting(2 <= self.channels <= 512, "channels", "from 2 to 512", self.channels)
            check_setting(1 <= self.dim <= 1024, "dim", "from 1 to 1024", self.dim)
            check_weights(self.num_codebooks * self.codebook_size * self.dim, "num_codebooks, codebook_size, dim")
            widest = self.channels * 2 ** (len(strides) - 1)
            check_weights(2 * max(strides) * widest * max(widest, self.dim), "strides, channels, dim")
            check_setting(self.fit_steps >= 1, "fit_steps", "1 or more", self.fit_steps)
            check_setting(1 <= self.batch_size <= 4096, "batch_size", "from 1 to 4096", self.batch_size)
            check_setting(0 < self.learning_rate <= 1, "learning_rate", "above 0, at most 1", self.learning_rate)

    def __init__(self, config: Config):
        super().__init__(config)
        strides = config.strides or (max(1, round(config.sample_rate / 50 / 16)), 4, 4)
        self.spec = TokenSpec(config.sample_rate, math.prod(strides), config.num_codebooks, config.codebook_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = Encoder(config.channels, strides, config.dim)
            self.decoder = Decoder(config.channels, strides, config.dim)
        self.quantizer = ResidualVQ(config.num_codebooks, config.codebook_size, config.dim)
        self.register_buffer("level", torch.ones(()))  # root mean square of the training audio, 1 to the networks

    def encode_block(self, wav: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """(B, 1, N) -> codes (B, K, ceil(N / hop_length)); zeros follow the last sample."""
        wav = F.pad(wav, (0, -wav.shape[-1] % self.spec.hop_length)) / self.level
        with full_precision(wav.device):
            latent, state = self.encoder(wav, state)
            return self.quantizer.encode(latent), state

    def decode_block(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Codes (B, k, T) of the first k <= K codebooks -> wav (B, 1, T * hop_length) in [-1, 1]."""
        with full_precision(x.device):
            wav, state = self.decoder(self.quantizer.decode(x), state)
        return (wav * self.level).clamp(-1, 1), state

    def fit(self, wavs: Iterable[Tensor]) -> None:
        """Trains from scratch for config.fit_steps, on crops that fit in memory however long the files are.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            DataError: there are no wavs.
            TrainingError: the loss is not a number.
        """
        config, hop_length = self.config, self.spec.hop_length
        loss_of = SpectralLoss(config.sample_rate).to(self.level)
        crop_samples = hop_length * max(CROP_FRAMES, math.ceil(loss_of.shortest / hop_length))
        pool_crops = math.ceil(POOL_SECONDS * config.sample_rate / crop_samples)
        generator = torch.Generator().manual_seed(config.seed)
        crops = draw_crops(training_wavs(wavs), crop_samples, pool_crops, generator)
        self.load_state_dict(type(self)(config).state_dict())  # so that a second fit gives the same as the first
        self.level.copy_(crops.square().mean().sqrt().clamp_min(QUIETEST))
        del crops
        batches = draw_batches(lambda: training_wavs(wavs), crop_samples, config.batch_size, pool_crops, generator)
        batches = (batch.to(self.level) / self.level for batch in batches)
        train_autoencoder(self.encoder, self.quantizer, self.decoder, batches, loss_of, config.fit_steps,
                          config.learning_rate, generator)
        self.is_fitted.fill_(1)
