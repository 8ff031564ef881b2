"""Compiled matrix-vector products for large matrices: each row of weights times x, in the order of memory.

For matrices too large for the CPU's caches. With one item, reading the weights takes all the time, and memory is
fastest when read sequentially. bf16 (the upper half of a float32) halves the bytes, int8 quarters them. With int8, x is
rounded too, for this product only, to as many bits as the sum of all products leaves in an int32.

This module imports numba, which is slow: import it only where it is used.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload, register_jitable
from torch import nn

from ....utils.jit import compiled
from .bf16 import narrow, widen
from .finite import NAN, all_finite

TYPES = {"fp32": np.float32, "bf16": np.uint16, "int8": np.int8}
LARGEST = 127  # largest int8 weight


class Rows(NamedTuple):
    """Linear layers of one shape, stacked: y = weight x * scale + bias."""

    weight: np.ndarray  # (L, O, I) float32, uint16 (bf16) or int8
    scale: np.ndarray  # (L, O) float32; used for int8 only
    bias: np.ndarray  # (L, O) float32


def pack(layers: list[nn.Linear], precision: str) -> Rows:
    """Stack the layers' weights, rounded to "fp32", "bf16" or "int8" (with one scale per row)."""
    # Allocated by numpy, which requests huge pages where the system offers them: this halves the time of a step.
    weight = np.empty((len(layers), *layers[0].weight.shape), TYPES[precision])
    scale = np.ones(weight.shape[:2], np.float32)
    for i, layer in enumerate(layers):
        values = layer.weight.detach().numpy()
        if precision == "fp32":
            weight[i] = values
        elif precision == "bf16":
            _to_bf16(values, weight[i])
        else:
            _to_int8(values, weight[i], scale[i])
    none = np.zeros(weight.shape[1], np.float32)
    biases = [none if layer.bias is None else layer.bias.detach().numpy() for layer in layers]
    return Rows(weight, scale, np.stack(biases))


@compiled()
def _to_bf16(values, halves):
    for o in range(len(values)):
        for i in range(values.shape[1]):
            halves[o, i] = narrow(values[o, i], halves)


@compiled(fastmath=True)
def _to_int8(values, steps, scale):
    for o in range(len(values)):
        if not all_finite(values[o]):
            steps[o], scale[o] = 0, NAN
            continue
        largest = np.float32(1e-30)
        for i in range(values.shape[1]):
            largest = max(largest, abs(values[o, i]))
        scale[o] = largest / np.float32(LARGEST)
        factor = np.float32(LARGEST) / largest
        for i in range(values.shape[1]):
            steps[o, i] = np.int8(np.rint(values[o, i] * factor))


def product(x, rows, layer, y, rounded, unpacked):
    """Apply a linear layer: y[b] = weight x[b] + bias. Callable only from compiled code.

    Args:
        x: (B, I) float32.
        rows: packed layers.
        layer: which of them to apply.
        y: (B, O) float32, written in place.
        rounded: (B, I or more) int16, working memory.
        unpacked: (4, I or more) float32, working memory.
    """
    raise NotImplementedError


@overload(product, jit_options={"fastmath": True, "nogil": True})
def _product(x, rows, layer, y, rounded, unpacked):
    kind = rows.types[0].dtype
    if kind == types.int8:
        return _integers
    unpack = _rows if kind == types.float32 else _unpack_bf16

    def floats(x, rows, layer, y, rounded, unpacked):
        weight, bias = rows.weight[layer], rows.bias[layer]
        fours = len(x) // 4 * 4
        if fours > 0:
            for o in range(0, len(weight) - 3, 4):
                block = unpack(weight[o : o + 4], unpacked)
                for b in range(0, fours, 4):
                    _sixteen(block, x[b : b + 4], bias[o : o + 4], y[b : b + 4, o : o + 4])
        for o in range(len(weight)):
            for b in range(fours if o < len(weight) // 4 * 4 else 0, len(x)):
                y[b, o] = _dot(weight[o], x[b]) + bias[o]

    return floats


# ---- fp32 and bf16


@register_jitable
def _rows(rows, unpacked):
    return rows


@njit(fastmath=True, nogil=True)
def _unpack_bf16(rows, unpacked):
    for r in range(4):
        for i in range(rows.shape[1]):
            unpacked[r, i] = widen(rows[r, i])
    return unpacked


@njit(fastmath=True, nogil=True)
def _dot(row, x):
    total = np.float32(0)
    for i in range(len(row)):
        total += widen(row[i]) * x[i]
    return total


@njit(fastmath=True, nogil=True)
def _sixteen(rows, x, bias, y):
    """Multiply four rows by four items: reads eight numbers for sixteen products."""
    w0, w1, w2, w3, x0, x1, x2, x3 = rows[0], rows[1], rows[2], rows[3], x[0], x[1], x[2], x[3]
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
    for i in range(len(x0)):
        v0, v1, v2, v3 = x0[i], x1[i], x2[i], x3[i]
        w = w0[i]
        a0, a1, a2, a3 = a0 + w * v0, a1 + w * v1, a2 + w * v2, a3 + w * v3
        w = w1[i]
        b0, b1, b2, b3 = b0 + w * v0, b1 + w * v1, b2 + w * v2, b3 + w * v3
        w = w2[i]
        c0, c1, c2, c3 = c0 + w * v0, c1 + w * v1, c2 + w * v2, c3 + w * v3
        w = w3[i]
        d0, d1, d2, d3 = d0 + w * v0, d1 + w * v1, d2 + w * v2, d3 + w * v3
    y[0, 0], y[1, 0], y[2, 0], y[3, 0] = a0 + bias[0], a1 + bias[0], a2 + bias[0], a3 + bias[0]
    y[0, 1], y[1, 1], y[2, 1], y[3, 1] = b0 + bias[1], b1 + bias[1], b2 + bias[1], b3 + bias[1]
    y[0, 2], y[1, 2], y[2, 2], y[3, 2] = c0 + bias[2], c1 + bias[2], c2 + bias[2], c3 + bias[2]
    y[0, 3], y[1, 3], y[2, 3], y[3, 3] = d0 + bias[3], d1 + bias[3], d2 + bias[3], d3 + bias[3]


# ---- int8


def _integers(x, rows, layer, y, rounded, unpacked):
    weight, scale, bias = rows.weight[layer], rows.scale[layer], rows.bias[layer]
    most = np.float32(min(2**15 - 1, (2**31 - 1) // (LARGEST * x.shape[1])))
    for b in range(len(x)):
        y[b] = _round(x[b], most, rounded[b])
    for o in range(len(weight)):
        row = weight[o]
        for b in range(len(x)):
            xb, total = rounded[b], np.int32(0)
            for i in range(len(row)):
                total += np.int32(row[i]) * np.int32(xb[i])
            # numba adds in 64 bits; with this cast to 32, LLVM multiplies and adds 32 pairs per instruction.
            y[b, o] = np.float32(np.int32(total)) * (y[b, o] * scale[o]) + bias[o]


@njit(fastmath=True, nogil=True)
def _round(x, most, rounded):
    """Round x to multiples, from -most to most, of a step size, and return that; NaN unless all of x is finite."""
    if not all_finite(x):
        rounded[: len(x)] = 0
        return NAN
    largest = np.float32(1e-30)
    for i in range(len(x)):
        largest = max(largest, abs(x[i]))
    scale = most / largest
    for i in range(len(x)):
        rounded[i] = np.int16(np.rint(x[i] * scale))
    return largest / most
