"""Residual vector quantization: each codebook quantizes the residual of the previous ones."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...distributed import TreeSum, World
from ...utils.devices import send
from .kmeans import cluster_sums, kmeans, nearest

REVIVE_BELOW = 0.3  # codewords used less than this, relative to the average, are replaced


class ResidualVQ(nn.Module):
    """K codebooks of V codewords; the first k of them alone are a coarser quantizer.

    With a `lookup_dim`, each codebook compares the direction of the vector's projection to that many dimensions, and
    the chosen codeword is projected back (Yu et al. 2021, Improved VQGAN, section 3.2; Kumar et al. 2023, section 3.2).

    Attributes:
        codebooks: (K, V, L), L = lookup_dim or dim; a buffer, since k-means and moving averages set it, not gradients.
        inward, outward: (K, L, D) and (K, D, L), parameters; only with a lookup_dim.
    """

    codebooks: Tensor

    def __init__(self, num_codebooks: int, codebook_size: int, dim: int, lookup_dim: int | None = None):
        super().__init__()
        self.factorised = lookup_dim is not None
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, lookup_dim or dim))
        if lookup_dim is not None:
            self.inward = nn.Parameter(torch.randn(num_codebooks, lookup_dim, dim) / math.sqrt(dim))
            self.outward = nn.Parameter(torch.randn(num_codebooks, dim, lookup_dim) / math.sqrt(lookup_dim))

    def project_in(self, stage: int, x: Tensor) -> Tensor:
        """Project vectors (M, D) for lookup in codebook `stage`: (M, L)."""
        return F.normalize(x @ self.inward[stage].T, dim=1) if self.factorised else x

    def project_out(self, stage: int, codewords: Tensor) -> Tensor:
        """Project codewords (..., L) of codebook `stage` back to the latent dimension: (..., D)."""
        return codewords @ self.outward[stage].T if self.factorised else codewords

    def encode(self, x: Tensor) -> Tensor:
        """Quantize (B, D, T) to codes (B, K, T)."""
        residual = x.transpose(1, 2).flatten(0, 1)  # (B * T, D)
        codes = []
        for stage, codebook in enumerate(self.codebooks):
            codes.append(nearest(self.project_in(stage, residual), codebook))
            residual = residual - self.project_out(stage, codebook[codes[-1]])
        return torch.stack(codes, dim=1).view(x.shape[0], x.shape[2], -1).transpose(1, 2).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """Look up codes (B, k, T) of the first k <= K codebooks and sum them: (B, D, T)."""
        rows = (F.embedding(codes[:, row], self.codebooks[row]) for row in range(codes.shape[1]))
        total = sum((self.project_out(row, x) for row, x in enumerate(rows)), self.codebooks.new_zeros(()))
        return total.transpose(1, 2).contiguous()  # (B, T, D) -> (B, D, T)

    @torch.no_grad()
    def fit(self, points: Tensor, generator: torch.Generator, jitter: float = 0.0, iterations: int = 50) -> None:
        """Fit the codebooks to points (M, D) by k-means, each to the residuals of the previous ones.

        Args:
            points: (M, D).
            generator: on the CPU.
            jitter: standard deviation of added noise, which makes equal points distinct.
            iterations: maximum number of k-means iterations.

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
        """Normalise codewords (..., L) to length 1 if lookup compares directions."""
        return F.normalize(codewords, dim=-1) if self.factorised else codewords


class CodebookLearner(nn.Module):
    """Trains the codebooks of a ResidualVQ alongside an encoder.

    Each codeword follows the moving average of the vectors assigned to it (van den Oord et al. 2017, appendix A.1).
    Rarely used codewords are replaced by random vectors of the batch (Dhariwal et al. 2020, "random restart").

    `quantize` takes the statistics of a batch, and `update` moves the codebooks by those of all batches since the last
    update, on all ranks of `world`.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, quantizer: ResidualVQ, decay: float = 0.99, world: World = World()):
        super().__init__()
        self.quantizer, self.decay, self.world = quantizer, decay, world
        self._total = TreeSum()  # counts (V,) and sums (V, L) of each codebook
        self._spare: list[Tensor] = []  # random vectors (V, L) of the first batch, for each codebook
        self.register_buffer("counts", torch.ones_like(quantizer.codebooks[..., 0]))  # (K, V)
        self.register_buffer("sums", quantizer.codebooks.clone())  # (K, V, L)

    def start(self, points: Tensor, generator: torch.Generator) -> None:
        """Initialise by k-means on any number of encoder outputs (M, D); unused codewords are replaced later."""
        copies = math.ceil(self.quantizer.codebooks.shape[1] / len(points))
        jitter = 1e-3 * float(points.std(correction=0)) + 1e-6
        self.quantizer.fit(points.repeat(copies, 1), generator, jitter, iterations=10)
        self.world.copy_from_first([self.quantizer.codebooks])
        self.counts.fill_(1)
        self.sums.copy_(self.quantizer.codebooks)

    def quantize(self, x: Tensor, depths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Quantize encoder outputs (B, D, T), and take the statistics that `update` needs.

        Args:
            x: (B, D, T).
            depths: (B,), the number of codebooks to use for each item; all codebooks learn from every item.
            generator: on the CPU, so that draws are the same on every device.

        Returns:
            quantized: (B, D, T), with the gradient of x (straight-through).
            commitment_loss: mean squared distance between vectors and chosen codewords, summed over codebooks.
        """
        batch_size, dim, num_frames = x.shape
        vectors = x.transpose(1, 2).flatten(0, 1)  # (B * T, D)
        uses = send(depths, x.device).repeat_interleave(num_frames)[:, None]  # (B * T, 1)
        residual, quantized, commitment_loss = vectors, torch.zeros_like(vectors), x.new_zeros(())
        statistics, spare = [], []
        for stage, codebook in enumerate(self.quantizer.codebooks):
            seen = self.quantizer.project_in(stage, residual)
            codes = nearest(seen.detach(), codebook)
            chosen = codebook[codes]
            statistics += cluster_sums(seen.detach(), codes, len(codebook))
            places = torch.randint(len(seen), (len(codebook),), generator=generator)
            spare.append(seen.detach()[send(places, x.device)])
            commitment_loss = commitment_loss + (seen - chosen).square().mean()
            if self.quantizer.factorised:  # projections learn by gradient and pass it on to the encoder
                chosen = self.quantizer.project_out(stage, seen + (chosen - seen).detach())
            residual = residual - chosen
            quantized = quantized + torch.where(uses > stage, chosen, 0)
        self._total.add(statistics)
        self._spare = self._spare or spare
        if not self.quantizer.factorised:
            quantized = vectors + (quantized - vectors).detach()
        return quantized.view(batch_size, num_frames, dim).transpose(1, 2), commitment_loss

    def perplexity(self) -> Tensor:
        """Return the perplexity of each codebook's usage, its effective number of codewords, from 1 to V: (K,)."""
        share = self.counts / self.counts.sum(1, keepdim=True)
        return torch.special.entr(share).sum(1).exp()

    def usage(self) -> Tensor:
        """Return the fraction of each codebook's codewords that are in use: (K,)."""
        return (self.counts >= REVIVE_BELOW * self.counts.mean(1, keepdim=True)).float().mean(1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the codewords toward the vectors that chose them since the last update."""
        totals, spare = self.world.add_up(self._total.result()), self._spare
        self.world.copy_from_first(spare)
        self._spare = []
        for stage, codebook in enumerate(self.quantizer.codebooks):
            counts, sums = self.counts[stage], self.sums[stage]
            counts.lerp_(totals[2 * stage], 1 - self.decay)
            sums.lerp_(totals[2 * stage + 1], 1 - self.decay)
            usual = counts.mean()
            dead = counts < REVIVE_BELOW * usual
            sums.copy_(torch.where(dead[:, None], spare[stage] * usual, sums))
            counts.copy_(torch.where(dead, usual, counts))
            codebook.copy_(self.quantizer.on_sphere(sums / counts[:, None]))
