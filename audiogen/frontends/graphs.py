"""Front-ends as functions of real tensors of one item, for export: no complex numbers, no blocks, no limiter."""

import copy
import math

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F

from ..errors import ExportError
from ..utils.graph import Graph
from .base import Frontend
from .codec import Codec
from .fourier import RealFourier, overlap_add, windows
from .mel.griffin_lim import (
    BLOCK_FRAMES,
    FITTING_ITERATIONS,
    LOOK_AHEAD,
    MOMENTUM,
    OVERLAP,
    SPREAD_ITERATIONS,
    peak_advance,
)
from .mel.mel import Mel
from .mel.melvq import MelVQ
from .mel.spectrum import REACH
from .mel.vocoder import MelFrontend
from .mulaw import MuLaw
from .neural import networks
from .neural.quantizer import ResidualVQ
from .pcm import PCM


def encoding_graph(frontend: Frontend) -> Graph:
    """Return the graph wav (1, 1, N) -> x (1, C, T), N a multiple of hop_length: the end is filled with zeros.

    Raises:
        ExportError: this front-end's encoder can't be exported.
    """
    module = _encoder(frontend)
    hop_length = frontend.spec.hop_length
    return Graph(module, {"wav": torch.zeros(1, 1, 16 * hop_length)}, ("x",), lengths={"wav": hop_length})


def decoding_graph(frontend: Frontend) -> Graph:
    """Return the graph x -> wav, before the limiter, so it may leave [-1, 1].

    Most decode x (1, C, T) of any length to wav (1, 1, T * hop_length). Griffin-Lim decodes block by block: x holds the
    frames of a block and those after it that its phases must be consistent with, and the wav is that of the block.

    Raises:
        ExportError: this front-end's decoder can't be exported.
    """
    if isinstance(frontend, Mel | MelVQ) and frontend.vocoder is None:
        module = GriffinLimBlock(frontend.mel if isinstance(frontend, MelVQ) else frontend, frontend)
        return Graph(
            module,
            {"x": _some(frontend, module.frames + module.ahead), **module.state(), **module.noise()},
            ("wav", "next_power", "next_sound"),
            state={"power": "next_power", "sound": "next_sound"},
        )
    return Graph(_decoder(frontend), {"x": _some(frontend, 16)}, ("wav",), lengths={"x": 1})


def _some(frontend: Frontend, num_frames: int) -> Tensor:
    spec = frontend.spec
    return torch.zeros(1, spec.num_channels, num_frames, dtype=torch.int64 if spec.discrete else torch.float32)


def _encoder(frontend: Frontend) -> nn.Module:
    if isinstance(frontend, MelVQ):
        return nn.Sequential(MelEncoder(frontend.mel), Quantize(frontend.quantizer))
    if isinstance(frontend, Mel):
        return MelEncoder(frontend)
    if isinstance(frontend, Codec):
        return nn.Sequential(CodecEncoder(frontend), Quantize(frontend.quantizer))
    if isinstance(frontend, MuLaw | PCM):
        return Whole(frontend, "encode_block")
    raise _refusal(frontend)


def _decoder(frontend: Frontend) -> nn.Module:
    if isinstance(frontend, Mel | MelVQ | Codec):
        frontend = copy.deepcopy(frontend)
        mel = frontend.mel if isinstance(frontend, MelVQ) else frontend
        decoder = mel.decoder if isinstance(mel, Codec) else mel.vocoder.decoder
        decoder.waves = RealWaves(len(decoder.window))
    elif not isinstance(frontend, MuLaw | PCM):
        raise _refusal(frontend)
    return Whole(frontend, "decode_block")


def _refusal(frontend: Frontend) -> ExportError:
    names = "mel, melvq, codec, mulaw and pcm"
    return ExportError(
        f"export: the front-end {type(frontend).__name__} is more than a function of tensors; {names} can be exported"
    )


class Whole(nn.Module):
    """Encode or decode a whole recording as one block."""

    def __init__(self, frontend: Frontend, method: str):
        super().__init__()
        self.frontend, self.method = frontend, method

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (getattr(self.frontend, self.method)(x, None, True)[0],)


class MelEncoder(nn.Module):
    """Compute standardised log-mel frames: wav (1, 1, N) -> (1, F, T).

    The spectrum is computed in float64: beside a pure tone, the rounding errors of float32 are as large as the floor.
    """

    window: Tensor
    basis: Tensor

    def __init__(self, mel: Mel):
        super().__init__()
        self.mel, self.fourier = mel, RealFourier(mel.n_fft, torch.float64)
        self.register_buffer("window", torch.hann_window(mel.n_fft, dtype=torch.float64), persistent=False)
        self.register_buffer("basis", mel.basis.double(), persistent=False)

    def forward(self, wav: Tensor) -> tuple[Tensor]:
        mel, half = self.mel, OVERLAP // 2
        hops = F.pad(wav.double().reshape(-1, mel.hop_length), (0, 0, half, half - 1))
        re, im = self.fourier(windows(hops, OVERLAP) * self.window)  # (t, bins)
        log_power = mel._log(F.linear(re * re + im * im, self.basis)).float()  # (t, F)
        return (mel.stacked(((log_power - mel.mean) / mel.std).T[None]),)


class Quantize(nn.Module):
    """Quantize (1, D, T) to codes (1, K, T), as `ResidualVQ.encode`."""

    def __init__(self, quantizer: ResidualVQ):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, given: tuple[Tensor]) -> tuple[Tensor]:
        quantizer, residual, codes = self.quantizer, given[0][0].T, []
        for stage, codebook in enumerate(quantizer.codebooks):
            seen = quantizer.project_in(stage, residual)
            codes.append((codebook.square().sum(1) / 2 - F.linear(seen, codebook)).argmin(1))
            residual = residual - quantizer.project_out(stage, F.embedding(codes[-1], codebook))
        return (torch.stack(codes)[None],)


class CodecEncoder(nn.Module):
    """Compute the codec's latent frames: wav (1, 1, N) -> (1, D, T)."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.codec, self.fourier = codec, RealFourier(len(codec.encoder.window))

    def forward(self, wav: Tensor) -> tuple[Tensor]:
        encoder = self.codec.encoder
        hops = F.pad((wav / self.codec.level).reshape(-1, encoder.hop_length // networks.SPECTRA), (0, 0, 1, 1))
        re, im = self.fourier(windows(hops, networks.OVERLAP) * encoder.window)
        scale = len(encoder.window) / 4
        features = encoder.features(re / scale, im / scale, ((re * re + im * im).sqrt() / scale))
        y, _ = encoder.blocks(features.reshape(1, wav.shape[2] // encoder.hop_length, -1))
        return (torch.tanh(y / networks.BOUND).transpose(1, 2),)


class RealWaves(nn.Module):
    """Turn magnitudes and phases (B, T, bins) into waves (B, T, n_fft), as `networks.Waves`."""

    def __init__(self, n_fft: int):
        super().__init__()
        self.fourier = RealFourier(n_fft)

    def forward(self, magnitude: Tensor, phase: Tensor) -> Tensor:
        re, im = magnitude * phase.cos(), magnitude * phase.sin()
        return self.fourier.inverse(re.flatten(0, 1), im.flatten(0, 1)).unflatten(0, magnitude.shape[:2])


class GriffinLimBlock(nn.Module):
    """Decode a block of mel frames, continuing the sound before it, as `GriffinLim` does.

    Frames and samples are (time, values) here. The state before the first block is zeros:

        power (1, F, past)         mel power of the last mel frames before the block: one, or more for a network
        sound (1, n)               the last final samples, then an estimate of the samples of the block

    Attributes:
        frames: frames of the model in a block.
        ahead: frames after the block that its phases must be consistent with; at the end, repeat the last frame.
    """

    window: Tensor
    weight: Tensor
    reach: Tensor
    momentum: Tensor

    def __init__(self, mel: Mel, frontend: MelFrontend):
        super().__init__()
        self.mel, self.frontend, self.fourier = mel, frontend, RealFourier(mel.n_fft)
        self.frames, self.ahead = BLOCK_FRAMES // mel.stack, LOOK_AHEAD // mel.stack
        self.num_windows = 1 + BLOCK_FRAMES + LOOK_AHEAD
        self.past = 1 if mel.spectrum is None else REACH
        self.known = LOOK_AHEAD + 1 - (OVERLAP - 1)  # windows of the last block's estimate
        momentum = torch.full((mel.config.griffin_lim_iterations,), MOMENTUM)
        momentum[0] = 0.0  # there is no spectrum before
        window, reach = torch.hann_window(mel.n_fft), mel.basis.sum(0)
        weight = overlap_add(window.square().expand(self.num_windows, -1), OVERLAP).clamp_min(1e-2)
        for name, value in {
            "window": window,
            "weight": weight,
            "reach": torch.where(reach > 0, reach, 1),
            "momentum": momentum,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def state(self) -> dict[str, Tensor]:
        """Return the state before the first block."""
        num_hops = OVERLAP - 1 + self.known
        return {
            "power": torch.zeros(1, len(self.mel.basis), self.past),
            "sound": torch.zeros(1, num_hops * self.mel.hop_length),
        }

    def noise(self, block: int = 0) -> dict[str, Tensor]:
        """Return uniform numbers (windows, bins) that give the same initial phases as `GriffinLim` in this block.

        With a network none are needed.
        """
        if self.mel.spectrum is not None:
            return {}
        bins = self.mel.basis.shape[1]
        return {"noise": torch.rand(self.num_windows, bins, generator=torch.Generator().manual_seed(block))}

    def forward(
        self, x: Tensor, power: Tensor, sound: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # (1, F, past - 1 + num_windows)
        power = torch.cat([power, self.mel.power_of(self.frontend.frames_of(x))], dim=2)
        wav = self._block(power, sound.view(-1, self.mel.hop_length), noise)
        begin, end = OVERLAP - 1, OVERLAP - 1 + BLOCK_FRAMES
        following = wav[BLOCK_FRAMES : end + self.known]
        last = power[:, :, BLOCK_FRAMES : BLOCK_FRAMES + self.past]
        return wav[begin:end].reshape(1, 1, -1), last.clone(), following.reshape(1, -1)

    def _block(self, power: Tensor, before: Tensor, noise: Tensor | None) -> Tensor:
        estimate = None if self.mel.spectrum is None else self.mel.spectrum(power)[0].T[self.past - 1 :]
        power = power[0].T[self.past - 1 :]  # (num_windows, F)
        linear = power / self.mel.basis.sum(1) @ self.mel.basis / self.reach if estimate is None else estimate
        for _ in range(SPREAD_ITERATIONS if estimate is None else FITTING_ITERATIONS):
            linear = self._toward(linear, power)
        magnitude, final = linear.sqrt(), before[: OVERLAP - 1]
        cos, sin = self._phases(before, linear, noise)

        def iterate(carry: list[Tensor], momentum: Tensor) -> tuple[list[Tensor], Tensor]:
            re, im, re_before, im_before = carry
            re, im = self._to_spectrum(self._to_wav(re, im, final))
            linear = self._toward(re * re + im * im, power)
            re_ahead, im_ahead = re + momentum * (re - re_before), im + momentum * (im - im_before)
            scale = linear.sqrt() / (re_ahead.square() + im_ahead.square()).sqrt().clamp_min(1e-16)
            return [re_ahead * scale, im_ahead * scale, re, im], momentum.clone()

        carry = [magnitude * cos, magnitude * sin, torch.zeros_like(magnitude), torch.zeros_like(magnitude)]
        if torch.compiler.is_exporting():  # a loop of the graph, not 60 copies of its body
            carry, _ = scan(iterate, carry, self.momentum)
        else:
            for momentum in self.momentum:
                carry, _ = iterate(carry, momentum)
        wav = self._to_wav(carry[0], carry[1], final)
        if noise is not None:
            return wav
        hop, seam = OVERLAP - 1, before[OVERLAP - 1]  # fade in from the last block's estimate
        faded = torch.where(seam == 0, wav[hop], seam.lerp(wav[hop], torch.linspace(0, 1, len(seam))))
        return torch.cat([wav[:hop], faded[None], wav[hop + 1 :]])

    def _phases(self, before: Tensor, linear: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of initial phases: those of the last block's estimate, else as in `GriffinLim`."""
        re, im = self._to_spectrum(F.pad(before, (0, 0, 0, OVERLAP - 1)))
        rest = (0, 0, 0, self.num_windows - self.known)
        re, im = F.pad(re[: self.known], rest), F.pad(im[: self.known], rest)
        size = (re * re + im * im).sqrt()
        known = size > 0
        size = size.clamp_min(1e-30)
        re, im = re / size, im / size
        if noise is not None:
            angle = 2 * math.pi * noise
            return torch.where(known, re, angle.cos()), torch.where(known, im, angle.sin())
        turn, peak = peak_advance(linear)
        cos, sin, found = 1.0 - 2 * (torch.arange(linear.shape[1]) % 2), torch.zeros(linear.shape[1]), []
        for t in range(self.num_windows):
            a, b, c, s = cos[peak[t]], sin[peak[t]], turn[t].cos(), turn[t].sin()
            cos, sin = a * c - b * s, a * s + b * c
            cos, sin = torch.where(known[t], re[t], cos), torch.where(known[t], im[t], sin)
            found.append((cos, sin))
        return torch.stack([cos for cos, _ in found]), torch.stack([sin for _, sin in found])

    def _to_wav(self, re: Tensor, im: Tensor, final: Tensor) -> Tensor:
        added = overlap_add(self.fourier.inverse(re, im) * self.window, OVERLAP) / self.weight
        return torch.cat([final, added[OVERLAP - 1 :]])

    def _to_spectrum(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        return self.fourier(windows(wav, OVERLAP) * self.window)

    def _toward(self, linear: Tensor, power: Tensor) -> Tensor:
        basis = self.mel.basis
        heard = torch.maximum(F.linear(linear, basis), 1e-6 * power).clamp_min(torch.finfo(power.dtype).tiny)
        return linear * (power / heard @ basis / self.reach)
