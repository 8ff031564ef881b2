"""Draw codes: filter the probabilities, and draw with uniform numbers that depend only on the seed and the step."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Temperature and filters, applied in this order; None disables a filter.

    For densities, the filters apply to the weights of the mixture components.

    Attributes:
        temperature: divides the logits, and scales the deviations of a density; 0 takes the most probable code.
        top_k: keep the k most probable codes.
        top_p: keep the smallest set of most probable codes whose probabilities sum to this (Holtzman et al. 2020,
            nucleus sampling).
        min_p: keep codes at least this fraction as probable as the most probable one (Nguyen et al. 2024).

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> Sampling(temperature=0.9, top_k=40).top_p is None
        True
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        for name, good, wanted in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not good:
                raise ConfigError(f"{name}: must be {wanted}, got {getattr(self, name)}")


def probabilities(logits: "Tensor", sampling: Sampling) -> "Tensor":
    """Convert logits (..., V) to filtered probabilities (..., V) float64 that sum to 1; temperature must not be 0."""
    logits = logits.double()
    # Shift the largest logit to 0, so that even a tiny temperature does not overflow.
    p = ((logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature).softmax(dim=-1)
    if sampling.top_k is not None and sampling.top_k < p.shape[-1]:
        # Select by rank, not by value: with ties, a threshold would keep more than k codes.
        ranks = p.argsort(dim=-1, descending=True, stable=True)[..., : sampling.top_k]
        p = p * p.new_zeros(p.shape).scatter_(-1, ranks, 1.0)
        p = p / p.sum(dim=-1, keepdim=True)
    if sampling.top_p is not None and sampling.top_p < 1:
        ranked, order = p.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(dim=-1) - ranked
        kept = p.new_zeros(p.shape).scatter_(-1, order, (before < sampling.top_p).to(p.dtype))
        p = p * kept
        p = p / p.sum(dim=-1, keepdim=True)
    if sampling.min_p:
        p = p * (p >= sampling.min_p * p.amax(dim=-1, keepdim=True))
        p = p / p.sum(dim=-1, keepdim=True)
    return p


def draw(logits: "Tensor", sampling: Sampling, uniforms: "Tensor") -> "Tensor":
    """Draw codes by inverting the cumulative distribution, in float64.

    Args:
        logits: (..., V).
        sampling: temperature and filters.
        uniforms: (...) float64 in (0, 1), one per draw.

    Returns:
        (...) int64: the first code whose cumulative probability exceeds the uniform number; V, which is not a code, if
        the logits contain NaN or the largest is infinite.
    """
    V = logits.shape[-1]
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).masked_fill(~logits.amax(dim=-1).isfinite(), V)
    cumulative = probabilities(logits, sampling).cumsum(dim=-1)
    # Scale by the total, which rounding may leave below 1, so that the last code covers the rest of the interval.
    threshold = uniforms.to(cumulative)[..., None] * cumulative[..., -1:]
    code = (cumulative <= threshold).sum(dim=-1).clamp(max=V - 1)
    return code.masked_fill(cumulative[..., -1].isnan(), V)


def fresh_seeds(count: int) -> list[int]:
    """Return seeds below 2**31 from the system's entropy."""
    return [secrets.randbelow(2**31) for _ in range(count)]


def uniforms(seeds: Sequence[int], start: int, stop: int, count: int) -> "Tensor":
    """Return the uniform numbers of steps [start, stop): a pure function of (seed, step), the same on every device.

    Computed by Philox-4x32-10 (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3) with the seed as key
    and (pair, step) as counter. Each pair of its four output words gives one 52-bit integer; adding one half to it is
    exact in float64 and excludes 0 and 1.

    Args:
        seeds: one per item, 0 <= seed < 2**64.
        start: first step.
        stop: end, exclusive.
        count: numbers per step.

    Returns:
        (len(seeds), stop - start, count) float64, strictly between 0 and 1.

    Raises:
        ConfigError: a seed is out of range.
    """
    import torch  # settings alone do without

    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed: must be from 0 to 2**64 - 1, got {seed}")
    key = np.array([int(seed) for seed in seeds], dtype=np.uint64)[:, None, None]
    step = np.arange(start, stop, dtype=np.uint64)[None, :, None]
    pair = np.arange((count + 1) // 2, dtype=np.uint64)[None, None, :]
    words = philox((pair, step & LOW, step >> HALF, np.zeros_like(pair)), (key & LOW, key >> HALF))
    numbers = [
        ((words[i] >> np.uint64(5)) * np.uint64(2**25) + (words[i + 1] >> np.uint64(7)) + 0.5) * 2.0**-52
        for i in (0, 2)
    ]
    shape = (len(seeds), stop - start, -1)
    return torch.from_numpy(np.stack(numbers, axis=-1).reshape(shape)[..., :count].copy())


LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: Sequence[np.ndarray], key: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Compute Philox-4x32-10: four counter words and two key words -> four words; uint64 arrays below 2**32."""
    counter = list(np.broadcast_arrays(*counter, *key)[:4])
    key = list(key)
    for _ in range(10):
        product = [counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)]
        counter = [
            (product[1] >> HALF) ^ counter[1] ^ key[0],
            product[1] & LOW,
            (product[0] >> HALF) ^ counter[3] ^ key[1],
            product[0] & LOW,
        ]
        key = [(key[0] + np.uint64(0x9E3779B9)) & LOW, (key[1] + np.uint64(0xBB67AE85)) & LOW]
    return counter
