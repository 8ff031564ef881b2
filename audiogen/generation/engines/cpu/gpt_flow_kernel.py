"""GPT's generation loop over frames drawn by flow matching: the layers of gpt_kernel, then a draw along the velocity.

The draw is that of flow_matching.FlowMatchingHead.sample. Two thirds of the head's weights compute what depends on t
and the hidden alone, which is known for all levels of a draw before the first: they are read once. The others are read
at every level, so they should fit into the caches; rounding helps most here.

This module imports numba, and compiling takes seconds: import it only where it is used. numba's cache on disk checks
the content of this file only, so VERSION stands for the files that it imports (tests/test_kernel_versions.py).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from ....utils.jit import compiled
from .fast_exp import exp
from .finite import NAN, all_finite
from .gpt_kernel import ONE, SIGMOID_CLAMP, Weights, layers, memory_for, norm
from .matvec_rowwise import Rows, product

VERSION = "43b435f4"


class FlowWeights(NamedTuple):
    """The weights of a GPT with a flow-matching head of N velocities and L blocks, in the layout of the kernel."""

    gpt: Weights  # without its table and head
    embed: Rows  # F -> D, one layer
    hidden: Rows  # D -> W, one layer
    previous: Rows  # F -> W, one layer
    modulation: Rows  # W -> 3 W, L layers
    gain: Rows  # W -> F, one layer
    frame: Rows  # F -> W, one layer
    up: Rows  # W -> W, L layers
    down: Rows  # W -> W, L layers
    out: Rows  # W -> F, one layer
    norm: np.ndarray  # (2, W), weight and bias of the last norm
    times: np.ndarray  # (N, W), what t adds to the hidden
    least_gains: np.ndarray  # (N,), what t adds to the gains
    moves: np.ndarray  # (N,), how far each velocity moves from where its step began
    range: np.ndarray  # (2, F), lowest and highest value of each feature


class FlowMemory(NamedTuple):
    """Working memory of a draw; R rows, one for each item or two with guidance."""

    hidden: np.ndarray  # (R, D)
    frame: np.ndarray  # (B, F)
    start: np.ndarray  # (B, F), of the step
    conditions: np.ndarray  # (N R, W)
    modulations: np.ndarray  # (L, N R, 3 W)
    gains: np.ndarray  # (N R, F)
    previous: np.ndarray  # (B, W)
    entered: np.ndarray  # (B, W)
    y: np.ndarray  # (R, W)
    normed: np.ndarray  # (R, W)
    mixed: np.ndarray  # (R, W)
    velocity: np.ndarray  # (R, F)
    rounded: np.ndarray  # (N R, max(W, F, D)) int16, of a product


def flow_memory(weights: FlowWeights, batch_size: int, rows: int) -> FlowMemory:
    """Allocate the working memory of a draw, once for all steps: it is large enough for the system to map it anew."""
    B, (N, W), (F, D), L = batch_size, weights.times.shape, weights.embed.weight.shape[:0:-1], len(weights.up.weight)
    shapes = [(rows, D), (B, F), (B, F), (N * rows, W), (L, N * rows, 3 * W), (N * rows, F), (B, W), (B, W)]
    shapes += [(rows, W), (rows, W), (rows, W), (rows, F)]
    arrays: list[np.ndarray] = [np.empty(shape, np.float32) for shape in shapes]
    arrays.append(np.empty((N * rows, max(W, F, D)), np.int16))
    return FlowMemory(*arrays)


@compiled(fastmath=True)
def run(weights, keys, values, work, position, hidden, seq, known, noise, added, guidance):
    """Generate n steps.

    Args:
        weights: FlowWeights.
        keys: as in gpt_kernel.run.
        values: as in gpt_kernel.run.
        work: FlowMemory.
        position: number of steps observed so far.
        hidden: (rows, D + F), the hidden of the next step, then the previous frame; written in place. There is one row
            for each item, or, with guidance, two: with its conditions and without.
        seq: (B, F, n) float32, written in place where known is False.
        known: (1, n) bool.
        noise: (B, n, F) float32, from which the draws start; already scaled by the temperature.
        added: (rows or 1, n or 1, D), the vectors that conditions add to the embedding and the hidden of each step.
        guidance: scale of guidance, used if there are two rows for each item.
    """
    (B, F, n), rows = seq.shape, len(hidden)
    each = rows // B
    D, h, frame = hidden.shape[1] - F, work.hidden, work.frame
    h[:], frame[:] = hidden[:, :D], hidden[::each, D:]
    x, embedded = np.empty((rows, D), np.float32), np.empty((B, D), np.float32)
    memory = memory_for(rows, D, keys)
    for s in range(n):
        if known[0, s]:
            for b in range(B):
                frame[b] = seq[b, :, s]
        else:
            draw(weights, work, noise[:, s], guidance)
            for b in range(B):
                seq[b, :, s] = frame[b]
        product(frame, weights.embed, 0, embedded, work.rounded)
        for r in range(rows):
            x[r] = embedded[r // each] + added[r % len(added), s % added.shape[1]]
        layers(weights.gpt, keys, values, position + s, x, h, memory)
        for r in range(rows):
            h[r] += added[r % len(added), s % added.shape[1]]
    for r in range(rows):
        hidden[r, :D], hidden[r, D:] = h[r], frame[r // each]


@njit(fastmath=True)
def draw(weights, work, noise, guidance):
    """Draw a frame for each item; NaN if a value is not finite.

    Args:
        weights: FlowWeights.
        work: FlowMemory, of which `hidden` is read, and `frame`, the previous one, is replaced by the drawn one.
        noise: (B, F), where the draws start.
        guidance: scale of guidance.
    """
    frame, rounded = work.frame, work.rounded
    N, (B, F), rows = len(weights.times), frame.shape, len(work.hidden)
    each = rows // B

    # All that does not depend on x, for all velocities.
    product(work.hidden, weights.hidden, 0, work.y, rounded)
    for k in range(N):
        for r in range(rows):
            work.conditions[k * rows + r] = work.y[r] + weights.times[k]
    silu(work.conditions)
    for layer in range(len(work.modulations)):
        product(work.conditions, weights.modulation, layer, work.modulations[layer], rounded)
    product(work.conditions, weights.gain, 0, work.gains, rounded)
    product(frame, weights.previous, 0, work.previous, rounded)

    frame[:] = noise
    for k in range(N):
        product(frame, weights.frame, 0, work.entered, rounded)
        for r in range(rows):
            work.y[r] = work.entered[r // each] + work.previous[r // each]
        for layer in range(len(work.modulations)):
            modulation = work.modulations[layer, k * rows : (k + 1) * rows]
            modulated_norm(work.y, modulation, work.normed)
            product(work.normed, weights.up, layer, work.mixed, rounded)
            silu(work.mixed)
            product(work.mixed, weights.down, layer, work.normed, rounded)
            add_gated(work.y, modulation, work.normed)
        norm(work.y, weights.norm, work.normed)
        product(work.normed, weights.out, 0, work.velocity, rounded)
        for b in range(B):
            least, gains, v = weights.least_gains[k], work.gains[k * rows :], work.velocity
            if k % 2 == 0:
                work.start[b] = frame[b]
            size = weights.moves[k]
            if each == 1:
                for i in range(F):
                    frame[b, i] = work.start[b, i] + size * (v[b, i] + (gains[b, i] + least) * frame[b, i])
            else:
                for i in range(F):
                    given = v[2 * b, i] + (gains[2 * b, i] + least) * frame[b, i]
                    null = v[2 * b + 1, i] + (gains[2 * b + 1, i] + least) * frame[b, i]
                    frame[b, i] = work.start[b, i] + size * (null + guidance * (given - null))

    for b in range(B):
        if all_finite(frame[b]):
            for i in range(F):
                frame[b, i] = min(max(frame[b, i], weights.range[0, i]), weights.range[1, i])
        else:
            frame[b] = NAN


@njit(fastmath=True)
def modulated_norm(x, modulation, y):
    """Apply layer norm over W of (R, W) with torch's epsilon, then scale and shift by the modulation (R, 3 W)."""
    W = x.shape[1]
    for r in range(len(x)):
        if not all_finite(x[r]):
            y[r] = NAN
            continue
        shift, scale = modulation[r, :W], modulation[r, W : 2 * W]
        mean = np.float32(0)
        for i in range(W):
            mean += x[r, i]
        mean /= np.float32(W)
        variance = np.float32(0)
        for i in range(W):
            variance += (x[r, i] - mean) ** 2
        factor = ONE / np.sqrt(variance / np.float32(W) + np.float32(1e-5))
        for i in range(W):
            y[r, i] = (x[r, i] - mean) * factor * (ONE + scale[i]) + shift[i]


@njit(fastmath=True)
def add_gated(x, modulation, y):
    """Add y (R, W), times the gate of the modulation (R, 3 W), to x in place."""
    W = x.shape[1]
    for r in range(len(x)):
        gate = modulation[r, 2 * W :]
        for i in range(W):
            x[r, i] += gate[i] * y[r, i]


@njit(fastmath=True, error_model="numpy")  # as for gelu
def silu(x):
    """Apply SiLU in place: x / (1 + exp(-x))."""
    for r in range(len(x)):
        if not all_finite(x[r]):
            x[r] = NAN
            continue
        for i in range(x.shape[1]):
            v = x[r, i]
            x[r, i] = v / (ONE + exp(max(min(-v, SIGMOID_CLAMP), -SIGMOID_CLAMP)))
