"""Our own neural codec: a small causal autoencoder with a residual vector quantizer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ConfigError
from ..spec import TokenSpec
from .base import Frontend, check_setting, check_weights
from .determinism import full_precision
from .neural.fit import check_training, learn, training_batches
from .neural.networks import REACH, SPECTRA, Decoder, Encoder
from .neural.quantizer import ResidualVQ
from .neural.trainer import Trainer, TrainingSettings
from .neural.transplant import transplant

WEIGHTS = Path(__file__).parents[1] / "weights"
#: The weights that come with the package, by sample rate.
SHIPPED = {16000: WEIGHTS / "codec-16khz.safetensors", 44100: WEIGHTS / "codec-44khz.safetensors"}
SHIPPED_CODEBOOKS = 12
QUICK_STEPS = 60  # too few to sound good, but enough to encode a folder
#: Settings that the shipped weights fix; they were trained with the defaults.
SHIPPED_SETTINGS = (
    "codebook_size",
    "hop_length",
    "dim",
    "latent_dim",
    "lookup_dim",
    "encoder_layers",
    "decoder_layers",
)


class Codec(Frontend):
    """A neural codec, shipped with weights or trained on the folder; its first rows decode to coarser audio.

    It quantizes the latent frames of an autoencoder of spectra to codes (B, K, T). The shipped weights are for 16 and
    44.1 kHz and give 50 frames/s of up to 12 codebooks with 1024 codes each: 0.5 kbit/s per codebook. With
    `weights="fit"` it is trained on the given files, at any sample rate; with `weights="finetune"` too, beginning with
    the shipped weights.

    Frame t depends on samples before (t + 3/2) hop_length and affects samples from (t - 1/2) hop_length on, so the
    latency is two frames and the limiter's (44.5 ms with the shipped weights).

    Source: SoundStream (Zeghidour et al. 2021) for the quantizer and its training, EnCodec (Défossez et al. 2022) for
    the balance of losses, Vocos (Siuzdak 2023) for the networks of both encoder and decoder.

    Example:
        >>> from audiogen import load_frontend
        >>> frontend = load_frontend("codec", num_codebooks=4)
        >>> frontend.encode(torch.zeros(1, 1, 16000)).shape  # (B, K, T)
        torch.Size([1, 4, 50])
    """

    level: Tensor
    learned = True
    lookahead = output_delay = REACH
    block_frames = 50  # fits a CPU's cache
    reconfigurable = frozenset({"num_codebooks"})
    highest_default_rate = max(SHIPPED)

    @dataclass(frozen=True)
    class Config(TrainingSettings):
        """Settings.

        Attributes:
            weights: "shipped", "fit" to train new ones on the files, or "finetune" to train the shipped ones on them.
            sample_rate: Hz; of the shipped weights 16000 or 44100.
            num_codebooks: K.
            codebook_size: V.
            hop_length: samples per frame, an even number; None: about 50 frames/s.
            dim: width of the networks.
            encoder_layers, decoder_layers: number of blocks.
            latent_dim: dimension of the latent frames that are quantized.
            lookup_dim: dimension to which they are projected to compare directions with codewords; None: compare
                distances, without projection.
            fit_steps: training steps of `fit`.
        """

        weights: Literal["shipped", "fit", "finetune"] = "shipped"
        sample_rate: int = 16000
        num_codebooks: int = 6
        codebook_size: int = 1024
        hop_length: int | None = None
        dim: int = 256
        encoder_layers: int = 3
        decoder_layers: int = 4
        latent_dim: int = 32
        lookup_dim: int | None = None
        fit_steps: int = 1200

        def __post_init__(self) -> None:
            check_setting(1000 <= self.sample_rate <= 768000, "sample_rate", "from 1000 to 768000 Hz", self.sample_rate)
            check_setting(1 <= self.num_codebooks <= 64, "num_codebooks", "from 1 to 64", self.num_codebooks)
            check_setting(2 <= self.codebook_size <= 65536, "codebook_size", "from 2 to 65536", self.codebook_size)
            check_setting(
                self.hop_length is None or 4 <= self.hop_length <= 16384 and self.hop_length % SPECTRA == 0,
                "hop_length",
                "null, or an even number from 4 to 16384",
                self.hop_length,
            )
            check_setting(2 <= self.dim <= 4096, "dim", "from 2 to 4096", self.dim)
            for key in ("encoder_layers", "decoder_layers"):
                check_setting(1 <= getattr(self, key) <= 64, key, "from 1 to 64", getattr(self, key))
            check_setting(1 <= self.latent_dim <= 1024, "latent_dim", "from 1 to 1024", self.latent_dim)
            check_setting(
                self.lookup_dim is None or 1 <= self.lookup_dim <= self.latent_dim,
                "lookup_dim",
                "null, or from 1 to frontend.latent_dim",
                self.lookup_dim,
            )
            check_weights(
                self.num_codebooks * self.codebook_size * self.latent_dim, "num_codebooks, codebook_size, latent_dim"
            )
            hop_length = self.hop_length or frame_samples(self.sample_rate)
            layers = self.encoder_layers + self.decoder_layers
            check_weights(
                self.dim * (8 * hop_length + 6 * self.dim * layers + 2 * self.latent_dim),
                "hop_length, dim, encoder_layers, decoder_layers",
            )
            check_setting(self.fit_steps >= 1, "fit_steps", "1 or more", self.fit_steps)
            check_training(self)
            if self.weights != "fit":
                self._check_shipped()

        def _check_shipped(self) -> None:
            for field in fields(self):
                value = getattr(self, field.name)
                if field.name in SHIPPED_SETTINGS and value != field.default:
                    raise ConfigError(
                        f"frontend.{field.name}: the shipped weights are for {field.default}, not "
                        f"{value}: leave it out, or set frontend.weights=fit to train your own codec"
                    )
            if self.weights == "shipped" and self.sample_rate not in SHIPPED:
                rates = " and ".join(map(str, SHIPPED))
                raise ConfigError(
                    f"frontend.sample_rate: the shipped weights are for {rates} Hz, not {self.sample_rate}: leave it "
                    "out, or set frontend.weights=finetune to train them on your files at that rate"
                )
            check_setting(
                self.num_codebooks <= SHIPPED_CODEBOOKS,
                "num_codebooks",
                f"at most {SHIPPED_CODEBOOKS} (the shipped ones), unless frontend.weights=fit",
                self.num_codebooks,
            )

    def __init__(self, config: Config):
        super().__init__(config)
        self.learned = config.weights != "shipped"
        hop_length = config.hop_length or frame_samples(config.sample_rate)
        self.spec = TokenSpec(config.sample_rate, hop_length, config.num_codebooks, config.codebook_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = Encoder(hop_length, config.dim, config.encoder_layers, config.latent_dim)
            self.decoder = Decoder(config.latent_dim, config.dim, config.decoder_layers, hop_length)
            self.quantizer = ResidualVQ(
                config.num_codebooks, config.codebook_size, config.latent_dim, config.lookup_dim
            )
        self.register_buffer("level", torch.ones(()))  # RMS of the training audio; the networks see RMS 1

    @classmethod
    def at_rate(cls, settings: Mapping[str, Any], sample_rate: int) -> dict[str, Any]:
        """Add sample_rate to settings: audio is resampled to that of the shipped weights, but not for training."""
        shipped = settings.get("weights", "shipped") == "shipped"
        return super().at_rate(settings, shipped_rate(sample_rate) if shipped else sample_rate)

    @property
    def fitted(self) -> bool:
        """Whether there are weights."""
        return bool(self.is_fitted)

    def load_pretrained(self) -> None:
        """Load the shipped weights, unless they are to be trained or replaced by new ones."""
        if self.config.weights == "shipped":
            shipped = load_file(SHIPPED[self.config.sample_rate])
            self.load_state_dict(
                {
                    name: shipped[name][: here.shape[0]] if here.ndim else shipped[name]
                    for name, here in self.state_dict().items()
                }
            )

    def encode_block(self, wav: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Encode a wav (B, 1, N) as codes (B, K, ceil(N / hop_length)); zeros pad both ends."""
        with full_precision(wav.device):
            latent, state = self.encoder(wav / self.level, state, last)
            return self.quantizer.encode(latent), state

    def decode_block(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Decode codes (B, k, T) of the first k <= K codebooks to a wav (B, 1, T * hop_length)."""
        with full_precision(x.device):
            wav, state = self.decoder(self.quantizer.decode(x), state, last)
        return wav * self.level, state

    def fit(self, wavs: Iterable[Tensor]) -> None:
        """Train for config.fit_steps on crops of the files, in bounded memory.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            ConfigError: the weights are the shipped ones.
            DataError: there are no wavs.
            TrainingError: the loss is NaN or explodes repeatedly.
        """
        learn(self, wavs, self.config.fit_steps, "the codec")

    def quick_variant(self) -> "Codec":
        """Return a codec with fewer training steps; self if already fitted."""
        if self.fitted:
            return self
        fewer = replace(self.config, fit_steps=min(QUICK_STEPS, self.config.fit_steps))
        return type(self)(fewer).to(self.device, self.dtype)

    def trainer(self, wavs: Iterable[Tensor]) -> Trainer:
        """Return a trainer of this codec, from scratch or from the shipped weights.

        It sets `level` now; `load_trained` sets the weights.

        Raises:
            ConfigError: the weights are the shipped ones.
            DataError: there are no wavs.
        """
        config = self.config
        if config.weights == "shipped":
            raise ConfigError(
                "frontend.weights: the shipped weights can't be fitted; set frontend.weights=finetune to train "
                "them on your files, or frontend.weights=fit to train new ones"
            )
        self.is_fitted.zero_()
        level, batch = training_batches(wavs, self.spec, config.batch_size, config.seed)
        self.level.copy_(level)
        blank = type(self)(config).to(self.device, self.dtype)  # a second fit starts from the same weights as the first
        finetunes = config.weights == "finetune"
        if finetunes:
            transplant(load_file(SHIPPED[shipped_rate(config.sample_rate)]), blank)
        trainer = Trainer(blank.encoder, blank.quantizer, blank.decoder, config.sample_rate, config, batch)
        trainer.quantized = finetunes
        return trainer

    def load_trained(self, trainer: Trainer) -> None:
        """Copy the current weights of a trainer."""
        trainer.export(self.encoder, self.quantizer, self.decoder)
        self.is_fitted.fill_(1)


def shipped_rate(sample_rate: int) -> int:
    """Return the sample rate of the shipped weights that suit audio of a sample rate: the next lower, or the lowest."""
    return max((rate for rate in SHIPPED if rate <= sample_rate), default=min(SHIPPED))


def frame_samples(sample_rate: int) -> int:
    """Return the even number of samples nearest to 20 ms."""
    return SPECTRA * round(0.02 / SPECTRA * sample_rate)
