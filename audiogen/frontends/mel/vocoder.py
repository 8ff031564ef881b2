"""A vocoder network that decodes mel frames in place of Griffin-Lim, and the base of front-ends that can have one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...spec import FrameSpec
from ..base import Frontend, check_setting, check_weights
from ..neural.fit import check_training, learn, training_batches
from ..neural.networks import REACH, SPECTRA, Decoder
from ..neural.trainer import Trainer, TrainingSettings
from .griffin_lim import BLOCK_FRAMES, LOOK_AHEAD


class Vocoder(nn.Module):
    """Decodes mel frames (B, F, T) to a wav (B, 1, T hop_length).

    Source: Vocos (Siuzdak 2023), but with causal blocks, since mel frames already look ahead.
    """

    level: Tensor

    @dataclass(frozen=True)
    class Config(TrainingSettings):
        """Settings.

        Attributes:
            dim: width of the blocks.
            num_layers: number of blocks.
            steps: training steps of `fit`.
        """

        dim: int = 256
        num_layers: int = 4
        steps: int = 1200

        def __post_init__(self) -> None:
            check_setting(2 <= self.dim <= 4096, "vocoder.dim", "from 2 to 4096", self.dim)
            check_setting(1 <= self.num_layers <= 64, "vocoder.num_layers", "from 1 to 64", self.num_layers)
            check_setting(self.steps >= 1, "vocoder.steps", "1 or more", self.steps)
            check_training(self, "vocoder.")

    def __init__(self, config: Config, spec: FrameSpec):
        super().__init__()
        check_setting(
            spec.hop_length % SPECTRA == 0, "hop_length", "an even number where there is a vocoder", spec.hop_length
        )
        check_weights(
            config.dim * (spec.num_features + 3 * spec.hop_length + 6 * config.dim * config.num_layers),
            "vocoder.dim, vocoder.num_layers",
        )
        self.config, self.spec = config, spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.decoder = Decoder(spec.num_features, config.dim, config.num_layers, spec.hop_length)
        self.register_buffer("level", torch.ones(()))  # RMS of the training audio; the network gives RMS 1

    def forward(self, x: Tensor, state: Any = None, last: bool = True) -> tuple[Tensor, Any]:
        """Decode the next frames (B, F, t) to the samples that are complete by now."""
        wav, state = self.decoder(x, state, last)
        return wav * self.level, state

    def trainer(self, frames_of: Callable[[Tensor], Tensor], wavs: Iterable[Tensor]) -> Trainer:
        """Return a trainer of this vocoder, from scratch. Sets `level` now; `load_trained` sets the weights.

        Args:
            frames_of: converts wavs (B, 1, N) to the frames (B, F, T) to be decoded.
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            DataError: there are no wavs.
        """
        level, batch = training_batches(wavs, self.spec, self.config.batch_size, self.config.seed)
        self.level.copy_(level)
        blank = type(self)(self.config, self.spec).to(self.level)
        return Trainer(_Analysis(frames_of, self.level), None, blank.decoder, self.spec.sample_rate, self.config, batch)

    def load_trained(self, trainer: Trainer) -> None:
        """Copy the current weights of a trainer."""
        self.decoder.load_state_dict(trainer.modules["decoder"].state_dict())


class MelFrontend(Frontend):
    """Base of mel front-ends, decoded by a vocoder if `config.vocoder` has settings for one.

    The vocoder is trained on the frames of this front-end, after everything else is fitted.
    """

    learned = True
    vocoder: Any  # a Vocoder, or None for Griffin-Lim
    stack: int = 1  # mel frames per frame

    def fit_analysis(self, wavs: Iterable[Tensor]) -> None:
        """Fit everything but the vocoder."""
        raise NotImplementedError

    def frames_of(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def frames_heard(self, wav: Tensor) -> Tensor:
        """Convert a wav (B, 1, N) of a block to the mel frames to be decoded, without checks that wait for a GPU."""
        return self.frames_of(self.encode_block(wav, None, last=True)[0])

    def fit(self, wavs: Iterable[Tensor]) -> None:
        """Fit to files in bounded memory: first the analysis, then the vocoder if there is one.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            DataError: there are no wavs, or fewer distinct frames than codes.
            TrainingError: the vocoder's loss is NaN or explodes repeatedly.
        """
        if self.vocoder is not None:
            return learn(self, wavs, self.config.vocoder.steps, "the vocoder")
        self.is_fitted.zero_()
        self.fit_analysis(wavs)
        self.is_fitted.fill_(1)

    def trainer(self, wavs: Iterable[Tensor]) -> Trainer:
        """Fit everything else and return a trainer of the vocoder; `load_trained` sets the vocoder's weights.

        Raises:
            ConfigError: there is no vocoder.
            DataError: see `fit`.
        """
        check_setting(
            self.vocoder is not None, "vocoder", "set to train one, for example frontend.vocoder.steps=1200", None
        )
        self.is_fitted.zero_()
        plain = self.without_vocoder()
        plain.fit(wavs)
        self.load_state_dict(plain.state_dict(), strict=False)
        self.is_fitted.zero_()
        return self.vocoder.trainer(plain.frames_heard, wavs)

    def load_trained(self, trainer: Trainer) -> None:
        """Copy the current weights of a trainer to the vocoder."""
        self.vocoder.load_trained(trainer)
        self.is_fitted.fill_(1)

    def without_vocoder(self) -> "MelFrontend":
        """Return a copy with the same frames or codes that decodes them by Griffin-Lim."""
        plain = type(self)(replace(self.config, vocoder=None)).to(self.device, self.dtype)
        kept = plain.state_dict().keys()
        plain.load_state_dict({name: tensor for name, tensor in self.state_dict().items() if name in kept})
        return plain.eval()

    def quick_variant(self) -> "MelFrontend":
        """Return a front-end without the vocoder; self if already fitted."""
        return self if self.fitted or self.vocoder is None else self.without_vocoder()

    @property
    def output_delay(self) -> float:  # type: ignore[override]
        """How much audio `decode_block` holds back for the next block, in frames."""
        return (LOOK_AHEAD if self.vocoder is None else REACH) / self.stack

    @property
    def decode_frames(self) -> int:  # type: ignore[override]
        """Frames that become sound together."""
        return 1 if self.vocoder is not None else BLOCK_FRAMES // self.stack


class _Analysis(nn.Module):
    """Computes the frames of wavs of RMS 1, scaled back to the level of the files. It has no weights."""

    level: Tensor

    def __init__(self, frames_of: Callable[[Tensor], Tensor], level: Tensor):
        super().__init__()
        self.frames_of = frames_of
        self.register_buffer("level", level.clone())

    @torch.no_grad()
    def forward(self, wav: Tensor) -> tuple[Tensor, None]:
        return self.frames_of(wav * self.level), None
