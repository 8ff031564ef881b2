"""sampling.draw, compiled: for engines whose steps are shorter than a dozen calls of torch.

The same filters in the same order, and the same inverse of the cumulative probabilities in float64, so that it chooses
the code that sampling.draw chooses. numba keeps what it compiled on disk by the file of the *outermost* function alone:
after a change here, also touch the kernels that call this, or they go on with what they have.

numba compiles this where it is first called (seconds) and is imported here: import this module where it is used.
"""

import numpy as np

from ....models.sampling import Sampling
from ....utils.jit import compiled


def filters(sampling: Sampling, codebook_size: int) -> tuple[float, int, float, float]:
    """What `draw` takes: temperature, top_k, top_p, min_p; a filter that is off as the number that lets all through."""
    return (
        float(sampling.temperature),
        min(sampling.top_k or codebook_size, codebook_size),
        1.0 if sampling.top_p is None else float(sampling.top_p),
        float(sampling.min_p or 0.0),
    )


# numba hands a caller's fastmath on to what it calls, unless this says otherwise, and NaN would then be no NaN.
@compiled(fastmath=False)
def draw(logits: np.ndarray, filters: tuple[float, int, float, float], uniform: float, p: np.ndarray) -> int:
    """One code from (V,) float32 logits; V, which is no code, where they are not numbers.

    Args:
        filters: of the function of that name.
        uniform: in (0, 1).
        p: (V,) float64 to work in.
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
        order = np.argsort(-p, kind="mergesort")  # stable: of equal ones the smaller code first
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
