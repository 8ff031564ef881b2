"""WaveNet's loop in one compiled function: all layers of a step, the draw and the next embedding, without a pause.

numba compiles this where it is first called (seconds) and is imported here: import this module where it is used. What
it keeps on disk goes by this file alone: touch it after a change in sampling.py, fast_exp.py, finite.py or
matvec_columnwise.py.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from ....utils.jit import compiled
from .fast_exp import ONE, exp
from .finite import NAN, all_finite
from .matvec_columnwise import padded, product
from .sampling import draw


class Weights(NamedTuple):
    """A model's weights as the kernel reads them; a pair is what products.pack makes. L layers, R = residual_dim."""

    table: np.ndarray  # (K, V + 1, R) embedding and first layer in one, its bias in that of row 0
    direct: np.ndarray  # (K, V + 1, D) embedding times the gain of what goes straight to the head
    gates: tuple  # (L, past and present, filtered and opened), 2R -> 2R
    gate_bias: np.ndarray  # (L, 2R)
    outs: tuple  # (L, R, residual and skip), R -> R + D
    residual_bias: np.ndarray  # (L, R)
    skip_bias: np.ndarray  # (D,)
    last: tuple  # (D, D)
    last_bias: np.ndarray  # (D,)
    head: tuple  # (D, K V)
    head_bias: np.ndarray  # (K V,)
    dilations: np.ndarray  # (L,)


@compiled(fastmath=True)
def run(weights, rings, position, hidden, seq, known, uniforms, filters, logits):
    """Goes through n steps.

    Args:
        rings: (sum of the dilations, B, R), the layers one after the other; the input of step t in slot t mod dilation.
        position: steps observed so far.
        hidden: (B, padded D) that predicts the next step; written in place.
        seq: (B, K, n) codes, written in place where known (K, n) is False.
        uniforms: (B, n, K) float64.
        filters: as draws.filters makes them.
        logits: (B, n, K, V) to be written, or (0, 0, 0, 0).
    """
    B, K, n = seq.shape
    V, L, R, D = weights.table.shape[1] - 1, len(weights.dilations), weights.table.shape[2], len(weights.skip_bias)
    taps = np.zeros((B, padded(2 * R)), np.float32)  # past and present
    gated = np.zeros((B, padded(R)), np.float32)
    z = np.empty((B, 2 * R), np.float32)
    path = np.empty((B, R + D), np.float32)  # the residual stream and the sum of the skips
    rectified = np.zeros((B, hidden.shape[1]), np.float32)
    out = np.empty((B, D), np.float32)
    direct = np.empty((B, D), np.float32)
    scores = np.empty((B, K * V), np.float32)
    work = np.empty(max(2 * R, R + D, K * V), np.float32)
    p = np.empty(V, np.float64)
    for s in range(n):
        for b in range(B):
            scores[b] = weights.head_bias
        product(hidden, weights.head[0], weights.head[1], scores, work)
        for b in range(B):
            path[b, :R] = np.float32(0)
            path[b, R:] = weights.skip_bias
            direct[b] = np.float32(0)
            for k in range(K):
                if not known[k, s]:
                    seq[b, k, s] = draw(scores[b, k * V : (k + 1) * V], filters, uniforms[b, s, k], p)
                if logits.size > 0:
                    logits[b, s, k] = scores[b, k * V : (k + 1) * V]
                path[b, :R] += weights.table[k, seq[b, k, s]]
                direct[b] += weights.direct[k, seq[b, k, s]]
        offset = 0
        for layer in range(L):
            dilation = weights.dilations[layer]
            ring = rings[offset + (position + s) % dilation]  # (B, R)
            offset += dilation
            for b in range(B):
                taps[b, :R] = ring[b]
                taps[b, R : 2 * R] = path[b, :R]
                ring[b] = path[b, :R]
                z[b] = weights.gate_bias[layer]
            product(taps, weights.gates[0][layer], weights.gates[1][layer], z, work)
            for b in range(B):
                gate(z[b, :R], z[b, R:], gated[b])
                path[b, :R] += weights.residual_bias[layer]
            product(gated, weights.outs[0][layer], weights.outs[1][layer], path, work)
        for b in range(B):
            rectify(path[b, R:], rectified[b])
            out[b] = weights.last_bias
        product(rectified, weights.last[0], weights.last[1], out, work)
        for b in range(B):
            rectify(out[b], hidden[b])
            hidden[b, :D] += direct[b]


@njit(fastmath=True)
def rectify(x, y):
    if not all_finite(x):
        y[: len(x)] = NAN
        return
    for i in range(len(x)):
        y[i] = max(x[i], np.float32(0))


TANH_CLAMP, SIGMOID_CLAMP = np.float32(9.5), np.float32(40)


@njit(fastmath=True)
def gate(filtered, opened, y):
    """tanh(filtered) sigmoid(opened), the two divisions in one; beyond 9.5 tanh is 1 in float32."""
    if not (all_finite(filtered) and all_finite(opened)):
        y[: len(filtered)] = NAN
        return
    for i in range(len(filtered)):
        e = exp(2 * max(min(filtered[i], TANH_CLAMP), -TANH_CLAMP))
        y[i] = (e - ONE) / ((e + ONE) * (ONE + exp(max(min(-opened[i], SIGMOID_CLAMP), -SIGMOID_CLAMP))))
