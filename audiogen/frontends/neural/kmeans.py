"""K-means: nearest codewords, and Lloyd's algorithm with k-means++ initialisation."""

import torch
from torch import Tensor

BLOCK_POINTS = 16384  # points processed at once, to bound the memory of their distances


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest codeword, the first of equals: (M, D), (V, D) -> (M,) int64."""
    half_squares = codebook.square().sum(1) / 2  # |p - c|^2 = |p|^2 + 2 (|c|^2 / 2 - p c)
    blocks = points.split(BLOCK_POINTS)
    return torch.cat([torch.addmm(half_squares, block, codebook.T, alpha=-1).argmin(1) for block in blocks])


def kmeans(points: Tensor, num_clusters: int, generator: torch.Generator, iterations: int = 50) -> Tensor:
    """Find cluster centres by Lloyd's algorithm with k-means++ initialisation: (M, D) -> (num_clusters, D).

    Empty clusters move to the points farthest from their centres. Stops after `iterations`, or when an iteration
    improves the error by less than 0.01 %.

    Args:
        points: (M, D), at least num_clusters of them distinct.
        num_clusters: V.
        generator: on the CPU.
        iterations: maximum number of iterations.

    Raises:
        ValueError: there are fewer distinct points than clusters.
    """
    centres = _spread_start(points, num_clusters, generator)
    previous = float("inf")
    for _ in range(iterations):
        codes = nearest(points, centres)
        distances = (points - centres[codes]).square().sum(1)
        error = float(distances.double().mean())
        if error >= previous * (1 - 1e-4):
            break
        previous = error
        counts, sums = cluster_sums(points, codes, num_clusters)
        empty = counts == 0
        centres = torch.where(empty[:, None], centres, sums / counts.clamp_min(1)[:, None])
        num_empty = int(empty.sum())
        if num_empty:
            centres[empty] = points[distances.topk(num_empty).indices]
    return centres


def _spread_start(points: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Draw each centre with probability proportional to its squared distance to the previous ones.

    Source: k-means++ (Arthur and Vassilvitskii 2007).
    """
    candidates = points
    if len(points) > 32 * num_clusters:  # enough to choose from, and much faster
        candidates = points[torch.randperm(len(points), generator=generator)[: 32 * num_clusters].to(points.device)]
    uniforms = torch.rand(num_clusters, dtype=torch.float64, generator=generator).to(points.device)
    centres = torch.empty(num_clusters, points.shape[1], dtype=points.dtype, device=points.device)
    distances = torch.ones(len(candidates), dtype=torch.float64, device=points.device)
    for index in range(num_clusters):
        cumulative = distances.cumsum(0)
        if float(cumulative[-1]) == 0:
            raise ValueError(f"only {index} distinct points for {num_clusters} clusters")
        # The first place where the sum exceeds the draw has a distance above 0, so no point is drawn twice.
        place = torch.searchsorted(cumulative, uniforms[index : index + 1] * cumulative[-1], right=True)
        centres[index] = candidates[place.clamp_max(len(candidates) - 1)][0]
        to_this = (candidates - centres[index]).square().sum(1).double()
        distances = to_this if index == 0 else torch.minimum(distances, to_this)
    return centres


def cluster_sums(points: Tensor, codes: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Count the points of each cluster and sum them: (M, D), (M,) -> (V,), (V, D)."""
    counts = points.new_zeros(num_clusters).index_add_(0, codes, torch.ones_like(points[:, 0]))  # bincount would wait
    sums = points.new_zeros(num_clusters, points.shape[1]).index_add_(0, codes, points)
    return counts, sums
