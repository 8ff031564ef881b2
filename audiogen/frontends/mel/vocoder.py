"""A vocoder: mel frames back to sound by a network, in the place of Griffin-Lim; and front-ends that may have one."""

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


class Vocoder(nn.Module):
    """Mel frames (B, F, T) -> wav (B, 1, T hop_length), as it was trained to.

    Source: Vocos (Siuzdak 2023); its blocks are causal here, since mel frames look ahead already.
    """

    @dataclass(frozen=True)
    class Config(TrainingSettings):
        """Settings.

        Attributes:
            dim, num_layers: of its blocks.
            steps: of training, in `fit`.
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
        self.register_buffer("level", torch.ones(()))  # root mean square of the training audio, 1 to the network

    def forward(self, x: Tensor, state: Any = None, last: bool = True) -> tuple[Tensor, Any]:
        wav, state = self.decoder(x, state, last)
        return (wav * self.level).clamp(-1, 1), state

    def trainer(self, frames_of: Callable[[Tensor], Tensor], wavs: Iterable[Tensor]) -> Trainer:
        """What trains it, from scratch, to make files (1, N) of what `frames_of` makes of (B, 1, N).

        Its `level` is set here, its weights by `load_trained`.

        Raises:
            DataError: there are no wavs.
        """
        level, batch = training_batches(wavs, self.spec, self.config.batch_size, self.config.seed)
        self.level.copy_(level)
        blank = type(self)(self.config, self.spec).to(self.level)
        return Trainer(_Analysis(frames_of, self.level), None, blank.decoder, self.spec.sample_rate, self.config, batch)

    def load_trained(self, trainer: Trainer) -> None:
        """The weights of a trainer as they stand."""
        self.decoder.load_state_dict(trainer.modules["decoder"].state_dict())


class MelFrontend(Frontend):
    """A front-end of mel frames that a vocoder makes sound of, where `config.vocoder` has settings for one.

    Its vocoder is trained on the frames that it makes itself, once all else is fitted.
    """

    learned = True
    output_delay = REACH
    vocoder: Vocoder | None

    def fit_analysis(self, wavs: Iterable[Tensor]) -> None:
        """Fits all but the vocoder."""
        raise NotImplementedError

    def frames_of(self, x: Tensor) -> Tensor:
        """What `encode` gives -> the frames (B, F, T) that decoding makes sound of."""
        raise NotImplementedError

    def frames_heard(self, wav: Tensor) -> Tensor:
        """Those of a wav (B, 1, N)."""
        return self.frames_of(self.encode(wav))

    def fit(self, wavs: Iterable[Tensor]) -> None:
        """Fits to files, in memory that does not grow with them: what makes the frames, then the vocoder if any.

        Args:
            wavs: re-iterable of (1, N) at spec.sample_rate.

        Raises:
            DataError: there are no wavs, or fewer distinct frames than codes.
            TrainingError: the vocoder's loss is not a number.
        """
        if self.vocoder is not None:
            return learn(self, wavs, self.config.vocoder.steps, "the vocoder")
        self.is_fitted.zero_()
        self.fit_analysis(wavs)
        self.is_fitted.fill_(1)

    def trainer(self, wavs: Iterable[Tensor]) -> Trainer:
        """What trains the vocoder. All else is fitted here; the vocoder's weights come by `load_trained`.

        Raises:
            ConfigError: it has none.
            DataError: as `fit`.
        """
        check_setting(
            self.vocoder is not None,
            "vocoder",
            "some settings, such as frontend.vocoder.steps=1200, where one is to be trained",
            None,
        )
        self.is_fitted.zero_()
        plain = self.without_vocoder()
        plain.fit(wavs)
        self.load_state_dict(plain.state_dict(), strict=False)
        self.is_fitted.zero_()
        return self.vocoder.trainer(plain.frames_heard, wavs)

    def load_trained(self, trainer: Trainer) -> None:
        """The vocoder of a trainer as it stands."""
        self.vocoder.load_trained(trainer)
        self.is_fitted.fill_(1)

    def without_vocoder(self) -> "MelFrontend":
        """One that gives the same frames or codes, and makes sound of them by Griffin-Lim."""
        plain = type(self)(replace(self.config, vocoder=None)).to(self.device, self.dtype)
        kept = plain.state_dict().keys()
        plain.load_state_dict({name: tensor for name, tensor in self.state_dict().items() if name in kept})
        return plain.eval()

    def quick_variant(self) -> "MelFrontend":
        return self if self.fitted or self.vocoder is None else self.without_vocoder()

    @property
    def streams(self) -> bool:
        return self.vocoder is not None


class _Analysis(nn.Module):
    """Wavs of unit power as the frames of what they are at the level of the files; nothing here learns."""

    def __init__(self, frames_of: Callable[[Tensor], Tensor], level: Tensor):
        super().__init__()
        self.frames_of = frames_of
        self.register_buffer("level", level.clone())

    @torch.no_grad()
    def forward(self, wav: Tensor) -> tuple[Tensor, None]:
        return self.frames_of(wav * self.level), None
