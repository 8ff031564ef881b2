"""The front-end of semantic tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from ...audio.dsp import leading_bands
from ...errors import ConfigError
from ...spec import TokenSpec
from ..base import Frontend, check_setting, check_weights, training_wavs
from ..determinism import full_precision
from ..mel.mel import Mel
from ..neural.crops import generator_for
from ..neural.fit import shown
from ..neural.kmeans import nearest
from ..neural.reservoir import Reservoir
from .encoder import Encoder
from .hubert import HOP, SAMPLE_RATE, HuBERT
from .learning import Learner, LearningSettings, recordings, standardise
from .units import cluster

SHIPPED = Path(__file__).parents[2] / "weights" / "semantic-16khz.safetensors"
#: Settings that the shipped weights fix; they were trained with the defaults.
SHIPPED_SETTINGS = ("sample_rate", "codebook_size", "dim", "num_layers", "num_heads", "window")
NUM_BANDS, STACK = 80, 2  # mel bands, mel frames per frame
QUICK_STEPS = 20  # too few to be of use, but enough to encode a folder
HUBERT_FRAMES = 30_000  # drawn from the files for k-means


class Semantic(Frontend):
    """Tokens of what is said or played, not of how it sounds; they can't be decoded to sound.

    A transformer turns log-mel frames into vectors that depend on about a second on either side; the code (B, 1, T) of
    a frame is the nearest of `codebook_size` vectors, at 50 frames/s. The shipped transformer was trained on speech and
    music. With `encoder="fit"` it is trained on the files, without labels; with `encoder="hubert_base"` it is HuBERT
    base, and only the codewords are found in the files.

    Source: AudioLM (Borsos et al. 2022) for the tokens; HuBERT (Hsu et al. 2021) for the encoder and its training; see
    `Learner` for what removes the voice.

    Example:
        >>> from audiogen import load_frontend
        >>> frontend = load_frontend("semantic")
        >>> frontend.encode(torch.zeros(1, 1, 16000)).shape  # (B, K, T)
        torch.Size([1, 1, 50])
    """

    codewords: Tensor
    learned = True
    decodes = False
    ends_in_zeros = False  # frames see where the sound ends
    block_frames = 250  # beside which the context of a block is short

    @dataclass(frozen=True)
    class Config(LearningSettings):
        """Settings.

        Attributes:
            encoder: "shipped", "fit" to train it on the files, or "hubert_base" for HuBERT base.
            weights: of HuBERT base: "download", or the path of torchaudio's .pth or of a .safetensors with the same
                keys; "random" for tests.
            sample_rate: Hz.
            codebook_size: V.
            dim: D, width of the transformer.
            num_layers: its layers.
            num_heads: attention heads per layer.
            window: frames on either side that a layer attends to.
            fit_steps: training steps of `fit`.
        """

        encoder: Literal["shipped", "fit", "hubert_base"] = "shipped"
        weights: str = "download"
        sample_rate: int = 16000
        codebook_size: int = 300
        dim: int = 192
        num_layers: int = 4
        num_heads: int = 4
        window: int = 16
        fit_steps: int = 3000

        def __post_init__(self) -> None:
            for name, good, rule in (
                ("sample_rate", 4000 <= self.sample_rate <= 768000, "from 4000 to 768000 Hz"),
                ("codebook_size", 2 <= self.codebook_size <= 8192, "from 2 to 8192"),
                ("dim", 2 <= self.dim <= 4096, "from 2 to 4096"),
                ("num_layers", 1 <= self.num_layers <= 64, "from 1 to 64"),
                ("num_heads", 1 <= self.num_heads <= 64, "from 1 to 64"),
                ("window", 1 <= self.window <= 1024, "from 1 to 1024 frames"),
                ("fit_steps", self.fit_steps >= 1, "1 or more"),
                ("crop_frames", 8 <= self.crop_frames <= 4096, "from 8 to 4096 frames"),
                ("batch_size", 1 <= self.batch_size <= 4096, "from 1 to 4096"),
                ("learning_rate", 0 < self.learning_rate <= 1, "above 0, at most 1"),
                ("spread", 0 <= self.spread <= 1, "from 0 to 1"),
                ("seed", 0 <= self.seed < 2**31, f"from 0 to {2**31 - 1}"),
            ):
                check_setting(good, name, rule, getattr(self, name))
            check_setting(
                self.dim % (2 * self.num_heads) == 0, "dim", "a multiple of twice frontend.num_heads", self.dim
            )
            check_weights(self.dim * (6 * NUM_BANDS + 12 * self.dim * self.num_layers), "dim, num_layers")
            if self.encoder == "shipped":
                self._check_shipped()
            if self.encoder == "hubert_base":
                check_setting(
                    self.sample_rate == SAMPLE_RATE,
                    "sample_rate",
                    f"{SAMPLE_RATE} Hz for HuBERT base",
                    self.sample_rate,
                )

        def _check_shipped(self) -> None:
            for field in fields(self):
                value = getattr(self, field.name)
                if field.name in SHIPPED_SETTINGS and value != field.default:
                    raise ConfigError(
                        f"frontend.{field.name}: the shipped weights are for {field.default}, not {value}: leave it "
                        "out, or set frontend.encoder=fit to train an encoder of your own"
                    )

    def __init__(self, config: Config):
        super().__init__(config)
        if config.encoder == "hubert_base":
            self.mel, self.encoder = None, HuBERT()
            self.lookahead, hop_length = self.encoder.reach, HOP
        else:
            hop_length = round(config.sample_rate / 100)
            num_bands, _, top = leading_bands(16000, NUM_BANDS, 160, 8000.0, min(config.sample_rate, 16000))
            self.mel = Mel(Mel.Config(config.sample_rate, num_bands, hop_length, top, stack=STACK))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.encoder = Encoder(
                    STACK * num_bands, config.dim, config.num_layers, config.num_heads, config.window
                )
            self.lookahead = self.encoder.reach + self.mel.lookahead
            hop_length *= STACK
        self.spec = TokenSpec(config.sample_rate, hop_length, 1, config.codebook_size)
        self.register_buffer("codewords", torch.zeros(config.codebook_size, self.encoder.dim))  # (V, D)

    @classmethod
    def at_rate(cls, settings: Mapping[str, Any], sample_rate: int) -> dict[str, Any]:
        """Add sample_rate to settings for `fit`. Trained encoders have a rate of their own."""
        return super().at_rate(settings, sample_rate) if settings.get("encoder") == "fit" else dict(settings)

    def load_pretrained(self) -> None:
        """Load the shipped weights, or those of HuBERT base, whose codewords are still to be fitted.

        Raises:
            DownloadError: they can't be downloaded or read, or are not those of HuBERT base.
        """
        if self.config.encoder == "shipped":
            self.load_state_dict(load_file(SHIPPED))
        if isinstance(self.encoder, HuBERT):
            self.encoder.load(self.config.weights)

    def encode_block(self, wav: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Encode a wav (B, 1, N) as codes (B, 1, ceil(N / hop_length)).

        Each block is encoded together with the frames on which its own depend:

            frames      | reach: kept | this block ....... | reach: lookahead |
            codes                     | of these ......... |
        """
        heard, kept, begin = state or (None, None, 0)
        with full_precision(wav.device):
            if self.mel is not None:
                x, heard = self.mel.encode_block(wav, heard, last)  # (B, F, n)
            else:
                hop_length = self.spec.hop_length
                x = F.pad(wav[:, 0], (0, -wav.shape[2] % hop_length)).unflatten(1, (-1, hop_length)).transpose(1, 2)
            x = x if kept is None else torch.cat([kept, x], 2)
            end = x.shape[2] if last else x.shape[2] - self.encoder.reach
            hidden = self.encoder(x.transpose(1, 2))[:, begin:end]  # (B, n, D)
            codes = nearest(hidden.flatten(0, 1), self.codewords).view(len(wav), 1, -1)
        first = max(0, end - self.encoder.reach)
        return codes, (heard, x[:, :, first:].clone(), end - first)

    def fit(self, wavs: Iterable[Tensor]) -> None:
        """Train the encoder from scratch for config.fit_steps, or find only the codewords of HuBERT base.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            NotFittedError: HuBERT's weights have not been loaded.
            DataError: there are no wavs.
            TrainingError: the loss is not finite.
        """
        if isinstance(self.encoder, HuBERT):
            self._fit_codewords(self.encoder, wavs)
            return
        learner, steps = self.learner(self.recordings(wavs)), self.config.fit_steps
        for step in shown(steps, "the semantic encoder"):
            learner.train_step(step / steps)
        self.load_trained(learner)

    def recordings(self, wavs: Iterable[Tensor]) -> list[Tensor]:
        """Prepare recordings for `learner`: their log-mel power (F, 2 T) float16, at most two hours of it.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            ConfigError: the encoder is not to be trained.
            DataError: there are no wavs.
        """
        config = self.config
        if self.mel is None or config.encoder != "fit":
            raise ConfigError(
                f"frontend.encoder: {config.encoder} is not trained; set frontend.encoder=fit to train an encoder"
            )
        return recordings(wavs, self.mel, config.seed)

    def learner(self, *kinds: Sequence[Tensor]) -> Learner:
        """Return a learner of this front-end, from scratch; see `load_trained`. Standardises the log-mel frames now.

        Args:
            *kinds: lists of what `recordings` returns, of which each is drawn equally often.
        """
        blank = type(self)(self.config).encoder  # a second fit starts as the first did
        assert self.mel is not None and isinstance(blank, Encoder)
        self.is_fitted.zero_()
        standardise(self.mel, kinds)
        return Learner(blank.to(self.device, self.dtype), self.mel, kinds, self.config.codebook_size, self.config)

    @torch.no_grad()
    def load_trained(self, learner: Learner) -> None:
        """Copy the current weights of a learner, and find the codewords."""
        self.encoder.load_state_dict(learner.average.state_dict())
        self.codewords.copy_(learner.codewords())
        self.is_fitted.fill_(1)

    def quick_variant(self) -> "Semantic":
        """Return a front-end with fewer training steps; self if already fitted."""
        if self.fitted or self.config.encoder != "fit":
            return self
        fewer = replace(self.config, fit_steps=min(QUICK_STEPS, self.config.fit_steps))
        return type(self)(fewer).to(self.device, self.dtype)

    @torch.no_grad()
    def _fit_codewords(self, encoder: HuBERT, wavs: Iterable[Tensor]) -> None:
        self.is_fitted.zero_()
        encoder.check_loaded()
        points = Reservoir(HUBERT_FRAMES, generator_for(self.config.seed, 1))
        length = self.block_frames * self.spec.hop_length
        for wav in training_wavs(wavs):
            for piece in wav.split(length, dim=1):
                padded = F.pad(piece, (0, -piece.shape[1] % self.spec.hop_length))
                blocks = padded.to(self.codewords).unflatten(1, (-1, self.spec.hop_length))  # (1, T, HOP)
                points.add(encoder(blocks)[0].cpu())
        self.codewords.copy_(cluster([points.rows()], self.config.codebook_size, self.config.seed))
        self.is_fitted.fill_(1)
