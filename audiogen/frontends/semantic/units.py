"""Units of sound: MFCCs, and clusters of these and other features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..neural.crops import generator_for
from ..neural.kmeans import kmeans

NUM_CEPSTRA = 13
SLOPE = (-0.2, -0.1, 0.0, 0.1, 0.2)  # linear regression over five frames
MOST_POINTS = 40_000  # for k-means


def cepstra(log_power: Tensor) -> Tensor:
    """Compute MFCCs without their mean, with deltas and second deltas: log-mel (F, 2 T) -> (T, 3 NUM_CEPSTRA).

    Pairs of frames are averaged. Without the mean, the channel and part of the voice are gone.
    """
    num_bands = len(log_power)
    angles = math.pi / num_bands * (torch.arange(num_bands) + 0.5) * torch.arange(NUM_CEPSTRA)[:, None]
    x = math.sqrt(2 / num_bands) * torch.cos(angles) @ log_power.float()
    x = x - x.mean(1, keepdim=True)
    slope = torch.tensor(SLOPE)[None, None]
    deltas = [x]
    for _ in range(2):
        padded = F.pad(deltas[-1][:, None], (len(SLOPE) // 2,) * 2, mode="replicate")
        deltas.append(F.conv1d(padded, slope)[:, 0])
    return torch.cat(deltas).unflatten(1, (-1, 2)).mean(2).T


def cluster(points: Sequence[Tensor], num_clusters: int, seed: int) -> Tensor:
    """Cluster points (T, D) of many recordings by k-means: (num_clusters, D)."""
    x = torch.cat(list(points))
    generator = generator_for(seed)
    x = x[torch.randperm(len(x), generator=generator)[:MOST_POINTS]]
    # Silence repeats itself to the bit: with noise, there are always enough distinct points.
    copies = x.repeat(math.ceil(num_clusters / len(x)), 1)
    noise = 1e-3 * float(x.std(correction=0)) + 1e-6
    return kmeans(copies + noise * torch.randn(copies.shape, generator=generator), num_clusters, generator, 25)
