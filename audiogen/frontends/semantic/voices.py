"""Change the voice, the room and the level of log-mel frames, for training."""

import math

import numpy as np
import torch
from torch import Tensor

from ...audio.dsp import hz_to_mel, mel_to_hz

LARGEST_WARP = 0.3  # nats of frequency
WARPS = 61  # of the grid from -LARGEST_WARP to LARGEST_WARP
LEVEL, TILT, WAVE = 1.2, 0.8, 0.5  # nats of power, standard deviations
LOWPASS = 0.3  # fraction of the recordings that lose what is above LOWEST_TOP or higher
LOWEST_TOP = 3600.0  # Hz


class Voices:
    """Draws a voice and a channel for log-mel frames (F, T).

    The frequency axis is stretched (Jaitly and Hinton 2013, vocal tract length perturbation), which moves formants and
    pitch together. The level, the tilt and a wave over the bands are changed, and some recordings lose high
    frequencies, so that recordings of low sample rates are nothing special.

    Args:
        num_bands: F.
        top: upper edge of the last band in Hz.
        floor: log power of silence.
        spread: standard deviation of the stretch, in nats of frequency.
    """

    def __init__(self, num_bands: int, top: float, floor: float, spread: float):
        self.floor, self.spread = torch.tensor(floor), spread
        self.grid = np.linspace(-LARGEST_WARP, LARGEST_WARP, WARPS)
        self.matrices = torch.stack([stretch(num_bands, top, math.exp(warp)) for warp in self.grid])
        self.place = torch.linspace(-1, 1, num_bands)[:, None]  # (F, 1)
        self.lowest = sum(hertz < LOWEST_TOP for hertz in centres(num_bands, top))  # bands that are never lost

    def __call__(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Change log power (F, T) by one draw."""
        warp = np.abs(self.grid - rng.normal(0, self.spread)).argmin()
        filtered = rng.normal(0, LEVEL) + rng.normal(0, TILT) * self.place
        phase = math.pi * rng.uniform(0.5, 4) * self.place + rng.uniform(0, 2 * math.pi)
        filtered = filtered + rng.normal(0, WAVE) * torch.cos(phase)
        y = torch.logaddexp(self.matrices[warp] @ x.float() + filtered.float(), self.floor)
        if rng.random() < LOWPASS:
            y[rng.integers(self.lowest, len(x) + 1) :] = self.floor
        return y


def stretch(num_bands: int, top: float, factor: float) -> Tensor:
    """Return (F, F) that interpolates log power between bands, so that what was at f Hz is at factor * f Hz."""
    at = np.array([hz_to_mel(hertz / factor) for hertz in centres(num_bands, top)])
    at = (at / hz_to_mel(top) * (num_bands + 1) - 1).clip(0, num_bands - 1)  # in bands
    return torch.from_numpy(1 - np.abs(at[:, None] - np.arange(num_bands))).clamp_min(0).float()


def centres(num_bands: int, top: float) -> list[float]:
    """Return the centres of mel bands in Hz."""
    return [mel_to_hz(hz_to_mel(top) * (band + 1) / (num_bands + 1)) for band in range(num_bands)]
