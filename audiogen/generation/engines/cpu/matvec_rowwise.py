"""Compiled matrix-vector products for large matrices: each row of weights times x, in the order of memory.

For matrices too large for the CPU's caches. With one item, reading the weights takes all the time, and memory is
fastest when read sequentially. With several, a row is read from memory once, and widened once for up to eight of them.
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
from .simd import dots, registers

TYPES = {"fp32": np.float32, "bf16": np.uint16, "int8": np.int8}
LARGEST = 127  # largest int8 weight
EIGHTS = registers() >= 32  # for the sums of two rows and eight items, and what they are of


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
        steps = np.empty(len(x), np.float32)
        values = prepare(x, weight, steps, rounded)
        pairs, fours, twos = len(weight) // 2 * 2, len(x) // 4 * 4, len(x) // 2 * 2
        eights = len(x) // 8 * 8 if EIGHTS else 0
        for o in range(0, pairs if len(x) > 1 else 0, 2):
            for b in range(0, eights, 8):
                _two_by_eight(weight, o, values, b, y)
            for b in range(eights, fours, 4):
                _two_by_four(weight, o, values, b, y)
            for b in range(fours, twos, 2):
                _two_by_two(weight, o, values, b, y)
        for o in range(len(weight)):
            for b in range(twos if o < pairs else 0, len(x)):
                y[b, o] = np.float32(dot(weight[o], values[b]))
        for b in range(len(x)):
            finish(y[b], steps[b], scale, bias, weight)

    return multiply


def _block(items):
    """Return a function that multiplies two rows of weights with a number of items."""
    multiply = dots(2, items)

    def block(weight, o, values, b, y):
        totals = multiply(weight, o, values, b)
        for i in range(items):
            y[b + i, o], y[b + i, o + 1] = np.float32(totals[i]), np.float32(totals[items + i])

    # Code from numba's cache, which other processes compiled, is linked by name. With one name for all, a block of
    # eight could run in place of one of four, and write beyond the end of y.
    block.__qualname__ = f"_two_by_{items}"
    # With fastmath, blocks would round differently from single items.
    return njit(fastmath=False, nogil=True)(block)


_two_by_two, _two_by_four, _two_by_eight = _block(2), _block(4), _block(8)


# ---- what differs between floats and integers


def prepare(x, weight, steps, rounded):
    """Return what the weights are multiplied by: x, or x rounded to int16, with the step size of each item in steps."""
    raise NotImplementedError


def dot(row, x):
    """Multiply one row with one item, in a loop that LLVM vectorises."""
    raise NotImplementedError


def finish(y, step, scale, bias, weight):
    """Convert the sums of products of an item (O,) to its outputs, in place."""
    raise NotImplementedError


@overload(prepare, jit_options={"fastmath": True, "nogil": True})
def _prepare(x, weight, steps, rounded):
    if weight.dtype != types.int8:
        return lambda x, weight, steps, rounded: x

    def to_integers(x, weight, steps, rounded):
        most = np.float32(min(2**15 - 1, (2**31 - 1) // (LARGEST * x.shape[1])))
        for b in range(len(x)):
            steps[b] = _round(x[b], most, rounded[b])
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
def _finish(y, step, scale, bias, weight):
    if weight.dtype == types.int8:

        def scaled(y, step, scale, bias, weight):
            for o in range(len(y)):
                y[o] = y[o] * (step * scale[o]) + bias[o]

        return scaled

    def shifted(y, step, scale, bias, weight):
        for o in range(len(y)):
            y[o] += bias[o]

    return shifted


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
