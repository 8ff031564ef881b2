"""Invert mel power: estimate the linear spectrum, then phases with which its frames agree (Griffin-Lim)."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MOMENTUM = 0.99  # Perraudin et al. 2013, "A fast Griffin-Lim algorithm"
SPREAD_ITERATIONS = 30
FITTING_ITERATIONS = 8  # from a network's estimate, which is close to begin with
BLOCK_FRAMES, LOOK_AHEAD = 32, 8  # frames synthesised together; later frames that their phases must be consistent with
OVERLAP = 4  # hops per window
PEAK_REACH = 2  # bins on either side in which a bin's peak is sought: half the main lobe of a Hann window


class State(NamedTuple):
    """What the next block needs.

    Attributes:
        waiting: (B, F, t) power of the last synthesised frames, then of the frames that are not synthesised yet.
        wav: (B, n) the last final samples, then an estimate of the samples that follow.
        block: number of blocks so far.
    """

    waiting: Tensor
    wav: Tensor
    block: int


class Filters:
    """Products with mel filters, most of whose weights are 0.

    Args:
        basis: (F, bins), nonnegative.
    """

    def __init__(self, basis: Tensor):
        self._reach = basis.sum(0)[:, None]  # (bins, 1)
        self._reach = torch.where(self._reach > 0, self._reach, 1)
        self._width = basis.sum(1, keepdim=True)  # (F, 1)
        self._basis, self._transposed = basis, basis.T
        if basis.device.type == "cpu":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
                self._basis, self._transposed = basis.to_sparse_csr(), basis.T.contiguous().to_sparse_csr()

    def spread(self, power: Tensor) -> Tensor:
        """Estimate nonnegative linear power with the given mel power: (B, F, T) -> (B, bins, T).

        Of the many solutions this finds a smooth one: it starts from the interpolated envelope and scales each bin by
        the ratio of target to actual power in its bands (Richardson-Lucy; Lee and Seung 2001 prove that each step
        improves it).
        """
        linear = self._of_bins(power / self._width)
        for _ in range(SPREAD_ITERATIONS):
            linear = self.toward(linear, power)
        return linear

    def toward(self, linear: Tensor, power: Tensor) -> Tensor:
        """Scale `linear` (B, bins, T) one step toward mel power (B, F, T); bins outside all filters become 0."""
        actual = torch.stack([self._basis @ item for item in linear])
        lack = power / torch.maximum(actual, 1e-6 * power).clamp_min(torch.finfo(power.dtype).tiny)  # (B, F, T)
        return linear * self._of_bins(lack)

    def _of_bins(self, values: Tensor) -> Tensor:
        """Average the values of the bands that a bin belongs to: (B, F, T) -> (B, bins, T)."""
        return torch.stack([self._transposed @ item for item in values]) / self._reach


class GriffinLim:
    """Estimate a wav whose mel power is close to given frames, block by block: (B, F, t) -> (B, n).

    Each iteration projects onto the spectrograms of real signals (overlapping frames agree), then scales the bins
    toward the target mel power. Plain Griffin-Lim would instead restore the initial estimate of the linear spectrum,
    which has no harmonics within a band; scaling halves the distance to the target mel spectrogram.

        samples   | final | this block ....... | estimated again with the next |
        frames      | one | BLOCK_FRAMES ..... | LOOK_AHEAD ....... |

    The samples of a block are final, and the next block continues them. So memory does not grow, and decoding a whole
    recording gives the same samples as decoding a stream, bit for bit.

    Without a network, initial phases are random, with the number of the block as seed and the same for all items, so
    results are reproducible and do not depend on the batch. A network's spectrum has peaks, whose frequencies say how
    phases advance, so fewer iterations are enough.

    Args:
        basis: (F, n_fft // 2 + 1) mel filters, nonnegative.
        hop_length: samples per frame. Windows are Hann and OVERLAP hops long; frame t is centred at t * hop_length.
        iterations: number of iterations.
        network: estimates linear power from mel power, (B, F, W) -> (B, bins, W); None to `spread` it smoothly.
        reach: frames on either side that an estimate of the network depends on; the last ones before and after a block
            lack one of them.

    Source: Griffin and Lim 1984; Zhu, Beauregard and Wyse 2007, "Real-Time Signal Estimation From Modified Short-Time
    Fourier Transform Magnitude Spectra" (look-ahead).
    """

    def __init__(
        self,
        basis: Tensor,
        hop_length: int,
        iterations: int,
        network: Callable[[Tensor], Tensor] | None = None,
        reach: int = 0,
    ):
        self.filters, self.hop_length, self.iterations = Filters(basis), hop_length, iterations
        self.network, self.past = network, max(1, reach)
        self.window = torch.hann_window(OVERLAP * hop_length, dtype=basis.dtype, device=basis.device)

    def __call__(self, power: Tensor, state: State | None, last: bool) -> tuple[Tensor, State]:
        """Add frames (B, F, t); return the samples that are final now (B, n), or all if `last`, and the state."""
        if state is None:
            silence = power.new_zeros(len(power), power.shape[1], self.past)
            wav = power.new_zeros(len(power), (OVERLAP - 1) * self.hop_length)
            state = State(silence, wav, 0)
        state = State(*state)
        waiting, pieces = torch.cat([state.waiting, power], dim=2), []
        while (left := waiting.shape[2] - self.past) >= (1 if last else BLOCK_FRAMES + LOOK_AHEAD):
            count = min(left, BLOCK_FRAMES)
            end = count == left  # repeat the last frame, so that the last hop has as many windows as the others
            seen = self.past + count + LOOK_AHEAD
            frames = torch.cat([waiting, waiting[:, :, -1:]], dim=2) if end else waiting[:, :, :seen]
            wav = self._block(frames, state.wav, state.block)
            begin, stop = (OVERLAP - 1) * self.hop_length, (OVERLAP - 1 + count) * self.hop_length
            pieces.append(wav[:, begin:stop])
            num_windows = frames.shape[2] - self.past + 1
            known = max(0, num_windows - (OVERLAP - 1) - count)  # hops after the block that have all their windows
            wav = wav[:, count * self.hop_length : stop + known * self.hop_length].clone()
            state, waiting = state._replace(wav=wav, block=state.block + 1), waiting[:, :, count:]
        sound = torch.cat(pieces, dim=1) if pieces else power.new_zeros(len(power), 0)
        return sound, state._replace(waiting=waiting.clone())

    def _block(self, power: Tensor, before: Tensor, block: int) -> Tensor:
        """Estimate the samples of some frames, given the samples before them.

        Args:
            power: (B, F, past - 1 + W), power of the mel bands. The first of the W frames is centred OVERLAP - 2 hops
                after the first sample of `before`; those before it are for the network.
            before: OVERLAP - 1 hops of final samples, then an estimate of some that follow.
            block: number of the block, which seeds random initial phases.

        Returns:
            (B, (W + OVERLAP - 1) * hop_length), beginning with the final samples.
        """
        linear = self._linear(power)[:, :, self.past - 1 :]  # (B, bins, W)
        power = power[:, :, self.past - 1 :]
        num_frames, final = power.shape[2], before[:, : (OVERLAP - 1) * self.hop_length]
        weight = self._overlap_add(self.window.square().expand(1, num_frames, -1)).clamp_min(1e-2)

        def to_wav(spectrum: Tensor) -> Tensor:  # (B, bins, W) -> (B, n)
            frames = torch.fft.irfft(spectrum.transpose(1, 2), n=len(self.window)) * self.window
            return torch.cat([final, (self._overlap_add(frames) / weight)[:, final.shape[1] :]], dim=1)

        def to_spectrum(wav: Tensor) -> Tensor:  # (B, n) -> (B, bins, W)
            return torch.fft.rfft(wav.unfold(1, len(self.window), self.hop_length) * self.window).transpose(1, 2)

        known = max(1, (before.shape[1] - final.shape[1]) // self.hop_length) if block else 0
        missing = (num_frames + OVERLAP - 1) * self.hop_length - before.shape[1]
        estimate = to_spectrum(F.pad(before, (0, missing)))
        estimate[:, :, known:] = 0
        if self.network is None:
            noise = torch.rand(num_frames, linear.shape[1], generator=torch.Generator().manual_seed(block))
            phases = torch.polar(torch.ones_like(linear[0]), 2 * math.pi * noise.T.to(power))  # (bins, W)
            phases = torch.where(estimate == 0, phases, torch.sgn(estimate))
        else:
            phases = advancing_phases(linear, torch.sgn(estimate))
        target, previous = linear.sqrt() * phases, None
        for _ in range(self.iterations):
            spectrum = to_spectrum(to_wav(target))
            linear = self.filters.toward(squared(spectrum), power)
            ahead = spectrum if previous is None else spectrum + MOMENTUM * (spectrum - previous)
            previous = spectrum
            target = ahead * (linear / squared(ahead).clamp_min(1e-32)).sqrt()
        wav = to_wav(target)
        if self.network is not None and before.shape[1] > final.shape[1]:
            # Fade in from the last block's estimate; otherwise the seam would click.
            seam = slice(final.shape[1], final.shape[1] + self.hop_length)
            fade = torch.linspace(0, 1, self.hop_length, dtype=wav.dtype, device=wav.device)
            wav[:, seam] = torch.where(before[:, seam] == 0, wav[:, seam], before[:, seam].lerp(wav[:, seam], fade))
        return wav

    def _linear(self, power: Tensor) -> Tensor:
        """Estimate linear power with the given mel power: (B, F, W) -> (B, bins, W)."""
        if self.network is None:
            return self.filters.spread(power)
        # One item at a time: in a batch, other rounding could make another bin the peak.
        linear = torch.cat([self.network(item) for item in power.split(1)])
        for _ in range(FITTING_ITERATIONS):
            linear = self.filters.toward(linear, power)
        return linear

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """Add overlapping frames: (B, W, OVERLAP * hop_length) -> (B, (W + OVERLAP - 1) * hop_length)."""
        parts = frames.unflatten(2, (OVERLAP, self.hop_length))  # (B, W, OVERLAP, hop_length)
        wav = frames.new_zeros(len(frames), frames.shape[1] + OVERLAP - 1, self.hop_length)
        for i in range(OVERLAP):
            wav[:, i : i + frames.shape[1]] += parts[:, :, i]
        return wav.flatten(1)


def advancing_phases(linear: Tensor, known: Tensor) -> Tensor:
    """Estimate phases by the frequencies of spectral peaks: linear power (B, bins, W) -> phasors (B, bins, W) complex.

    Each bin follows the highest peak within PEAK_REACH bins. From frame to frame a peak's phase advances by its
    frequency, which a parabola through three log powers tells. Beside a peak, phases alternate, as in the spectrum of a
    Hann window that is centred in its frame.

        phase of bin k in frame t = phase of bin p in frame t - 1 + advance of p + pi (k - p),  p the peak of k

    Args:
        linear: power of the bins.
        known: phasors (B, bins, W) where phases are known, else 0.

    Source: Laroche and Dolson 1999, "Improved Phase Vocoder Time-Scale Modification of Audio" (phase locking);
    Beauregard, Harish and Wyse 2015, "Single Pass Spectrogram Inversion".
    """
    turn, peak = peak_advance(linear.transpose(1, 2))  # (B, W, bins)
    bins = torch.arange(linear.shape[1], device=linear.device)
    rotation = torch.polar(torch.ones_like(turn), turn)
    phasor, phasors = (1.0 - 2 * (bins % 2)).to(rotation).expand_as(rotation[:, 0]), []
    for t in range(linear.shape[2]):
        phasor = phasor.gather(1, peak[:, t]) * rotation[:, t]
        phasor = torch.where(known[:, :, t] == 0, phasor, known[:, :, t])
        phasors.append(phasor)
    return torch.stack(phasors, dim=2)


def peak_advance(linear: Tensor) -> tuple[Tensor, Tensor]:
    """Find the peak that each bin follows, and how far the bin's phase advances by it: linear power (..., bins).

    Returns:
        The phase (..., bins) in radians to be added to that of the peak in the frame before, and the bin of the peak
        (..., bins) int64.
    """
    log = linear.clamp_min(torch.finfo(linear.dtype).tiny).log()
    around = F.pad(log, (PEAK_REACH, PEAK_REACH), value=-math.inf).unfold(-1, 2 * PEAK_REACH + 1, 1)
    bins = torch.arange(log.shape[-1], device=log.device)
    peak = (bins + around.argmax(-1) - PEAK_REACH).clamp(1, len(bins) - 2)
    left, middle, right = (log.gather(-1, peak + shift) for shift in (-1, 0, 1))
    curvature = left - 2 * middle + right
    offset = torch.where(curvature < 0, (left - right) / (2 * curvature.clamp_max(-1e-9)), 0).clamp(-0.5, 0.5)
    return (2 * math.pi / OVERLAP) * (peak % OVERLAP + offset) + math.pi * ((bins - peak) % 2), peak


def squared(spectrum: Tensor) -> Tensor:
    """Return the squared magnitude of a complex spectrum; `abs` costs four times as much."""
    return spectrum.real.square() + spectrum.imag.square()
