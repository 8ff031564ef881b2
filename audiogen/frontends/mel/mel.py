"""Continuous log-mel frames, standardised on the training files and decoded by Griffin-Lim or a vocoder."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...audio.dsp import HIGHEST_MEL_RATE, leading_bands, mel_filterbank
from ...errors import ConfigError
from ...spec import FrameSpec
from ..base import check_setting, training_wavs
from ..determinism import full_precision
from ..streaming import blockwise
from .griffin_lim import GriffinLim
from .spectrum import REACH, SpectrumNetwork, frames_at
from .vocoder import MelFrontend, Vocoder

SMALLEST_STD = 0.1  # nats; avoids amplifying nearly constant bands to variance 1


class Mel(MelFrontend):
    """Log-mel frames (B, F, T) float32 with mean 0 and variance 1 per feature over the training files.

    Frame t is the log power in num_features mel bands (Slaney's scale and norm, librosa's default) of a Hann window of
    4 hops centred at sample t * hop_length, with zeros beyond the ends and a floor 110 dB below the peak of a
    full-scale sine. Matches librosa except that T = ceil(N / hop_length): if hop_length divides N, librosa adds a frame
    centred after the end.

    A frame looks one hop ahead, so a stream of frames is two hops behind the audio. Griffin-Lim decodes a stream in
    blocks of about half a second; a vocoder, trained on the same files, adds half a hop. Decoding is deterministic.

    With `spectrum="shipped"`, Griffin-Lim starts from the linear spectrum that the shipped network estimates, which
    knows where harmonics lie that share a band. The network accepts only frames like the base model's.

    With `stack`, so many mel frames form one frame of the model, whose values are ordered by band, then by time: a
    model takes fewer steps, and the values of the lower bands come first. The end of a file is filled with silence.

    Source: librosa.feature.melspectrogram
    """

    basis: Tensor
    mean: Tensor
    std: Tensor
    lookahead = 1
    highest_default_rate = HIGHEST_MEL_RATE
    block_frames = 1024
    reconfigurable = frozenset({"griffin_lim_iterations"})

    @dataclass(frozen=True)
    class Config:
        sample_rate: int = 16000  # Hz
        num_features: int = 80
        hop_length: int | None = None  # samples; None: the power of two nearest 16 ms
        f_max: float | None = None  # Hz, upper edge of the last band; None: half the sample rate
        griffin_lim_iterations: int = 60
        spectrum: Literal["smooth", "shipped"] = "smooth"  # what Griffin-Lim starts from
        vocoder: Vocoder.Config | None = None  # None: Griffin-Lim
        stack: int = 1  # mel frames per frame: 1, 2, 4 or 8

        def __post_init__(self) -> None:
            check_setting(self.stack in (1, 2, 4, 8), "stack", "1, 2, 4 or 8", self.stack)
            check_setting(self.spectrum in ("smooth", "shipped"), "spectrum", "smooth or shipped", self.spectrum)
            check_setting(1000 <= self.sample_rate <= 768000, "sample_rate", "from 1000 to 768000 Hz", self.sample_rate)
            check_setting(1 <= self.num_features <= 1024, "num_features", "from 1 to 1024", self.num_features)
            check_setting(
                self.hop_length is None or 1 <= self.hop_length <= 16384,
                "hop_length",
                "from 1 to 16384 samples or null",
                self.hop_length,
            )
            check_setting(
                self.f_max is None or 20 <= self.f_max <= self.sample_rate / 2,
                "f_max",
                "from 20 Hz to half the sample rate or null",
                self.f_max,
            )
            check_setting(
                1 <= self.griffin_lim_iterations <= 10000,
                "griffin_lim_iterations",
                "from 1 to 10000",
                self.griffin_lim_iterations,
            )

    def __init__(self, config: Config):
        super().__init__(config)
        self.stack, self.lookahead = config.stack, 1 / config.stack
        #: Samples per mel frame; the frames of `spec` are `stack` times as long.
        self.hop_length = hop_length = config.hop_length or 2 ** round(math.log2(0.016 * config.sample_rate))
        self.spec = FrameSpec(
            config.sample_rate, hop_length * config.stack, config.num_features * config.stack, config.stack
        )
        self.n_fft = 4 * hop_length
        self.floor = 1e-11 * (self.n_fft / 4) ** 2  # |STFT|^2 of a full-scale sine peaks at (n_fft / 4)^2
        basis = mel_filterbank(config.sample_rate, self.n_fft, config.num_features, config.f_max)
        if not bool((basis.sum(1) > 0).all()):
            raise ConfigError(
                f"frontend.num_features: {config.num_features} bands are too many for windows of {self.n_fft} samples "
                f"at {config.sample_rate} Hz, since some would contain no frequency: choose fewer, or a longer "
                "frontend.hop_length"
            )
        self.register_buffer("basis", basis.float(), persistent=False)  # (F, n_fft // 2 + 1)
        self.register_buffer("mean", torch.zeros(config.num_features))  # (F,) nats
        self.register_buffer("std", torch.ones(config.num_features))  # (F,) nats
        plain = FrameSpec(config.sample_rate, hop_length, config.num_features)
        self.vocoder = None if config.vocoder is None else Vocoder(config.vocoder, plain)
        self.spectrum = self._shipped_network() if config.spectrum == "shipped" and self.vocoder is None else None

    def _shipped_network(self) -> SpectrumNetwork:
        config, known = self.config, frames_at(self.config.sample_rate)
        own = (config.num_features, self.hop_length, config.f_max)
        if own != known:
            settings = ("num_features", "hop_length", "f_max")
            wanted = " ".join(f"frontend.{name}={value}" for name, value in zip(settings, known, strict=True))
            raise ConfigError(
                f"frontend.spectrum: at {config.sample_rate} Hz the shipped network needs frames with {wanted}: set "
                "these, or frontend.spectrum=smooth"
            )
        with torch.random.fork_rng(devices=[]):
            return SpectrumNetwork(config.sample_rate).load_shipped()

    @torch.no_grad()
    def resampled(self, sample_rate: int, **settings: Any) -> "Mel":
        """Return a front-end for another sample rate, whose frames are the leading bands of this one's frames.

        It has the bands that end below half the rate, and frames as long as these to within 4 %.

        Args:
            sample_rate: Hz.
            **settings: settings that leave the frames as they are.

        Raises:
            ConfigError: the rate is out of range.
        """
        own = self.config
        num_features, hop_length, f_max = leading_bands(
            own.sample_rate, own.num_features, self.hop_length, own.f_max or own.sample_rate / 2, sample_rate
        )
        config = Mel.Config(sample_rate, num_features, hop_length, f_max, stack=self.stack, **settings)
        other = Mel(config).to(self.device, self.dtype)
        # |STFT|^2 grows with the square of the window's length, for tones as for noise.
        other.mean.copy_(self.mean[:num_features] + 2 * math.log(other.n_fft / self.n_fft))
        other.std.copy_(self.std[:num_features])
        other.is_fitted.copy_(self.is_fitted)
        return other.eval()

    def encode_block(self, wav: Tensor, state: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        """Encode a wav (B, 1, N) as standardised frames (B, F, ceil(N / hop_length))."""
        with full_precision(wav.device):
            power, state = self.power_block(wav, state, last)
            return self.stacked((self._log(power) - self.mean[:, None]) / self.std[:, None]), state

    def decode_block(self, x: Tensor, state: Any, last: bool) -> tuple[Tensor, Any]:
        """Decode a block of frames (B, F, t) by the vocoder or by Griffin-Lim.

        Values are clamped to the range from the floor (silence) to the loudest that a wav can have.
        """
        with full_precision(x.device):
            x = self.frames_of(x)
            if self.vocoder is not None:
                return self.vocoder((self._log_power(x) - self.mean[:, None]) / self.std[:, None], state, last)
            reach = 0 if self.spectrum is None else REACH
            iterations = self.config.griffin_lim_iterations
            invert = GriffinLim(self.basis, self.hop_length, iterations, self.spectrum, reach)
            wav, state = invert(self.power_of(x), state, last)
            return wav.unsqueeze(1), state

    @torch.no_grad()
    def fit_analysis(self, wavs: Iterable[Tensor]) -> None:
        """Compute mean and standard deviation per feature, in one pass over the training files."""
        count = 0
        total = torch.zeros(self.config.num_features, dtype=torch.float64, device=self.device)
        squares = torch.zeros_like(total)
        for wav in training_wavs(wavs):
            for power in self._powers(wav.to(self.mean).unsqueeze(0)):
                log_power = self._log(power)[0].double()  # (F, T)
                count += log_power.shape[1]
                total += log_power.sum(1)
                squares += log_power.square().sum(1)
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        self.mean.copy_(mean)
        self.std.copy_(variance.sqrt().clamp_min(SMALLEST_STD))

    def frames_of(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.stack)).transpose(2, 3).flatten(2)  # (B, F * stack, T) -> (B, F, T * stack)

    def stacked(self, x: Tensor) -> Tensor:
        """Stack standardised mel frames, the reverse of `frames_of`: (B, F, T * stack) -> (B, F * stack, T)."""
        return x.unflatten(2, (-1, self.stack)).transpose(2, 3).flatten(1, 2)

    def power(self, wav: Tensor) -> Tensor:
        """Compute librosa's mel power of a wav: (B, 1, N) -> (B, F, T * stack), nonnegative."""
        return torch.cat(list(self._powers(wav)), dim=-1)

    def power_of(self, x: Tensor) -> Tensor:
        """Compute the mel power of standardised frames: (B, F, T) -> (B, F, T), nonnegative."""
        power = self._log_power(x).exp() - self.floor
        return torch.where(power > 1e-3 * self.floor, power, 0)  # rounding errors must not be audible

    def power_block(self, wav: Tensor, state: Tensor | None, last: bool) -> tuple[Tensor, Tensor]:
        """Compute the mel power of the next block for `encode_block`; `state` holds samples that later frames need."""
        # Frame t sees [t hop - n_fft / 2, t hop + n_fft / 2), shifted to the right by the silence before the start:
        #    | n_fft / 2 zeros | N samples ............. | zeros up to the end of the last frame |
        #    | frame 0 sees this ....... |
        hop_length, half = self.hop_length, self.n_fft // 2
        wav = torch.cat([wav.new_zeros(len(wav), half) if state is None else state, wav.squeeze(1)], dim=1)
        if last:  # one frame for each hop begun; the buffer starts half a window before the first frame's centre
            count = -(-(wav.shape[1] - half) // (hop_length * self.stack)) * self.stack
            wav = F.pad(wav, (0, max(0, (count - 1) * hop_length + self.n_fft - wav.shape[1])))
        else:
            count = ((wav.shape[1] - self.n_fft) // hop_length + 1) // self.stack * self.stack
        state = wav[:, count * hop_length :].clone()
        window = torch.hann_window(self.n_fft, dtype=wav.dtype, device=wav.device)
        seen = wav[:, : (count - 1) * hop_length + self.n_fft]
        spectrum = torch.stft(seen, self.n_fft, hop_length, window=window, center=False, return_complex=True)
        return self.basis @ spectrum.abs().square(), state  # (B, bins, n) -> (B, F, n)

    def _powers(self, wav: Tensor) -> Iterator[Tensor]:
        size = self.block_frames * self.hop_length
        return blockwise(self.power_block, [wav], size, size, flushes=True)

    def _log_power(self, x: Tensor) -> Tensor:
        """Convert frames to log mel power, clamped to the range from the floor to the loudest wav."""
        loudest = self.basis.sum(1, keepdim=True) * (self.n_fft / 2) ** 2  # (F, 1): |STFT| is at most the window's sum
        log_power = x * self.std[:, None] + self.mean[:, None]
        return torch.minimum(log_power.clamp_min(math.log(self.floor)), loudest.log())

    def _log(self, power: Tensor) -> Tensor:
        return torch.log(power + self.floor)
