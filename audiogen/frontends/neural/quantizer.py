"""Residual vector quantization: each codebook codes what the ones before it left over."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...distributed import from_first_rank, sum_over_ranks
from .kmeans import cluster_sums, kmeans, nearest

REVIVE_BELOW = 0.3  # of the average codeword's use


class ResidualVQ(nn.Module):
    """K codebooks of V codewords; the first k of them are a coarser quantizer of their own.

    With a `lookup_dim` each codebook looks at a vector's projection to so few dimensions, by its direction alone, and
    what it chose is projected back (Yu et al. 2021, Improved VQGAN, section 3.2; Kumar et al. 2023, section 3.2).

    Attributes:
        codebooks: (K, V, L), a buffer, L being lookup_dim or else dim: codewords are found by k-means and moving
            averages, not by gradient.
        inward, outward: (K, L, D) and (K, D, L), parameters, with a lookup_dim alone.
    """

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int, lookup_dim: int | None = None):
        super().__init__()
        self.factorised = lookup_dim is not None
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, lookup_dim or dim))
        if lookup_dim is not None:
            self.inward = nn.Parameter(torch.randn(num_codebooks, lookup_dim, dim) / math.sqrt(dim))
            self.outward = nn.Parameter(torch.randn(num_codebooks, dim, lookup_dim) / math.sqrt(lookup_dim))

    def project_in(self, stage: int, x: Tensor) -> Tensor:
        """Vectors (M, D) as codebook `stage` sees them: (M, L)."""
        return F.normalize(x @ self.inward[stage].T, dim=1) if self.factorised else x

    def project_out(self, stage: int, codewords: Tensor) -> Tensor:
        """Codewords (..., L) of codebook `stage` as parts of a vector: (..., D)."""
        return codewords @ self.outward[stage].T if self.factorised else codewords

    def encode(self, x: Tensor) -> Tensor:
        """(B, D, T) -> codes (B, K, T)."""
        residual = x.transpose(1, 2).flatten(0, 1)  # (B * T, D)
        codes = []
        for stage, codebook in enumerate(self.codebooks):
            codes.append(nearest(self.project_in(stage, residual), codebook))
            residual = residual - self.project_out(stage, codebook[codes[-1]])
        return torch.stack(codes, dim=1).view(x.shape[0], x.shape[2], -1).transpose(1, 2).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k, T) of the first k <= K codebooks -> (B, D, T)."""
        total = sum(
            self.project_out(row, F.embedding(codes[:, row], self.codebooks[row])) for row in range(codes.shape[1])
        )
        return total.transpose(1, 2).contiguous()  # (B, T, D) -> (B, D, T)

    @torch.no_grad()
    def fit(self, points: Tensor, generator: torch.Generator, jitter: float = 0.0, iterations: int = 50) -> None:
        """Fits the codebooks to points (M, D) by k-means, each to the residuals of the ones before.

        Args:
            points: (M, D).
            generator: on the CPU.
            jitter: standard deviation of noise that makes equal points distinct.
            iterations: of k-means, at most.

        Raises:
            ValueError: there are fewer distinct points than codewords.
        """
        residual = points
        for stage, codebook in enumerate(self.codebooks):
            noise = torch.randn(points.shape, generator=generator) if jitter else torch.zeros(())
            seen = self.project_in(stage, residual + jitter * noise.to(points))
            codebook.copy_(self.on_sphere(kmeans(seen, len(codebook), generator, iterations)))
            residual = residual - self.project_out(stage, codebook[nearest(self.project_in(stage, residual), codebook)])

    def on_sphere(self, codewords: Tensor) -> Tensor:
        """Codewords (..., L) of length 1, where directions alone are looked up."""
        return F.normalize(codewords, dim=-1) if self.factorised else codewords


class CodebookLearner(nn.Module):
    """Trains the codebooks of a ResidualVQ alongside an encoder.

    Each codeword follows the moving average of the vectors that chose it (van den Oord et al. 2017, appendix A.1); one
    that hardly any vector chooses is put where a vector of the batch is (Dhariwal et al. 2020, "random restart"). Where
    several processes train together (torch.distributed), all of them count, and all have the same codebooks.
    """

    def __init__(self, quantizer: ResidualVQ, decay: float = 0.99):
        super().__init__()
        self.quantizer, self.decay = quantizer, decay
        self.register_buffer("counts", torch.ones_like(quantizer.codebooks[..., 0]))  # (K, V)
        self.register_buffer("sums", quantizer.codebooks.clone())  # (K, V, L)

    def start(self, points: Tensor, generator: torch.Generator) -> None:
        """k-means on the encoder's outputs (M, D), however few or alike: spare codewords are revived later on."""
        copies = math.ceil(self.quantizer.codebooks.shape[1] / len(points))
        jitter = 1e-3 * float(points.std(correction=0)) + 1e-6
        self.quantizer.fit(points.repeat(copies, 1), generator, jitter, iterations=10)
        from_first_rank(self.quantizer.codebooks)
        self.counts.fill_(1)
        self.sums.copy_(self.quantizer.codebooks)

    def quantize(self, x: Tensor, depths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One training step of the codebooks on encoder outputs (B, D, T).

        Args:
            x: (B, D, T).
            depths: (B,) how many of its first codebooks item b is made of; all learn from every item.
            generator: on the CPU, so that it draws the same on every device.

        Returns:
            quantized: (B, D, T), with x's gradient (straight_through).
            commitment_loss: mean squared distance of what each codebook looked at to what it chose, summed over them.
        """
        batch_size, dim, num_frames = x.shape
        vectors = x.transpose(1, 2).flatten(0, 1)  # (B * T, D)
        uses = depths.to(x.device).repeat_interleave(num_frames)[:, None]  # (B * T, 1)
        residual, quantized, commitment_loss = vectors, torch.zeros_like(vectors), x.new_zeros(())
        for stage in range(len(self.quantizer.codebooks)):
            seen = self.quantizer.project_in(stage, residual)
            chosen = self._step(stage, seen.detach(), generator)
            commitment_loss = commitment_loss + (seen - chosen).square().mean()
            if self.quantizer.factorised:  # the projections learn by gradient, and hand it on to the encoder
                chosen = self.quantizer.project_out(stage, seen + (chosen - seen).detach())
            residual = residual - chosen
            quantized = quantized + torch.where(uses > stage, chosen, 0)
        if not self.quantizer.factorised:
            quantized = vectors + (quantized - vectors).detach()
        return quantized.view(batch_size, num_frames, dim).transpose(1, 2), commitment_loss

    def perplexity(self) -> Tensor:
        """(K,) how many codewords of each codebook are in use, equally often used ones counting whole: 1 to V."""
        share = self.counts / self.counts.sum(1, keepdim=True)
        return torch.special.entr(share).sum(1).exp()

    def usage(self) -> Tensor:
        """(K,) the fraction of each codebook's codewords that need no revival."""
        return (self.counts >= REVIVE_BELOW * self.counts.mean(1, keepdim=True)).float().mean(1)

    @torch.no_grad()
    def _step(self, stage: int, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Vectors (M, L) -> the codewords that they choose (M, L), which then move toward them."""
        codebook, counts, sums = self.quantizer.codebooks[stage], self.counts[stage], self.sums[stage]
        codes = nearest(vectors, codebook)
        chosen = codebook[codes]
        batch_counts, batch_sums = map(sum_over_ranks, cluster_sums(vectors, codes, len(codebook)))
        counts.lerp_(batch_counts, 1 - self.decay)
        sums.lerp_(batch_sums, 1 - self.decay)
        usual = counts.mean()
        dead = counts < REVIVE_BELOW * usual
        places = torch.randint(len(vectors), (len(codebook),), generator=generator).to(vectors.device)
        sums.copy_(torch.where(dead[:, None], from_first_rank(vectors[places]) * usual, sums))
        counts.copy_(torch.where(dead, usual, counts))
        codebook.copy_(self.quantizer.on_sphere(sums / counts[:, None]))
        return chosen
