"""The own codec: a small causal autoencoder with a residual vector quantizer, fitted to a folder."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..codec.losses import SpectralLoss
from ..codec.networks import Decoder, Encoder, blockwise
from ..codec.quantizer import CodebookLearner, ResidualVQ
from ..spec import TokenSpec
from .base import Frontend, check_setting, training_wavs

BLOCK_FRAMES = 1024
CROP_FRAMES = 32
POOL_SECONDS = 600  # of training audio held in memory at once
POOL_PASSES = 4  # before another pool is drawn


class Codec(Frontend):
    """Codes (B, K, T) of a convolutional autoencoder; the first rows alone decode to a coarser sound.

    Causal both ways: frame t sees samples up to (t + 1) * hop_length and is heard from t * hop_length on. Files of
    any length are encoded and decoded in constant memory beyond the result.

    Source: SoundStream (Zeghidour et al. 2021), EnCodec (Defossez et al. 2022); here without discriminators.
    """

    learned = True
    adjustable = frozenset({"num_codebooks"})

    @dataclass(frozen=True)
    class Config:
        sample_rate: int = 16000  # Hz
        num_codebooks: int = 4
        codebook_size: int = 512
        strides: tuple[int, ...] | None = None  # their product is hop_length; None: (r, 4, 4, 4) for about 62.5 frames/s
        channels: int = 16  # at sample_rate; twice as many after each stride
        dim: int = 64  # of what is quantized
        fit_steps: int = 600
        batch_size: int = 8  # crops of 32 frames
        learning_rate: float = 2e-3
        seed: int = 0

        def __post_init__(self) -> None:
            check_setting(1000 <= self.sample_rate <= 768000, "sample_rate", "from 1000 to 768000 Hz", self.sample_rate)
            check_setting(1 <= self.num_codebooks <= 64, "num_codebooks", "from 1 to 64", self.num_codebooks)
            check_setting(2 <= self.codebook_size <= 65536, "codebook_size", "from 2 to 65536", self.codebook_size)
            check_setting(self.strides is None or len(self.strides) in range(1, 9) and all(s in range(1, 65) for s in self.strides),
                          "strides", "1 to 8 numbers from 1 to 64, or null", self.strides)
            check_setting(2 <= self.channels <= 256 and self.channels % 2 == 0, "channels", "even, from 2 to 256", self.channels)
            check_setting(1 <= self.dim <= 1024, "dim", "from 1 to 1024", self.dim)
            check_setting(1 <= self.fit_steps, "fit_steps", "1 or more", self.fit_steps)
            check_setting(1 <= self.batch_size <= 4096, "batch_size", "from 1 to 4096", self.batch_size)
            check_setting(0 < self.learning_rate <= 1, "learning_rate", "above 0, at most 1", self.learning_rate)

    def __init__(self, config: Config):
        super().__init__(config)
        strides = config.strides or (max(1, round(config.sample_rate / 62.5 / 64)), 4, 4, 4)
        self.spec = TokenSpec(config.sample_rate, math.prod(strides), config.num_codebooks, config.codebook_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = Encoder(config.channels, strides, config.dim)
            self.decoder = Decoder(config.channels, strides, config.dim)
        self.quantizer = ResidualVQ(config.num_codebooks, config.codebook_size, config.dim)

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """(B, 1, N) -> codes (B, K, ceil(N / hop_length))."""
        self.check_wav(wav)
        wav = F.pad(wav, (0, -wav.shape[-1] % self.spec.hop_length))
        return self.quantizer.encode(blockwise(self.encoder, wav, self.spec.hop_length, BLOCK_FRAMES))

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Codes (B, k, T) of the first k <= K codebooks -> wav (B, 1, T * hop_length) in [-1, 1]."""
        self.check_codes(x, fewer_rows=True)
        return blockwise(self.decoder, self.quantizer.decode(x), self.spec.hop_length, BLOCK_FRAMES).clamp(-1, 1)

    def fit(self, wavs: Iterable[Tensor]) -> None:
        """Trains from scratch for config.fit_steps, the first tenth of them without quantizing, then k-means.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            DataError: there are no wavs.
        """
        config = self.config
        fresh = Codec(config)
        self.load_state_dict(fresh.state_dict())
        generator = torch.Generator().manual_seed(config.seed)
        loss_of = SpectralLoss(config.sample_rate).to(self.device)
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimizer = torch.optim.AdamW(parameters, config.learning_rate, betas=(0.8, 0.99), weight_decay=0.0)
        batches = self._batches(wavs, generator)
        learner = None
        warmup = max(1, config.fit_steps // 10)
        latents = []
        self.history = []
        for step in tqdm(range(config.fit_steps), desc="fitting the codec", unit="step", disable=None):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * self.schedule(step)
            wav = next(batches).to(self.device)
            z = self.encoder(wav)
            commitment_loss = z.new_zeros(())
            if learner is not None:
                depths = self.depths(generator)
                z, commitment_loss = learner.quantize(z, depths)
            elif step >= warmup // 2:
                latents.append(z.detach())
            decoded = self.decoder(z)
            sl = loss_of(decoded, wav)
            loss = sl + F.l1_loss(decoded, wav)/wav.abs().mean().clamp_min(1e-3) + 0.25 * commitment_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            self.history.append((float(sl), float(commitment_loss)))
            if learner is None and step + 1 == warmup:
                points = torch.cat(latents).transpose(1, 2).flatten(0, 1)
                self.quantizer.fit(points, generator)
                learner = CodebookLearner(self.quantizer, generator)
                latents = []
        self.is_fitted.fill_(1)

    def schedule(self, step):
        n = self.config.fit_steps
        return min(1, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * step / n))

    def depths(self, generator):
        K, B = self.config.num_codebooks, self.config.batch_size
        d = torch.randint(1, K + 1, (B,), generator=generator)
        full = torch.rand(B, generator=generator) < 0.5
        return torch.where(full, K, d).tolist()

    def _batches(self, wavs, generator) -> Iterator[Tensor]:
        crop = CROP_FRAMES * self.spec.hop_length
        while True:
            pool = self._pool(wavs, generator)
            for _ in range(POOL_PASSES):
                order = torch.randperm(len(pool), generator=generator)
                if len(order) < self.config.batch_size:
                    order = torch.randint(len(pool), (self.config.batch_size,), generator=generator)
                for idx in order.split(self.config.batch_size):
                    if len(idx) == self.config.batch_size:
                        yield pool[idx]

    def _pool(self, wavs, generator):
        crop = CROP_FRAMES * self.spec.hop_length
        crops = []
        offset = int(torch.randint(crop, (1,), generator=generator))
        rest = torch.zeros(1, 0)
        first = True
        cap = int(POOL_SECONDS * self.config.sample_rate / crop)
        seen = 0
        for wav in training_wavs(wavs):
            if first: wav = wav[:, offset:]; first = False
            rest = torch.cat([rest, wav], 1)
            n = rest.shape[1] // crop
            for c in rest[:, : n * crop].view(n, 1, crop):
                seen += 1
                if len(crops) < cap: crops.append(c.clone())
                else:
                    j = int(torch.randint(seen, (1,), generator=generator))
                    if j < cap: crops[j] = c.clone()
            rest = rest[:, n * crop:]
        if not crops:
            crops = [F.pad(rest, (0, crop - rest.shape[1]))]
        return torch.stack(crops)
