"""A true-peak limiter: turns loud peaks down smoothly, so that no sample is clipped."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger("audiogen")

#: Highest true peak that leaves the limiter, in dB relative to full scale (dBTP).
CEILING = -1.0
#: Louder peaks are turned down to this fraction of the ceiling, because a changing gain moves peaks a little.
MARGIN = 0.99
#: Points per second at which the gain is computed; it is linear between them, and falls over POINTS before a peak.
POINTS_PER_SECOND, POINTS = 4000, 12
#: Seconds in which the gain rises from 0 to 1.
RELEASE = 0.5
#: Number of samples on either side that the interpolation uses, and number of values interpolated between two samples.
REACH, BETWEEN = 16, 3


class Limiter:
    """Turn down the peaks of sound (B, C, N) above a ceiling, chunk by chunk. Channels share one gain.

    Peaks are those of the continuous signal: samples, and values interpolated between them at four times the rate. The
    gain is exactly 1 where no peak above the ceiling is near:

        1 - gain that a point needs   0   0   0   0   .3   0   0    0
        look-ahead                    0  .3  .3  .3   .3   0   0    0      maximum over this point and POINTS after it
        release                       0  .3  .3  .3   .3  .29 .28  .27     falls linearly
        1 - gain                      0  .1  .2  .3   .3  .3  .29  .28     weighted mean over POINTS before and this one

    Each value in the mean at a peak is at least what the peak needs, and so is the mean. All steps are elementwise or
    maxima, so the result does not depend on the chunks, to the bit.

    Source: ITU-R BS.1770-5, annex 2 (true peak).

    Args:
        sample_rate: Hz.
        ceiling: highest true peak in dBTP.

    Attributes:
        delay: number of samples that are held back until the sound after them is known.

    Example:
        >>> limiter = Limiter(44100)
        >>> wav = limiter(torch.full((1, 1, 1000), 2.0), last=True)
        >>> float(wav.max()) <= 10 ** (CEILING / 20)
        True
        >>> limiter.reductions[0] > 7  # dB
        True
    """

    def __init__(self, sample_rate: int, ceiling: float = CEILING):
        self.ceiling = 10 ** (ceiling / 20)
        self.step = max(1, round(sample_rate / POINTS_PER_SECOND))  # samples between points
        self.fall = self.step / (RELEASE * sample_rate)  # of 1 - gain between points, in the release
        self.delay = (POINTS + 2) * self.step + REACH
        window = torch.hann_window(POINTS + 3, periodic=False, dtype=torch.float64)[1:-1]
        self._weights = (window / window.sum()).tolist()
        self._taps = interpolation_taps()
        self._bound = float(self._taps.abs().sum(dim=0).amax()) + 1e-3  # of what interpolation adds to a peak
        self._begun = False

    def __call__(self, chunk: Tensor, last: bool = False) -> Tensor:
        """Limit the next chunk (B, C, n) -> (B, C, m): the samples that are final by now, or all if `last`."""
        if not self._begun:
            self._begin(chunk)
        self._wav = torch.cat([self._wav, chunk], dim=2)
        end = self._start + self._wav.shape[2]
        stop = end if last else max(self._given, end - self.delay)
        if last:
            self._wav = F.pad(self._wav, (0, self.delay))
            end += self.delay
        self._measure((end - REACH) // self.step)
        limited = self._wav[:, :, self._given - self._start : stop - self._start]
        if stop > self._given:
            limited = self._turned_down(limited, self._given, stop)
        self._given, start = stop, min(stop, self._measured * self.step - REACH)
        self._wav, self._start = self._wav[:, :, start - self._start :].clone(), start
        return limited

    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Limit chunks (B, C, n), and yield the results that are not empty."""
        empty = None
        for chunk in chunks:
            limited, empty = self(chunk), chunk[:, :, :0]
            if limited.shape[2]:
                yield limited
        if empty is not None and (limited := self(empty, last=True)).shape[2]:
            yield limited

    @property
    def reductions(self) -> list[float]:
        """The largest reduction of each item's gain in dB; 0 if its sound is unchanged."""
        return [-20 * math.log10(max(1e-6, 1 - excess)) for excess in self._most.tolist()] if self._begun else []

    def _begin(self, chunk: Tensor) -> None:
        """Start with POINTS points of silence, over which the gain may fall for the first sample.

        Positions count from the first of these points.
        """
        (B, C, _), lead = chunk.shape, POINTS * self.step
        nothing = torch.zeros(B, 1, dtype=torch.float64, device=chunk.device)
        self._begun, self._taps, self._most = True, self._taps.to(chunk), nothing[:, 0]
        self._wav, self._start = chunk.new_zeros(B, C, REACH + lead), -REACH  # samples from `_start` on
        self._given = lead  # position of the first sample not given out
        self._measured, self._last = 0, nothing  # stretches between points measured; what the last one needs
        self._need, self._ahead = nothing[:, :0], 0  # 1 - gain that points need, from point `_ahead` on
        self._highest = nothing  # largest value so far before the release, raised by `fall` per point
        self._held = nothing.expand(B, POINTS)  # after the release, of the last POINTS points
        self._excess, self._first = nothing[:, :0], 0  # 1 - gain from point `_first` on

    def _measure(self, count: int) -> None:
        """Measure the peaks of the first `count` stretches, and compute 1 - gain as far as these determine it."""
        if count <= self._measured:
            return
        peaks = self._peaks(self._measured * self.step, count * self.step)
        peaks = peaks.unflatten(1, (-1, self.step)).amax(dim=2).double()  # (B, stretches)
        self._measured = count
        need = torch.where(peaks > self.ceiling, 1 - MARGIN * self.ceiling / peaks, 0.0)
        both = torch.maximum(need, torch.cat([self._last, need[:, :-1]], dim=1))  # a point serves two stretches
        self._last, self._need = need[:, -1:], torch.cat([self._need, both], dim=1)
        known = self._need.shape[1] - POINTS
        if known <= 0:
            return
        ahead = F.max_pool1d(self._need[:, None], POINTS + 1, stride=1)[:, 0]  # (B, known)
        fall = self.fall * torch.arange(self._ahead, self._ahead + known, dtype=torch.float64, device=ahead.device)
        highest = torch.cat([self._highest, ahead + fall], dim=1).cummax(dim=1).values[:, 1:]
        held = torch.cat([self._held, torch.maximum(ahead, highest - fall)], dim=1)
        excess = torch.zeros_like(ahead)
        for i, weight in enumerate(self._weights):
            excess += weight * held[:, i : i + known]
        self._need, self._ahead = self._need[:, known:], self._ahead + known
        self._highest, self._held = highest[:, -1:], held[:, known:]
        self._excess = torch.cat([self._excess, excess], dim=1)

    def _peaks(self, begin: int, end: int) -> Tensor:
        """Return the largest magnitude at each of the positions [begin, end) or between it and the next: (B, n)."""
        n, first = end - begin, begin - self._start - REACH + 1
        samples = self._wav[:, :, first : first + n + 2 * REACH - 1]
        peaks = samples[:, :, REACH - 1 : REACH - 1 + n].abs()
        if float(samples.abs().amax()) * self._bound > self.ceiling:
            between = torch.zeros_like(peaks)[:, :, None].repeat(1, 1, BETWEEN, 1)  # (B, C, BETWEEN, n)
            for i, taps in enumerate(self._taps):
                between += samples[:, :, None, i : i + n] * taps[:, None]
            peaks = torch.maximum(peaks, between.abs().amax(dim=2))
        return peaks.amax(dim=1)

    def _turned_down(self, wav: Tensor, begin: int, end: int) -> Tensor:
        """Apply the gain to the samples (B, C, n) at positions [begin, end)."""
        first, stop = begin // self.step, (end - 1) // self.step + 2
        self._excess, self._first = self._excess[:, first - self._first :], first
        excess = self._excess[:, : stop - first]  # (B, points)
        if not bool(excess.any()):
            return wav
        self._most = torch.maximum(self._most, excess.amax(dim=1))
        between = torch.arange(self.step, dtype=torch.float64, device=wav.device) / self.step
        slope = excess[:, 1:] - excess[:, :-1]
        gain = 1 - (excess[:, :-1, None] + slope[:, :, None] * between).flatten(1)  # (B, stretches * step)
        offset = begin - first * self.step
        return wav * gain[:, None, offset : offset + end - begin].to(wav.dtype)


def interpolation_taps() -> Tensor:
    """Return the taps that interpolate between samples -1 and 0 of the middle: (2 REACH, BETWEEN) float64.

    A sinc under a Kaiser window, exact to 0.03 dB up to 0.9 times the Nyquist frequency; each set sums to 1.
    """
    at = torch.arange(1, BETWEEN + 1, dtype=torch.float64) / (BETWEEN + 1)  # after the left neighbour
    distance = torch.arange(1 - REACH, REACH + 1, dtype=torch.float64)[:, None] - at  # (2 REACH, BETWEEN)
    inside = (1 - (distance / REACH).square()).clamp_min(0).sqrt()
    taps = torch.sinc(distance) * torch.special.i0(5.0 * inside)
    return taps / taps.sum(dim=0)


def log_reductions(reductions: Sequence[float]) -> None:
    """Log in one line how many sounds were turned down, and by how much; nothing if none was.

    Args:
        reductions: `Limiter.reductions` of the sounds.
    """
    acted = [reduction for reduction in reductions if reduction > 0]
    if acted:
        which = "" if len(reductions) == 1 else f" of {len(acted)} of {len(reductions)} sounds"
        log.info("limiter: peaks above %g dBTP%s were turned down, by at most %.1f dB", CEILING, which, max(acted))
