"""Residual vector quantization: each codebook codes what the ones before it left over."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_POINTS = 16384  # points whose distances to every codeword are held at once
REVIVE_BELOW = 0.1  # of the average codeword's use


class ResidualVQ(nn.Module):
    """K codebooks of V codewords; the first k of them are a coarser quantizer of their own.

    Attributes:
        codebooks: (K, V, D), a buffer: codewords are found by k-means and moving averages, not by gradient.
    """

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int):
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim))

    def encode(self, x: Tensor) -> Tensor:
        """(B, D, T) -> codes (B, K, T)."""
        residual = x.transpose(1, 2).flatten(0, 1)  # (B * T, D)
        codes = []
        for codebook in self.codebooks:
            codes.append(nearest(residual, codebook))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, dim=1).view(x.shape[0], x.shape[2], -1).transpose(1, 2).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) of the first k <= K codebooks -> (B, D, T)."""
        total = sum(F.embedding(codes[:, row], self.codebooks[row]) for row in range(codes.shape[1]))  # (B, T, D)
        return total.transpose(1, 2).contiguous()

    @torch.no_grad()
    def fit(self, points: Tensor, generator: torch.Generator, jitter: float = 0.0) -> None:
        """Fits the codebooks to points (M, D) by k-means, each to the residuals of the ones before.

        Args:
            points: (M, D).
            generator: on the CPU.
            jitter: standard deviation of noise that makes equal points distinct.

        Raises:
            ValueError: there are fewer distinct points than codewords.
        """
        residual = points
        for codebook in self.codebooks:
            noise = torch.randn(points.shape, generator=generator) if jitter else torch.zeros(())
            codebook.copy_(kmeans(residual + jitter * noise.to(points), len(codebook), generator))
            residual = residual - codebook[nearest(residual, codebook)]


class CodebookLearner:
    """Trains the codebooks of a ResidualVQ alongside an encoder.

    Each codeword follows the moving average of the vectors that chose it (van den Oord et al. 2017, appendix A.1); one
    that hardly any vector chooses is put where a vector of the batch is (Dhariwal et al. 2020, "random restart").
    """

    def __init__(self, quantizer: ResidualVQ, generator: torch.Generator, decay: float = 0.99):
        self.quantizer = quantizer
        self.generator = generator  # on the CPU, so that it draws the same on every device
        self.decay = decay
        self.counts = torch.ones_like(quantizer.codebooks[..., 0])  # (K, V)
        self.sums = quantizer.codebooks.clone()  # (K, V, D)

    def quantize(self, x: Tensor, depths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """One training step of the codebooks on encoder outputs (B, D, T), item b with its first depths[b] codebooks.

        Returns:
            quantized: (B, D, T), with x's gradient (straight_through).
            commitment_loss: mean squared distance of what each codebook was given to what it chose.
        """
        batch_size, dim, num_frames = x.shape
        vectors = x.transpose(1, 2).flatten(0, 1)  # (B * T, D)
        uses = torch.as_tensor(depths, device=x.device).repeat_interleave(num_frames)  # (B * T,)
        quantized = torch.zeros_like(vectors)
        commitment_loss = x.new_zeros(())
        for stage in range(len(self.quantizer.codebooks)):
            active = uses > stage
            if not bool(active.any()):
                break
            residual = vectors - quantized  # gradients reach the encoder through vectors alone
            chosen = self._step(stage, residual[active].detach())
            picked = torch.zeros_like(quantized).masked_scatter(active[:, None], chosen)
            commitment_loss = commitment_loss + ((residual - picked)[active]).square().mean()
            quantized = quantized + picked
        straight_through = vectors + (quantized - vectors).detach()
        return straight_through.view(batch_size, num_frames, dim).transpose(1, 2), commitment_loss

    @torch.no_grad()
    def _step(self, stage: int, vectors: Tensor) -> Tensor:
        """Vectors (M, D) -> the codewords that they choose (M, D), which then move toward them."""
        codebook, counts, sums = self.quantizer.codebooks[stage], self.counts[stage], self.sums[stage]
        codes = nearest(vectors, codebook)
        chosen = codebook[codes]
        batch_counts, batch_sums = cluster_sums(vectors, codes, len(codebook))
        counts.lerp_(batch_counts, 1 - self.decay)
        sums.lerp_(batch_sums, 1 - self.decay)
        usual = counts.mean()
        dead = counts < REVIVE_BELOW * usual
        places = torch.randint(len(vectors), (len(codebook),), generator=self.generator).to(vectors.device)
        sums.copy_(torch.where(dead[:, None], vectors[places] * usual, sums))
        counts.copy_(torch.where(dead, usual, counts))
        codebook.copy_(sums / counts[:, None])
        return chosen


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codeword, the first of equals: (M, D), (V, D) -> (M,) int64."""
    half_squares = codebook.square().sum(1) / 2  # |p - c|^2 = |p|^2 + 2 (|c|^2 / 2 - p c)
    blocks = points.split(BLOCK_POINTS)
    return torch.cat([torch.addmm(half_squares, block, codebook.T, alpha=-1).argmin(1) for block in blocks])


def kmeans(points: Tensor, num_clusters: int, generator: torch.Generator, iterations: int = 50) -> Tensor:
    """Cluster centres by Lloyd's algorithm from a k-means++ start: (M, D) -> (num_clusters, D).

    An empty cluster is moved to the point that is farthest from its own centre. It ends after `iterations`, or once
    a round gains less than 0.01 %.

    Args:
        points: (M, D), at least num_clusters of them distinct.
        num_clusters: V.
        generator: on the CPU.
        iterations: at most so many rounds.

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
    """k-means++ (Arthur and Vassilvitskii 2007): each start is drawn by its squared distance to those before it."""
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
        # The first place where the sum exceeds the draw has a distance above 0, so no point comes twice.
        place = torch.searchsorted(cumulative, uniforms[index : index + 1] * cumulative[-1], right=True)
        centres[index] = candidates[place.clamp_max(len(candidates) - 1)][0]
        to_this = (candidates - centres[index]).square().sum(1).double()
        distances = to_this if index == 0 else torch.minimum(distances, to_this)
    return centres


def cluster_sums(points: Tensor, codes: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """How many points each cluster has, and their sum: (M, D), (M,) -> (V,), (V, D)."""
    counts = torch.bincount(codes, minlength=num_clusters).to(points.dtype)
    sums = points.new_zeros(num_clusters, points.shape[1]).index_add_(0, codes, points)
    return counts, sums
