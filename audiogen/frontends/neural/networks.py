"""Encoder and decoder of our own codec: short-time spectra, and ConvNeXt blocks at the frame rate.

Only the Fourier transform runs at the sample rate. A frame covers `hop_length` samples and two spectra, half a hop
apart, each of three half hops:

    samples                | frame t . . . . . . | frame t + 1 . . . . |
    spectrum 1   | * * * * * * * * * * * * * * * |              analysed from these samples, and added to them
    spectrum 2             | * * * * * * * * * * * * * * * |

So the encoder looks half a hop beyond its frame, and the decoder waits for half a hop more, where a spectrum of the
next frame overlaps. At the ends of the audio only two spectra overlap instead of three; their sum is normalised, so
nothing fades in or out. State is passed as in models/layers.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.layers import DelayLine

State = dict[str, Any]
SPECTRA = 2  # per frame
OVERLAP = 3  # spectra that overlap: the Hann window spans this many half hops
REACH = 1 / SPECTRA  # how far spectra extend beyond their frame, in frames, on both sides
BOUND = 4.0  # scale of the encoder's output before tanh
COMPRESSION = 0.3  # exponent of magnitudes, so that quiet parts matter beside loud ones
FLOOR = 1e-5  # relative to the magnitude of a sine with peak 1


class ConvNeXtBlock(nn.Module):
    """A residual block of a causal depthwise convolution and a wide MLP: (B, S, D) -> (B, S, D).

    Source: Liu et al. 2022, A ConvNet for the 2020s, in one dimension as in Vocos (Siuzdak 2023), section 3.
    """

    def __init__(self, dim: int, kernel_size: int = 7, widening: int = 3):
        super().__init__()
        self.line = DelayLine(kernel_size - 1)
        taps = torch.randn(kernel_size, dim) * 0.1
        taps[-1] += 1  # initially close to the identity
        self.taps = nn.Parameter(taps)
        self.norm = nn.LayerNorm(dim)
        self.wide = nn.Linear(dim, widening * dim)
        self.narrow = nn.Linear(widening * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.2))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        past, state = self.line(x, state)  # (B, kernel_size - 1 + S, D)
        y = sum(tap * past[:, k : k + x.shape[1]] for k, tap in enumerate(self.taps))
        return x + self.scale * self.narrow(F.gelu(self.wide(self.norm(y)))), state


class Blocks(nn.Module):
    """An input layer, ConvNeXt blocks and an output layer: (B, S, D_in) -> (B, S, D_out)."""

    def __init__(self, dim_in: int, dim: int, num_layers: int, dim_out: int):
        super().__init__()
        self.into = nn.Linear(dim_in, dim)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim) for _ in range(num_layers))
        self.last_norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim_out)

    def forward(self, x: Tensor, state: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        x, states = self.norm(self.into(x)), []
        for block, before in zip(self.blocks, state or [None] * len(self.blocks), strict=True):
            x, after = block(x, before)
            states.append(after)
        return self.out(self.last_norm(x)), states


class Encoder(nn.Module):
    """Encodes a wav (B, 1, N) as (B, dim_out, T), T = ceil(N / hop_length).

    The features of each bin are its level, and its real and imaginary part with compressed magnitude. The output is
    bounded, since otherwise a few loud outliers would each take a codeword.
    """

    window: Tensor

    def __init__(self, hop_length: int, dim: int, num_layers: int, dim_out: int):
        super().__init__()
        self.hop_length = hop_length
        self.register_buffer("window", _window(hop_length), persistent=False)
        self.blocks = Blocks(SPECTRA * 3 * _num_bins(hop_length), dim, num_layers, dim_out)

    def forward(self, wav: Tensor, state: State | None = None, last: bool = True) -> tuple[Tensor, State]:
        """Encode the next samples to the frames that are complete by now.

        Half a hop of zeros precedes the first sample. At the end (`last`) zeros complete the frame and half a hop more.
        The first call needs at least a hop and a half, unless it is the last. The last may have no samples.
        """
        half_hop, n_fft = self.hop_length // SPECTRA, len(self.window)
        wav = wav.squeeze(1)
        wav = F.pad(wav, (half_hop, 0)) if state is None else torch.cat([state["waiting"], wav], dim=1)
        if last:
            wav = F.pad(wav, (0, half_hop + -(wav.shape[1] + half_hop) % self.hop_length))
        num_frames = wav.shape[1] // self.hop_length - 1  # the next frame needs the last half hops too
        waiting = wav[:, num_frames * self.hop_length :].detach().clone()  # a view would keep the whole wav in memory
        seen = wav[:, : (SPECTRA * num_frames - 1) * half_hop + n_fft]
        spectra = torch.stft(seen, n_fft, half_hop, window=self.window, center=False, return_complex=True) / (n_fft / 4)
        spectra = spectra.transpose(1, 2)  # (B, SPECTRA T, bins)
        features = self.features(spectra.real, spectra.imag, spectra.abs())
        features = features.reshape(len(wav), num_frames, -1)  # (B, T, SPECTRA 3 bins)
        y, inner = self.blocks(features, state and state["blocks"])
        return torch.tanh(y / BOUND).transpose(1, 2), {"waiting": waiting, "blocks": inner}

    @staticmethod
    def features(re: Tensor, im: Tensor, magnitude: Tensor) -> Tensor:
        """Compute the features of bins from their parts and their magnitude: (..., bins) each -> (..., 3 bins)."""
        magnitude = magnitude.clamp_min(FLOOR)
        scale = magnitude ** (COMPRESSION - 1)
        return torch.cat([1 + 0.2 * magnitude.log(), re * scale, im * scale], dim=-1)


class Decoder(nn.Module):
    """Decodes (B, dim_in, T) to a wav (B, 1, T hop_length), predicting log magnitude and phase of each bin.

    Source: Vocos (Siuzdak 2023), section 3.2: predicting spectra spares the layers from learning to oscillate.
    """

    window: Tensor
    overlapping: Tensor

    def __init__(self, dim_in: int, dim: int, num_layers: int, hop_length: int):
        super().__init__()
        self.hop_length = hop_length
        window = _window(hop_length)
        self.register_buffer("window", window, persistent=False)
        parts = window.square().view(OVERLAP, -1)  # gain of analysis and synthesis window
        overlapping = torch.stack([parts[:-1].sum(0), parts.sum(0), parts[1:].sum(0)])
        self.register_buffer("overlapping", overlapping, persistent=False)  # (first, middle, end; half hop)
        self.blocks = Blocks(dim_in, dim, num_layers, SPECTRA * 2 * _num_bins(hop_length))
        self.waves: nn.Module = Waves(len(window))

    def forward(self, x: Tensor, state: State | None = None, last: bool = True) -> tuple[Tensor, State]:
        """Decode the next frames to the samples that are complete by now; half a hop waits for the next frame.

        Only the last call may have no frames; then it must not be the first.
        """
        pieces, inner = x.new_zeros(len(x), 0, OVERLAP, len(self.window) // OVERLAP), state and state["blocks"]
        if x.shape[2]:
            y, inner = self.blocks(x.transpose(1, 2), inner)
            pieces = self._pieces(y)
        # Overlap-add: half hop s sums part k of spectrum s - k. What is beyond the last frame waits for the next call.
        parts = (F.pad(part, (0, 0, k, OVERLAP - 1 - k)) for k, part in enumerate(pieces.unbind(2)))
        total = sum(parts, x.new_zeros(()))
        if state is not None:
            rest = state["sounding"]  # (B, OVERLAP - 1, half hop)
            total = total + F.pad(rest, (0, 0, 0, total.shape[1] - rest.shape[1]))
        num_whole = pieces.shape[1]
        sounding = total[:, num_whole:].detach().clone()
        first, usual, end = self.overlapping
        if state is None:  # the first half hop precedes the audio, the second has only two spectra
            heard = [total[:, 1:2] / first, total[:, 2:num_whole] / usual]
        else:
            heard = [total[:, :num_whole] / usual]
        if last:
            heard.append(total[:, num_whole : num_whole + 1] / end)
        return torch.cat(heard, dim=1).reshape(len(x), 1, -1), {"sounding": sounding, "blocks": inner}

    def _pieces(self, y: Tensor) -> Tensor:
        """Turn the blocks' output (B, T, SPECTRA 2 bins) into windowed waves (B, SPECTRA T, OVERLAP, half hop)."""
        batch_size, num_frames, _ = y.shape
        log_magnitude, phase = y.reshape(batch_size, SPECTRA * num_frames, 2, -1).unbind(2)  # (B, SPECTRA T, bins)
        n_fft = len(self.window)
        magnitude = torch.exp((log_magnitude - 3).clamp(max=6)) * (n_fft / 4)
        pieces = self.waves(magnitude, phase) * self.window
        return pieces.view(batch_size, SPECTRA * num_frames, OVERLAP, -1)


class Waves(nn.Module):
    """Turn magnitudes and phases (..., bins) into waves (..., n_fft)."""

    def __init__(self, n_fft: int):
        super().__init__()
        self.n_fft = n_fft

    def forward(self, magnitude: Tensor, phase: Tensor) -> Tensor:
        return torch.fft.irfft(torch.complex(magnitude * phase.cos(), magnitude * phase.sin()), self.n_fft)


def _window(hop_length: int) -> Tensor:
    return torch.hann_window(OVERLAP * hop_length // SPECTRA)


def _num_bins(hop_length: int) -> int:
    return OVERLAP * hop_length // SPECTRA // 2 + 1
