"""The stereo image of recordings, measured band by band, and given back to mono sound.

Models are mono: they learn the middle, (left + right) / 2. What is lost is the side, (left - right) / 2. In each
band, part of it follows the middle (`balance`: the sound comes from the left or the right), and the rest does not
(`width`: the sound is all around). So the side is made from the middle by a filter, of which one part is in phase and
the other has random phases. The mix to mono stays exactly the middle.

    middle ──┬───────────────(+)── left
             └── filter ── side
    middle ──┬───────────────(-)── right

Source: Breebaart et al. 2005, Parametric Coding of Stereo Audio (levels and coherence per band, decorrelation); the
values are constant in time here.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError
from .limiter import Limiter

LOWEST, BANDS = 31.25, 29  # centre in Hz of the first of the third-octave bands, and their number: up to 20 kHz
WINDOW = 4096  # samples per spectrum
REACH = 0.02  # seconds that the filter reaches to either side
DECAY = 0.004  # seconds in which what has random phases falls to 1/e: longer ones blur the onsets of drums
LARGEST = 4.0  # of balance and width; only sound that is almost out of phase has more
DUAL_MONO = 1e-4  # share of the side in the power, below which two channels count as the same


@dataclass(frozen=True)
class StereoImage:
    """The side of a stereo sound relative to its middle, in third-octave bands from 31 Hz up.

    Attributes:
        balance: part of the side that follows the middle, as a factor from -4 to 4; positive on the left.
        width: deviation of the rest of the side, as a factor from 0 to 4.
    """

    balance: tuple[float, ...]
    width: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, least in (("balance", -LARGEST), ("width", 0.0)):
            values = getattr(self, name)
            if len(values) != BANDS or not all(least <= value <= LARGEST for value in values):
                raise ConfigError(f"stereo.{name}: must be {BANDS} numbers from {least:g} to {LARGEST:g}")

    def kernel(self, sample_rate: int) -> Tensor:
        """Return the filter that makes the side of the middle, (2 R + 1,) float32 with its centre at R."""
        R = round(REACH * sample_rate)
        size = 1 << math.ceil(math.log2(8 * R))
        hertz = np.fft.rfftfreq(size, 1 / sample_rate)
        at = np.log2(np.maximum(hertz, 1.0) / LOWEST) * 3  # in bands
        balance, width = (np.interp(at, range(BANDS), values) for values in (self.balance, self.width))
        n = np.arange(R)
        noise = np.random.default_rng(0).standard_normal(R) * np.exp(-n / (DECAY * sample_rate))
        phases = np.fft.rfft(noise, size)
        response = balance + width * phases / np.abs(phases)
        # Where phases change little within a band, both parts add up or cancel; the level shall be right all the same.
        response *= np.hypot(balance, width) / np.maximum(np.abs(response), 1e-9)
        taps = np.fft.irfft(response, size)
        taps = np.concatenate([taps[-R:], taps[: R + 1]]) * np.hanning(2 * R + 3)[1:-1] ** 0.25
        return torch.from_numpy(taps).float()


def measure_image(blocks: Iterable[tuple[np.ndarray, int]]) -> StereoImage | None:
    """Measure the stereo image of recordings.

    Args:
        blocks: samples (n, 2) and their sample rate in Hz. A rest of fewer than WINDOW samples is padded.

    Returns:
        The image; None if both channels are the same, or silent.
    """
    powers = np.zeros((3, BANDS))  # of the middle and the side, and what they have in common
    for samples, sample_rate in blocks:
        left, right = np.pad(samples, ((0, -len(samples) % WINDOW), (0, 0))).astype(np.float64).T
        windows = np.stack([left + right, left - right]).reshape(2, -1, WINDOW) / 2
        middle, side = np.fft.rfft(windows * np.hanning(WINDOW))
        hertz = np.fft.rfftfreq(WINDOW, 1 / sample_rate)
        band = np.rint(np.log2(np.maximum(hertz, 1.0) / LOWEST) * 3).clip(0, BANDS - 1).astype(int)
        for total, values in zip(powers, (abs(middle) ** 2, abs(side) ** 2, (middle.conj() * side).real), strict=True):
            total += np.bincount(band, values.sum(axis=0), BANDS)
    middle, side, common = powers
    if not side.sum() > DUAL_MONO * middle.sum():
        return None
    heard = middle > 1e-9 * middle.max()  # bands that no recording reaches have no image
    balance = np.where(heard, common / np.maximum(middle, 1e-30), 0)
    width = np.where(heard, np.sqrt((side / np.maximum(middle, 1e-30) - balance**2).clip(0)), 0)
    rounded = (np.round(values.clip(-LARGEST, LARGEST), 4).tolist() for values in (balance, width))
    return StereoImage(*(tuple(values) for values in rounded))


class StereoLimiter(Limiter):
    """Give mono sound (B, 1, N) a stereo image, chunk by chunk, and limit its peaks: (B, 2, N).

    Args:
        image: the image.
        sample_rate: Hz.

    Example:
        >>> image = StereoImage(balance=(0.5,) * BANDS, width=(0.0,) * BANDS)
        >>> left, right = StereoLimiter(image, 8000)(0.1 * torch.randn(1, 1, 800), last=True)[0]
        >>> bool(left.square().mean() > 5 * right.square().mean())
        True
    """

    def __init__(self, image: StereoImage, sample_rate: int):
        super().__init__(sample_rate)
        self._filter = image.kernel(sample_rate).flip(0)[None, None]
        self._reach = self._filter.shape[2] // 2
        self._mono: Tensor | None = None

    def __call__(self, chunk: Tensor, last: bool = False) -> Tensor:
        """Process the next chunk (B, 1, n) -> (B, 2, m): the samples that are final by now, or all if `last`."""
        before = chunk.new_zeros(len(chunk), 1, self._reach) if self._mono is None else self._mono
        wav = F.pad(torch.cat([before, chunk], dim=2), (0, self._reach if last else 0))
        count = max(0, wav.shape[2] - 2 * self._reach)
        self._mono = wav[:, :, count:]
        middle, side = wav[:, :, self._reach :][:, :, :count], wav[:, :, :0]
        if count:
            side = F.conv1d(wav, self._filter.to(wav))
        return super().__call__(torch.cat([middle + side, middle - side], dim=1), last)
