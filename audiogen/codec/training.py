"""Fitting the own codec to a folder, without adversaries."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import TrainingError
from .losses import SpectralLoss
from .networks import Decoder, Encoder
from .quantizer import CodebookLearner, ResidualVQ
from .reservoir import Reservoir

POOL_PASSES = 4  # over the crops in memory, before others are drawn
WARMUP_STEPS = 20  # of the learning rate
UNQUANTIZED = 0.2  # of the steps; k-means on what the encoder gives by then starts the codebooks
COMMITMENT_WEIGHT = 0.25


def train_autoencoder(encoder: Encoder, quantizer: ResidualVQ, decoder: Decoder, batches: Iterator[Tensor],
                      loss_of: SpectralLoss, num_steps: int, learning_rate: float, generator: torch.Generator) -> None:
    """Trains all three in place: as a plain autoencoder first, then through the quantizer.

    Half of the items use all codebooks, the others the first few of them (quantizer dropout, Zeghidour et al. 2021),
    so that the first rows alone decode well too.

    Args:
        batches: wavs (B, 1, N), of about unit power, at least num_steps of them.
        generator: on the CPU.

    Raises:
        TrainingError: the loss is not a number.
    """
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.8, 0.99), weight_decay=0.0)
    num_unquantized = max(1, round(UNQUANTIZED * num_steps))
    points = Reservoir(32 * quantizer.codebooks.shape[1], generator)
    learner = None
    for step in tqdm(range(num_steps), desc="fitting the codec", unit="step", disable=None):
        optimizer.param_groups[0]["lr"] = learning_rate * _schedule(step, num_steps)
        wav = next(batches)
        latent, _ = encoder(wav)  # (B, dim, T)
        commitment_loss = latent.new_zeros(())
        if learner is not None:
            depths = draw_depths(len(wav), quantizer.codebooks.shape[0], generator)
            latent, commitment_loss = learner.quantize(latent, depths)
        decoded, _ = decoder(latent)
        loss = loss_of(decoded, wav) + F.l1_loss(decoded, wav) + COMMITMENT_WEIGHT * commitment_loss
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"the codec's loss is not a number at step {step}: lower frontend.learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if learner is None:
            if 2 * step >= num_unquantized - 1:
                points.add(latent.detach().transpose(1, 2).flatten(0, 1))  # (B * T, dim)
            if step + 1 >= num_unquantized:
                start_codebooks(quantizer, points.rows(), generator)
                learner = CodebookLearner(quantizer, generator)


def start_codebooks(quantizer: ResidualVQ, points: Tensor, generator: torch.Generator) -> None:
    """k-means on the encoder's outputs (M, D), however few or alike: spare codewords are revived later on."""
    copies = math.ceil(quantizer.codebooks.shape[1] / len(points))
    quantizer.fit(points.repeat(copies, 1), generator, jitter=1e-3 * float(points.std()) + 1e-6)


def draw_depths(batch_size: int, num_codebooks: int, generator: torch.Generator) -> Tensor:
    """How many codebooks each item uses: all with a chance of one half, else evenly from 1 to K. (B,) int64."""
    few = torch.randint(1, num_codebooks + 1, (batch_size,), generator=generator)
    return torch.where(torch.rand(batch_size, generator=generator) < 0.5, num_codebooks, few)


def draw_crops(wavs: Iterable[Tensor], num_samples: int, capacity: int, generator: torch.Generator) -> Tensor:
    """At most `capacity` crops, each with the same chance, of the wavs (1, N) joined end to end: (M, 1, num_samples).

    The first cut lies at random, so that each call cuts elsewhere; the ends are filled with silence.
    """
    reservoir = Reservoir(capacity, generator)
    rest = torch.zeros(1, int(torch.randint(num_samples, (1,), generator=generator)))
    for wav in wavs:
        joined = torch.cat([rest, wav.float().cpu()], dim=1)
        num_crops = joined.shape[1] // num_samples
        reservoir.add(joined[:, : num_crops * num_samples].view(num_crops, 1, num_samples).clone())
        rest = joined[:, num_crops * num_samples :].clone()
    if rest.shape[1]:
        reservoir.add(F.pad(rest, (0, num_samples - rest.shape[1])).unsqueeze(0))
    return reservoir.rows()


def draw_batches(wavs: Callable[[], Iterable[Tensor]], num_samples: int, batch_size: int, capacity: int,
                 generator: torch.Generator) -> Iterator[Tensor]:
    """Batches (B, 1, num_samples) without end: crops are drawn, shuffled a few times over, and drawn anew."""
    while True:
        crops = draw_crops(wavs(), num_samples, capacity, generator)
        passes = max(POOL_PASSES, math.ceil(batch_size / len(crops)))
        order = torch.cat([torch.randperm(len(crops), generator=generator) for _ in range(passes)])
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield crops[order[start : start + batch_size]]


def _schedule(step: int, num_steps: int) -> float:
    """Factor of the learning rate: a short linear rise, then half a cosine down to a tenth."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (0.55 + 0.45 * math.cos(math.pi * step / num_steps))
