"""A compiled version of sampling.draw, for engines whose steps take less time than a dozen calls of torch.

It applies the same filters in the same order, and inverts the cumulative probabilities in float64, so that it chooses
the same codes as sampling.draw. numba's cache on disk checks the file of the outermost function only, hence VERSION in
the kernels that call it.

This module imports numba, and compiling takes seconds: import it only where it is used.
"""

import numpy as np

from ....models.sampling import Sampling
from ....utils.jit import compiled


def filters(sampling: Sampling, codebook_size: int) -> tuple[float, int, float, float]:
    """Return (temperature, top_k, top_p, min_p) for `draw`; a disabled filter gets the value that keeps all codes."""
    return (
        float(sampling.temperature),
        min(sampling.top_k or codebook_size, codebook_size),
        1.0 if sampling.top_p is None else float(sampling.top_p),
        float(sampling.min_p or 0.0),
    )


@compiled(fastmath=False)
def combine(hidden: np.ndarray, scale: float, guided: np.ndarray) -> None:
    """Combine two rows for each item, given and null (2 B, D), into guided (B, D), as `Head.combine` does."""
    for b in range(len(guided)):
        given, null = hidden[2 * b], hidden[2 * b + 1]
        for i in range(guided.shape[1]):
            guided[b, i] = null[i] + scale * (given[i] - null[i])


# Without this, numba would apply the caller's fastmath here too, and checks for NaN would be optimised away.
@compiled(fastmath=False)
def draw(logits: np.ndarray, filters: tuple[float, int, float, float], uniform: float, p: np.ndarray) -> int:
    """Draw one code; return V, which is not a code, if the logits contain NaN or the largest is infinite.

    Args:
        logits: (V,) float32.
        filters: what `filters` returned.
        uniform: in (0, 1).
        p: (V,) float64, working memory.
    """
    temperature, top_k, top_p, min_p = filters
    V = len(logits)
    best = 0
    for v in range(1, V):
        if logits[v] > logits[best]:
            best = v
    largest, total = np.float64(logits[best]), 0.0
    if temperature == 0:
        for v in range(V):  # NaN is not larger than anything
            total += np.float64(logits[v]) - largest
        return V if np.isnan(total) else best
    for v in range(V):
        p[v] = np.exp((np.float64(logits[v]) - largest) / temperature)
        total += p[v]
    if np.isnan(total):
        return V
    if top_k < V or top_p < 1:
        for v in range(V):
            p[v] /= total
        order = np.argsort(-p, kind="mergesort")  # stable: of equal ones, the smaller code first
        if top_k < V:
            for rank in range(top_k, V):
                p[order[rank]] = 0.0
            total = p.sum()
            for v in range(V):
                p[v] /= total
        if top_p < 1:
            before = 0.0
            for rank in range(V):
                following = before + p[order[rank]]
                if following - p[order[rank]] >= top_p:
                    p[order[rank]] = 0.0
                before = following
    if min_p > 0:
        least = min_p * p[best]
        for v in range(V):
            if p[v] < least:
                p[v] = 0.0
    total = p.sum()
    threshold, cumulative = uniform * total, 0.0
    for v in range(V):
        cumulative += p[v]
        if cumulative > threshold:
            return v
    return V - 1
