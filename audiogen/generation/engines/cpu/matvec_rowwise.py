"""Compiled matrix-vector products for large matrices: each row of weights times x, in the order of memory.

For matrices too large for the CPU's caches. With one item, reading the weights takes all the time, and memory is
fastest when read sequentially. With several, a row is read from memory once, and widened once for up to four of them.
bf16 (the upper half of a float32) halves the bytes, int8 quarters them. With int8, x is rounded too, for this product
only, to as many bits as the sum of all products leaves in an int32.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload
from torch import nn

from ....utils.jit import compiled
from .bf16 import narrow, widen
from .finite import NAN, all_finite
from .simd import dots

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


def product(x, rows, layer, y, rounded):
    """Apply a linear layer: y[b] = weight x[b] + bias. Callable only from compiled code.

    With int8, an item's result does not depend on the other items, to the bit.

    Args:
        x: (B, I) float32.
        rows: packed layers.
        layer: which of them to apply.
        y: (B, O) float32, written in place.
        rounded: (B, I or more) int16, working memory.
    """
    raise NotImplementedError


@overload(product, jit_options={"fastmath": True, "nogil": True})
def _product(x, rows, layer, y, rounded):
    def multiply(x, rows, layer, y, rounded):
        weight, scale, bias = rows.weight[layer], rows.scale[layer], rows.bias[layer]
        values = prepare(x, weight, y, rounded)
        pairs, fours, twos = len(weight) // 2 * 2, len(x) // 4 * 4, len(x) // 2 * 2
        for o in range(0, pairs if len(x) > 1 else 0, 2):
            for b in range(0, fours, 4):
                _two_by_four(weight, o, values, b, y, scale, bias)
            for b in range(fours, twos, 2):
                _two_by_two(weight, o, values, b, y, scale, bias)
        for o in range(len(weight)):
            for b in range(twos if o < pairs else 0, len(x)):
                y[b, o] = finish(dot(weight[o], values[b]), y[b, o], scale[o], bias[o])

    return multiply


_2x2, _2x4 = dots(2, 2), dots(2, 4)


# With fastmath, blocks would round differently from single items.
@njit(fastmath=False, nogil=True)
def _two_by_two(weight, o, values, b, y, scale, bias):
    a0, a1, b0, b1 = _2x2(weight, o, values, b)
    y[b, o] = finish(a0, y[b, o], scale[o], bias[o])
    y[b + 1, o] = finish(a1, y[b + 1, o], scale[o], bias[o])
    y[b, o + 1] = finish(b0, y[b, o + 1], scale[o + 1], bias[o + 1])
    y[b + 1, o + 1] = finish(b1, y[b + 1, o + 1], scale[o + 1], bias[o + 1])


@njit(fastmath=False, nogil=True)
def _two_by_four(weight, o, values, b, y, scale, bias):
    a0, a1, a2, a3, b0, b1, b2, b3 = _2x4(weight, o, values, b)
    y[b, o] = finish(a0, y[b, o], scale[o], bias[o])
    y[b + 1, o] = finish(a1, y[b + 1, o], scale[o], bias[o])
    y[b + 2, o] = finish(a2, y[b + 2, o], scale[o], bias[o])
    y[b + 3, o] = finish(a3, y[b + 3, o], scale[o], bias[o])
    y[b, o + 1] = finish(b0, y[b, o + 1], scale[o + 1], bias[o + 1])
    y[b + 1, o + 1] = finish(b1, y[b + 1, o + 1], scale[o + 1], bias[o + 1])
    y[b + 2, o + 1] = finish(b2, y[b + 2, o + 1], scale[o + 1], bias[o + 1])
    y[b + 3, o + 1] = finish(b3, y[b + 3, o + 1], scale[o + 1], bias[o + 1])


# ---- what differs between floats and integers


def prepare(x, weight, y, rounded):
    """Return what the weights are multiplied by: x, or x rounded to int16, with its step sizes in y."""
    raise NotImplementedError


def dot(row, x):
    """Multiply one row with one item, in a loop that LLVM vectorises."""
    raise NotImplementedError


def finish(total, step, scale, bias):
    """Convert the sum of products to an output."""
    raise NotImplementedError


@overload(prepare, jit_options={"fastmath": True, "nogil": True})
def _prepare(x, weight, y, rounded):
    if weight.dtype != types.int8:
        return lambda x, weight, y, rounded: x

    def to_integers(x, weight, y, rounded):
        most = np.float32(min(2**15 - 1, (2**31 - 1) // (LARGEST * x.shape[1])))
        for b in range(len(x)):
            y[b] = _round(x[b], most, rounded[b])
        return rounded

    return to_integers


@overload(dot, jit_options={"fastmath": True, "nogil": True})
def _dot(row, x):
    if row.dtype == types.int8:

        def integers(row, x):
            total = np.int32(0)
            for i in range(len(row)):
                total += np.int32(row[i]) * np.int32(x[i])
            # numba adds in 64 bits; with this cast to 32, LLVM multiplies and adds 32 pairs per instruction.
            return np.int32(total)

        return integers

    def floats(row, x):
        total = np.float32(0)
        for i in range(len(row)):
            total += widen(row[i]) * x[i]
        return total

    return floats


@overload(finish, jit_options={"fastmath": False, "nogil": True})
def _finish(total, step, scale, bias):
    if isinstance(total, types.Integer):
        return lambda total, step, scale, bias: np.float32(total) * (step * scale) + bias
    return lambda total, step, scale, bias: total + bias


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
