"""A vocoder: mel frames back to sound by a network, in the place of Griffin-Lim."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..codec.networks import Decoder
from ..codec.training import Trainer, TrainingSettings
from ..spec import FrameSpec
from .learning import training_batches


class Vocoder(nn.Module):
    """Mel frames (B, F, T) -> wav (B, 1, T hop_length), as it was trained to.

    Source: Vocos (Siuzdak 2023); causal here, since mel frames look ahead already.
    """

    def __init__(self, spec: FrameSpec, dim: int, num_layers: int):
        super().__init__()
        self.spec, self.dim, self.num_layers = spec, dim, num_layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.decoder = Decoder(spec.num_features, dim, num_layers, spec.hop_length)
        self.register_buffer("level", torch.ones(()))  # root mean square of the training audio, 1 to the network

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        wav, state = self.decoder(x, state)
        return (wav * self.level).clamp(-1, 1), state

    def trainer(self, frames_of: Callable[[Tensor], Tensor], wavs: Iterable[Tensor]) -> Trainer:
        """What trains it, from scratch, to make files (1, N) of what `frames_of` makes of (B, 1, N).

        Its `level` is set here, its weights by `take`.

        Raises:
            DataError: there are no wavs.
        """
        settings, rate = TrainingSettings(), self.spec.sample_rate
        level, batch = training_batches(wavs, self.spec, settings.batch_size, settings.seed)
        self.level.copy_(level)
        blank = type(self)(self.spec, self.dim, self.num_layers).to(self.level)
        return Trainer(_Analysis(frames_of, self.level), None, blank.decoder, rate, settings, batch)

    def take(self, trainer: Trainer) -> None:
        """The weights of a trainer as they stand."""
        self.decoder.load_state_dict(trainer.modules["decoder"].state_dict())


class _Analysis(nn.Module):
    """Wavs of unit power as the frames of what they are at the level of the files; nothing here learns."""

    def __init__(self, frames_of: Callable[[Tensor], Tensor], level: Tensor):
        super().__init__()
        self.frames_of = frames_of
        self.register_buffer("level", level.clone())

    @torch.no_grad()
    def forward(self, wav: Tensor) -> tuple[Tensor, None]:
        return self.frames_of(wav * self.level), None
