"""GPT's generation loop as one compiled function: all layers of a step, the draw and the next embedding.

It computes what backbones.gpt and layers.CausalAttention compute for a chunk of one step. Keys are stored in blocks of
steps, so that the scores of a block are computed together and the window is read sequentially:

    keys    (W / BLOCK, H, D / H, BLOCK)        scores[j] += query[d] keys[d, j]        j fastest
    values  (W, H, D / H)                       y[d] += weight[j] values[j, d]          d fastest

If weights are rounded, both are stored as bf16: beyond some hundred steps, reading them takes longer than reading the
weights.

This module imports numba, and compiling takes seconds: import it only where it is used. numba's cache on disk checks
the content of this file only, so VERSION stands for the files that it imports (tests/test_kernel_versions.py).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from ....utils.jit import compiled
from .bf16 import narrow, widen
from .fast_exp import exp
from .finite import NAN, all_finite
from .matvec_rowwise import Rows, product
from .sampling import combine, draw

VERSION = "08c0ab57"

BLOCK = 32  # steps per block of keys: as bf16, a cache line


class Weights(NamedTuple):
    """The weights of a model with L layers, in the layout of the kernel."""

    table: np.ndarray  # (K, V + 1, D)
    norms: (
        np.ndarray
    )  # (2 L + 1, 2, D): weight and bias of the norms before each attention and feed-forward, and the last
    qkv: Rows
    out: Rows
    up: Rows
    down: Rows
    head: Rows  # one layer
    frequencies: np.ndarray  # (D / H / 2,) float64, of the rotary positions


@compiled(fastmath=True)
def run(weights, keys, values, position, hidden, seq, known, uniforms, filters, logits, added, guidance):
    """Generate n steps.

    Args:
        weights: packed weights.
        keys: (rows, L, W / BLOCK, H, D / H, BLOCK) float32, or bf16 as uint16; step t is in slot t mod W. The last
            block may extend beyond W.
        values: (rows, L, W, H, D / H), of the same type.
        position: number of steps observed so far.
        hidden: (rows, D), from which the head predicts the next step; written in place. There is one row for each item,
            or, with guidance, two: with its conditions and without.
        seq: (B, K, n) codes, written in place where known is False.
        known: (K, n) bool.
        uniforms: (B, n, K) float64.
        filters: what sampling.filters returned.
        logits: (B, n, K, V), written in place; or (0, 0, 0, 0) to skip them.
        added: (rows or 1, n or 1, D), what conditions add to the embedding of each step.
        guidance: scale, where there are two rows for each item.
    """
    B, K, n = seq.shape
    rows, V, D = len(hidden), weights.table.shape[1] - 1, weights.table.shape[2]
    each = rows // B
    x, scores, p = np.empty((rows, D), np.float32), np.empty((B, K * V), np.float32), np.empty(V, np.float64)
    guided = hidden if rows == B else np.empty((B, D), np.float32)
    memory = memory_for(rows, D, keys)
    for s in range(n):
        if rows > B:
            combine(hidden, guidance, guided)
        product(guided, weights.head, 0, scores, memory.rounded)
        for r in range(rows):
            x[r] = added[r % len(added), s % added.shape[1]]
        for b in range(B):
            for k in range(K):
                if not known[k, s]:  # NaN gives a hole
                    seq[b, k, s] = draw(scores[b, k * V : (k + 1) * V], filters, uniforms[b, s, k], p)
                if logits.size > 0:
                    logits[b, s, k] = scores[b, k * V : (k + 1) * V]
                for r in range(each * b, each * (b + 1)):
                    x[r] += weights.table[k, seq[b, k, s]]
        layers(weights, keys, values, position + s, x, hidden, memory)


class Memory(NamedTuple):
    """Working memory of a step."""

    normed: np.ndarray  # (B, D)
    mixed: np.ndarray  # (B, D)
    qkv: np.ndarray  # (B, 3 D)
    wide: np.ndarray  # (B, 4 D)
    scores: np.ndarray  # (H, W or a little more), of attention
    rounded: np.ndarray  # (B, 4 D) int16, of a product
    cos: np.ndarray  # (D / H / 2,)
    sin: np.ndarray


@njit(fastmath=True)
def memory_for(B, D, keys):
    """Allocate the working memory of a step of B items."""
    return Memory(
        np.empty((B, D), np.float32),
        np.empty((B, D), np.float32),
        np.empty((B, 3 * D), np.float32),
        np.empty((B, 4 * D), np.float32),
        np.empty((keys.shape[3], keys.shape[2] * BLOCK), np.float32),
        np.empty((B, 4 * D), np.int16),
        np.empty(keys.shape[4] // 2, np.float32),
        np.empty(keys.shape[4] // 2, np.float32),
    )


@njit(fastmath=True)
def layers(weights, keys, values, position, x, hidden, memory):
    """Apply all layers to the input x (B, D) of one step, which is changed, and write the hidden (B, D)."""
    normed, mixed, qkv, wide, scores, rounded, cos, sin = memory
    for i in range(len(cos)):
        angle = position * weights.frequencies[i]
        cos[i], sin[i] = np.cos(angle), np.sin(angle)
    for layer in range(keys.shape[1]):
        norm(x, weights.norms[2 * layer], normed)
        product(normed, weights.qkv, layer, qkv, rounded)
        for b in range(len(x)):
            attend(
                qkv[b].reshape(3, keys.shape[3], -1),
                cos,
                sin,
                position,
                keys[b, layer],
                values[b, layer],
                scores,
                mixed[b].reshape(keys.shape[3], -1),
            )
        product(mixed, weights.out, layer, normed, rounded)
        add(x, normed)
        norm(x, weights.norms[2 * layer + 1], normed)
        product(normed, weights.up, layer, wide, rounded)
        gelu(wide)
        product(wide, weights.down, layer, normed, rounded)
        add(x, normed)
    norm(x, weights.norms[2 * keys.shape[1]], hidden)


@njit(fastmath=True)
def attend(qkv, cos, sin, position, keys, values, weight, y):
    """Attend for one item and step: write key and value to the rings, and the weighted values to y (H, D / H)."""
    W, H, d = values.shape
    slot, seen, half = position % W, min(position + 1, W), d // 2
    scale = np.float32(1 / np.sqrt(d))
    for h in range(H):
        query, key, place = qkv[0, h], qkv[1, h], keys[slot // BLOCK, h]
        for i in range(half):
            a, b = query[i] * scale, query[i + half] * scale
            query[i], query[i + half] = a * cos[i] - b * sin[i], a * sin[i] + b * cos[i]
            a, b = key[i], key[i + half]
            place[i, slot % BLOCK] = narrow(a * cos[i] - b * sin[i], keys)
            place[i + half, slot % BLOCK] = narrow(a * sin[i] + b * cos[i], keys)
            values[slot, h, i] = narrow(qkv[2, h, i], values)
            values[slot, h, i + half] = narrow(qkv[2, h, i + half], values)
    for block in range(-(-seen // BLOCK)):  # some scores of the last block are not used
        for h in range(H):
            score(qkv[0, h], keys[block, h], weight[h, block * BLOCK : (block + 1) * BLOCK])
    for h in range(H):
        softmax(weight[h, :seen])
        y[h] = np.float32(0)
    for j in range(0, seen - 7, 8):
        for h in range(H):
            w0, w1, w2, w3 = weight[h, j], weight[h, j + 1], weight[h, j + 2], weight[h, j + 3]
            w4, w5, w6, w7 = weight[h, j + 4], weight[h, j + 5], weight[h, j + 6], weight[h, j + 7]
            for i in range(d):
                y[h, i] += (
                    w0 * widen(values[j, h, i])
                    + w1 * widen(values[j + 1, h, i])
                    + w2 * widen(values[j + 2, h, i])
                    + w3 * widen(values[j + 3, h, i])
                    + w4 * widen(values[j + 4, h, i])
                    + w5 * widen(values[j + 5, h, i])
                    + w6 * widen(values[j + 6, h, i])
                    + w7 * widen(values[j + 7, h, i])
                )
    for j in range(seen // 8 * 8, seen):
        for h in range(H):
            for i in range(d):
                y[h, i] += weight[h, j] * widen(values[j, h, i])


@njit(fastmath=True)
def score(query, keys, y):
    """Multiply a head's query by the keys (D / H, BLOCK) of a block; D / H is even, as rotary positions need pairs."""
    d = len(query)
    for j in range(BLOCK):
        y[j] = np.float32(0)
    for i in range(0, d - 3, 4):
        q0, q1, q2, q3 = query[i], query[i + 1], query[i + 2], query[i + 3]
        for j in range(BLOCK):
            y[j] += (
                q0 * widen(keys[i, j])
                + q1 * widen(keys[i + 1, j])
                + q2 * widen(keys[i + 2, j])
                + q3 * widen(keys[i + 3, j])
            )
    for i in range(d // 4 * 4, d):
        for j in range(BLOCK):
            y[j] += query[i] * widen(keys[i, j])


@njit(fastmath=True)
def softmax(x):
    """Normalise scores (W,) in place; NaN if one is not finite."""
    if not all_finite(x):
        x[:] = NAN
        return
    largest, total = x[0], np.float32(0)
    for j in range(len(x)):
        largest = max(largest, x[j])
    for j in range(len(x)):
        x[j] = exp(max(x[j] - largest, np.float32(-80)))
        total += x[j]
    for j in range(len(x)):
        x[j] /= total


@njit(fastmath=True)
def norm(x, weight_bias, y):
    """Apply layer norm over D of (B, D), with torch's epsilon of 1e-5."""
    D = x.shape[1]
    weight, bias = weight_bias[0], weight_bias[1]
    for b in range(len(x)):
        if not all_finite(x[b]):
            y[b] = NAN
            continue
        mean = np.float32(0)
        for i in range(D):
            mean += x[b, i]
        mean /= np.float32(D)
        variance = np.float32(0)
        for i in range(D):
            variance += (x[b, i] - mean) ** 2
        scale = np.float32(1) / np.sqrt(variance / np.float32(D) + np.float32(1e-5))
        for i in range(D):
            y[b, i] = (x[b, i] - mean) * scale * weight[i] + bias[i]


@njit(fastmath=True)
def add(x, y):
    """Add y (B, D) to x in place."""
    for b in range(len(x)):
        for i in range(x.shape[1]):
            x[b, i] += y[b, i]


ONE, C1, C3 = np.float32(1), np.float32(np.sqrt(8 / np.pi)), np.float32(0.044715 * np.sqrt(8 / np.pi))
SIGMOID_CLAMP = np.float32(40)


@njit(fastmath=True, error_model="numpy")  # checks for division by zero would keep it from being vectorised
def gelu(x):
    """Apply GELU in place: x (1 + tanh(u / 2)) / 2 = x / (1 + exp(-u)), u / 2 being that of the tanh approximation."""
    for b in range(len(x)):
        if not all_finite(x[b]):
            x[b] = NAN
            continue
        for i in range(x.shape[1]):
            v = x[b, i]
            u = v * (C1 + C3 * v * v)
            x[b, i] = v / (ONE + exp(max(min(-u, SIGMOID_CLAMP), -SIGMOID_CLAMP)))
