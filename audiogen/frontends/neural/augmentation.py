"""Data augmentation for codec training: speed, gain, mixing."""

import math

import torch
from torch import Tensor

from ...utils.installation import load_torchaudio

SPEEDS = ((5, 4), (9, 8), (8, 9), (4, 5))  # samples before : after resampling; changes the pitch too
LONGEST = max(before / after for before, after in SPEEDS)  # crops must be longer than the result by this factor
AS_RECORDED = 0.5  # fraction of crops that keep their speed
LOUDNESS = (-18.0, 10.0)  # dB
MIXED = 0.25  # fraction of crops mixed with another of their batch


def vary(crops: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Draw a speed, a gain and an offset for each crop, and mix some with another crop.

    Source: SoundStream (Zeghidour et al. 2021), section 4.1, also mixes and scales training audio.

    Args:
        crops: (B, 1, M), M at least LONGEST * num_samples.
        num_samples: length of the result.
        generator: on the CPU; determines all draws.

    Returns:
        (B, 1, num_samples).
    """
    batch_size = len(crops)
    draws = torch.rand(5, batch_size, generator=generator, dtype=torch.float64)
    heard = []
    for crop, keeps, which, begins in zip(crops, *draws[:3].tolist(), strict=True):
        if keeps >= AS_RECORDED:
            crop = load_torchaudio().functional.resample(crop, *SPEEDS[int(which * len(SPEEDS))])
        start = int(begins * (crop.shape[1] - num_samples + 1))
        heard.append(crop[:, start : start + num_samples])
    low, high = LOUDNESS
    gains = 10 ** ((low + (high - low) * draws[3]) / 20)
    one = torch.stack(heard) * gains.to(crops)[:, None, None]  # (B, 1, num_samples)
    if batch_size == 1:
        return one
    return one + torch.where(draws[4].to(crops)[:, None, None] < MIXED, one.roll(1, dims=0), 0)


def longer(num_samples: int) -> int:
    """Return the smallest M that `vary` accepts."""
    return math.ceil(LONGEST * num_samples)
