"""GPT's generation loop over frames as one compiled function: the layers of gpt_kernel, then a draw from the density.

The draw is that of heads.MixtureDensityHead.sample, in float64 where that uses it. The weights of the embedding and
of the head are never rounded: they are few, and the draw computes differences of their outputs.

This module imports numba, and compiling takes seconds: import it only where it is used. numba's cache on disk checks
the content of this file only, so VERSION stands for the files that it imports (tests/test_kernel_versions.py).
"""

from typing import NamedTuple

import numpy as np

from ....utils.jit import compiled
from .gpt_kernel import Weights, layers, memory_for
from .matvec_rowwise import Rows, product
from .sampling import combine, draw

VERSION = "43b435f4"


class FrameWeights(NamedTuple):
    """The weights of a GPT over frames, in the layout of the kernel."""

    gpt: Weights  # without its table and head
    embed: Rows  # F -> D, one layer
    head: Rows  # D -> M (1 + 2 F), one layer
    factors: Rows  # D -> F R, one layer
    keep: np.ndarray  # (M, F)
    below: np.ndarray  # (F, F); only the part below the diagonal is read
    least_log_scale: float
    range: np.ndarray  # (2, F), lowest and highest value of each feature


@compiled(fastmath=False)  # NaN must stay NaN
def draw_frame(y, factors, weights, previous, filters, uniform, normal, p, noises, frame):
    """Draw a frame from a mixture; NaN if a component can't be drawn or a value is not finite.

    Args:
        y: (M (1 + 2 F),) float32, output of the head's linear layer.
        factors: (F R,) float32.
        weights: FrameWeights.
        previous: (F,) float32, the previous frame.
        filters: the result of sampling.filters; its temperature also scales the deviations.
        uniform: uniform number that draws the component.
        normal: (F + R,) float64, standard normal numbers for the noise.
        p: (M,) float64, working memory.
        noises: (F,) float64, working memory.
        frame: (F,) float32, written in place.
    """
    M, F = weights.keep.shape
    R = len(normal) - F
    m = draw(y[:M], filters, uniform, p)
    if m == M:
        frame[:] = np.float32(np.nan)
        return
    begin, temperature = M + 2 * F * m, filters[0]
    for i in range(F):
        mean = np.float64(weights.keep[m, i] * previous[i] + y[begin + i])
        noise = 0.0
        if temperature != 0:
            for r in range(R):
                noise += np.float64(factors[i * R + r]) * normal[F + r]
            log_scale = np.logaddexp(np.float64(y[begin + F + i]), weights.least_log_scale)
            noise = temperature * np.exp(log_scale) * (noise + normal[i])
            for j in range(i):
                noise -= np.float64(weights.below[i, j]) * noises[j]
        noises[i] = noise
        value = mean + noise
        frame[i] = np.float32(value) if np.isfinite(value) else np.float32(np.nan)
    for i in range(F):
        frame[i] = min(max(frame[i], weights.range[0, i]), weights.range[1, i]) if np.isfinite(frame[i]) else frame[i]


@compiled(fastmath=True)
def run(weights, keys, values, position, hidden, seq, known, uniforms, normals, filters, added, guidance):
    """Generate n steps.

    Args:
        weights: FrameWeights.
        keys: as in gpt_kernel.run.
        values: as in gpt_kernel.run.
        position: number of steps observed so far.
        hidden: (rows, D + F), the hidden of the next step, then the previous frame; written in place. There is one row
            for each item, or, with guidance, two: with its conditions and without.
        seq: (B, F, n) float32, written in place where known is False.
        known: (1, n) bool.
        uniforms: (B, n, 1 + F + R) float64, of which the first chooses the component.
        normals: (B, n, F + R) float64, standard normal numbers for the values.
        filters: the result of sampling.filters.
        added: (rows or 1, n or 1, D), the vectors that conditions add to the embedding of each step.
        guidance: scale of guidance, used if there are two rows for each item.
    """
    (B, F, n), rows = seq.shape, len(hidden)
    each = rows // B
    D, M = hidden.shape[1] - F, len(weights.keep)
    x, h, embedded = np.empty((rows, D), np.float32), np.empty((rows, D), np.float32), np.empty((B, D), np.float32)
    frame, guided = np.empty((B, F), np.float32), np.empty((B, D + F), np.float32)
    y, factors = np.empty((B, M * (1 + 2 * F)), np.float32), np.empty((B, weights.factors.bias.shape[1]), np.float32)
    p, noises = np.empty(M, np.float64), np.empty(F, np.float64)
    memory = memory_for(rows, D, keys)
    for s in range(n):
        if rows > B:
            combine(hidden, guidance, guided)
        else:
            guided[:] = hidden
        embedded[:] = guided[:, :D]
        product(embedded, weights.head, 0, y, memory.rounded)
        product(embedded, weights.factors, 0, factors, memory.rounded)
        for b in range(B):
            if known[0, s]:
                frame[b] = seq[b, :, s]
            else:
                draw_frame(
                    y[b],
                    factors[b],
                    weights,
                    guided[b, D:],
                    filters,
                    uniforms[b, s, 0],
                    normals[b, s],
                    p,
                    noises,
                    frame[b],
                )
                seq[b, :, s] = frame[b]
        product(frame, weights.embed, 0, embedded, memory.rounded)
        for r in range(rows):
            x[r] = embedded[r // each] + added[r % len(added), s % added.shape[1]]
        layers(weights.gpt, keys, values, position + s, x, h, memory)
        hidden[:, :D] = h
        for r in range(rows):
            hidden[r, D:] = frame[r // each]
