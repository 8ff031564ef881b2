"""WaveNet's generation loop as one compiled function: all layers of a step, the draw and the next embedding.

This module imports numba, and compiling takes seconds: import it only where it is used. numba's cache on disk checks
the content of this file only, so VERSION stands for the files that it imports (tests/test_kernel_versions.py).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from ....utils.jit import compiled
from .fast_exp import ONE, exp
from .finite import NAN, all_finite
from .matvec_columnwise import padded, product
from .sampling import combine, draw

VERSION = "dc9d4b0e"


class Weights(NamedTuple):
    """The weights of a model in the layout of the kernel; tuples come from matvec_columnwise.pack. R = residual_dim."""

    table: np.ndarray  # (K, V + 1, R), embedding times first layer; row 0 includes the bias
    direct: np.ndarray  # (K, V + 1, D), embedding times the gain of the direct path to the head
    gates: tuple  # 2R (past, current) -> 2R (filter, gate), L layers
    gate_bias: np.ndarray  # (L, 2R)
    outs: tuple  # R -> R + D (residual, skip), L layers
    residual_bias: np.ndarray  # (L, R)
    skip_bias: np.ndarray  # (D,)
    last: tuple  # (D, D)
    last_bias: np.ndarray  # (D,)
    head: tuple  # (D, K V)
    head_bias: np.ndarray  # (K V,)
    dilations: np.ndarray  # (L,)


@compiled(fastmath=True)
def run(weights, rings, position, hidden, seq, known, uniforms, filters, logits, added, guidance):
    """Generate n steps.

    Args:
        weights: packed weights.
        rings: (rows, sum of dilations, R), layer after layer; the input of step t is in slot t mod dilation.
        position: number of steps observed so far.
        hidden: (rows, padded D), from which the head predicts the next step; written in place. There is one row for
            each item, or, with guidance, two: with its conditions and without.
        seq: (B, K, n) codes, written in place where known is False.
        known: (K, n) bool.
        uniforms: (B, n, K) float64.
        filters: what sampling.filters returned.
        logits: (B, n, K, V), written in place; or (0, 0, 0, 0) to skip them.
        added: (rows or 1, n or 1, R + D), what conditions add to the embedding of each step, for `table` and `direct`.
        guidance: scale, where there are two rows for each item.
    """
    B, K, n = seq.shape
    rows = len(hidden)
    each = rows // B
    V, L, R, D = weights.table.shape[1] - 1, len(weights.dilations), weights.table.shape[2], len(weights.skip_bias)
    taps = np.zeros((rows, padded(2 * R)), np.float32)  # past and current
    gated = np.zeros((rows, padded(R)), np.float32)
    z = np.empty((rows, 2 * R), np.float32)
    path = np.empty((rows, R + D), np.float32)  # the residual stream and the sum of the skips
    rectified = np.zeros((rows, hidden.shape[1]), np.float32)
    out = np.empty((rows, D), np.float32)
    direct = np.empty((rows, D), np.float32)
    guided = hidden if rows == B else np.zeros((B, hidden.shape[1]), np.float32)
    scores = np.empty((B, K * V), np.float32)
    work = np.empty(max(2 * R, R + D, K * V), np.float32)
    p = np.empty(V, np.float64)
    for s in range(n):
        for b in range(B):
            scores[b] = weights.head_bias
        if rows > B:
            combine(hidden, guidance, guided)
        product(guided, weights.head[0], weights.head[1], scores, work)
        for r in range(rows):
            path[r, :R] = added[r % len(added), s % added.shape[1], :R]
            path[r, R:] = weights.skip_bias
            direct[r] = added[r % len(added), s % added.shape[1], R:]
        for b in range(B):
            for k in range(K):
                if not known[k, s]:
                    seq[b, k, s] = draw(scores[b, k * V : (k + 1) * V], filters, uniforms[b, s, k], p)
                if logits.size > 0:
                    logits[b, s, k] = scores[b, k * V : (k + 1) * V]
                for r in range(each * b, each * (b + 1)):
                    path[r, :R] += weights.table[k, seq[b, k, s]]
                    direct[r] += weights.direct[k, seq[b, k, s]]
        offset = 0
        for layer in range(L):
            dilation = weights.dilations[layer]
            slot = offset + (position + s) % dilation
            offset += dilation
            for r in range(rows):
                taps[r, :R] = rings[r, slot]
                taps[r, R : 2 * R] = path[r, :R]
                rings[r, slot] = path[r, :R]
                z[r] = weights.gate_bias[layer]
            product(taps, weights.gates[0][layer], weights.gates[1][layer], z, work)
            for r in range(rows):
                gate(z[r, :R], z[r, R:], gated[r])
                path[r, :R] += weights.residual_bias[layer]
            product(gated, weights.outs[0][layer], weights.outs[1][layer], path, work)
        for r in range(rows):
            rectify(path[r, R:], rectified[r])
            out[r] = weights.last_bias
        product(rectified, weights.last[0], weights.last[1], out, work)
        for r in range(rows):
            rectify(out[r], hidden[r])
            hidden[r, :D] += direct[r]


@njit(fastmath=True)
def rectify(x, y):
    """Write relu(x) to the first entries of y; NaN if one is not finite."""
    if not all_finite(x):
        y[: len(x)] = NAN
        return
    for i in range(len(x)):
        y[i] = max(x[i], np.float32(0))


TANH_CLAMP, SIGMOID_CLAMP = np.float32(9.5), np.float32(40)


@njit(fastmath=True, error_model="numpy")  # checks for division by zero would keep it from being vectorised
def gate(filtered, opened, y):
    """Write tanh(filtered) * sigmoid(opened) to y with a single division; beyond 9.5, tanh is 1 in float32."""
    if not (all_finite(filtered) and all_finite(opened)):
        y[: len(filtered)] = NAN
        return
    for i in range(len(filtered)):
        e = exp(2 * max(min(filtered[i], TANH_CLAMP), -TANH_CLAMP))
        y[i] = (e - ONE) / ((e + ONE) * (ONE + exp(max(min(-opened[i], SIGMOID_CLAMP), -SIGMOID_CLAMP))))
