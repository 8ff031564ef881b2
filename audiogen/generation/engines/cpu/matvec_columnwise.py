"""Compiled matrix-vector products with packed weights: most of the time of an engine with small batches.

A product iterates over the rows of the weights, and adds a multiple of each row to the outputs:

    y[j] += x[i] * weight[i, j]         j fastest: vectorised over outputs, with no sum across a register

With one item, reading the weights takes longer than the arithmetic. bf16 (the upper half of a float32, two rows per
word) halves the bytes, int8 (four rows per word, one scale per column) quarters them. Sums are in fp32.

This module imports numba, which is slow: import it only where it is used.
"""

import numpy as np
from numba import njit, types
from numba.extending import overload, register_jitable

ROWS = 8  # rows processed at a time: packed weights and x are zero-padded to a multiple of it


@register_jitable
def padded(rows: int) -> int:
    """Return the length of x after zero-padding to a multiple of ROWS."""
    return -(-rows // ROWS) * ROWS


def pack(weight: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Pack weights (..., rows, columns) into words (..., rows / n, columns) of n rows, and scales (..., columns).

    The dtype of the words determines their contents. float32: one row; uint32: two rows as bf16; int32: four rows as
    int8 + 128, from bits 15, 23, 7 and 31 (wrapping around) upwards. Scales are used for int8 only.
    """
    rows = weight.shape[-2]
    weight = np.pad(weight, [(0, 0)] * (weight.ndim - 2) + [(0, padded(rows) - rows), (0, 0)]).astype(np.float32)
    scales = np.ones_like(weight[..., 0, :])
    if precision == "bf16":
        bits = weight.view(np.uint32)
        bits = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16  # rounds half to even
        return np.ascontiguousarray(bits[..., 0::2, :] | bits[..., 1::2, :] << 16), scales
    if precision == "int8":
        scales = np.maximum(np.abs(weight).max(axis=-2), np.float32(1e-30)) / np.float32(127)
        bits = (np.rint(weight / scales[..., None, :]) + 128).astype(np.uint32)
        a, b, c, d = (bits[..., i::4, :] for i in range(4))
        words = a << 15 | b << 23 | c << 7 | d >> 1 | (d & 1) << 31
        return np.ascontiguousarray(words).view(np.int32), scales * np.float32(256)
    return np.ascontiguousarray(weight), scales


def product(x, weight, scales, y, work):
    """Add a product to y: y[b, j] += sum over i of x[b, i] weight[i, j]. Callable only from compiled code.

    Args:
        x: (B, padded(rows)) float32.
        weight: packed words of one matrix.
        scales: their scales.
        y: (B, columns) float32, written in place.
        work: (columns or more,) float32, working memory.
    """
    raise NotImplementedError


@overload(product, jit_options={"fastmath": True, "nogil": True})
def _product(x, weight, scales, y, work):
    if weight.dtype == types.float32:
        return _plain
    alone = _alone_bf16 if weight.dtype == types.uint32 else _alone_int8

    # Item by item, even in a batch: unpacking weights once for several items is only a tenth faster, and it would round
    # differently, so that an item's draws would depend on the batch.
    def packed(x, weight, scales, y, work):
        for b in range(len(x)):
            alone(x[b], weight, scales, y[b], work)

    return packed


def _plain(x, weight, scales, y, work):
    fours = len(x) // 4 * 4
    for i in range(0, x.shape[1] if fours else 0, 4):
        for b in range(0, fours, 4):
            _four_items(x, weight, i, b, y)
    for b in range(fours, len(x)):
        _alone_fp32(x[b], weight, y[b])


# ---- four items: reads four rows for sixteen products


@njit(fastmath=True, nogil=True)
def _four_items(x, rows, i, b, y):
    p0, p1, p2, p3 = x[b, i], x[b, i + 1], x[b, i + 2], x[b, i + 3]
    q0, q1, q2, q3 = x[b + 1, i], x[b + 1, i + 1], x[b + 1, i + 2], x[b + 1, i + 3]
    r0, r1, r2, r3 = x[b + 2, i], x[b + 2, i + 1], x[b + 2, i + 2], x[b + 2, i + 3]
    s0, s1, s2, s3 = x[b + 3, i], x[b + 3, i + 1], x[b + 3, i + 2], x[b + 3, i + 3]
    for j in range(y.shape[1]):
        w0, w1, w2, w3 = rows[i, j], rows[i + 1, j], rows[i + 2, j], rows[i + 3, j]
        y[b, j] += p0 * w0 + p1 * w1 + p2 * w2 + p3 * w3
        y[b + 1, j] += q0 * w0 + q1 * w1 + q2 * w2 + q3 * w3
        y[b + 2, j] += r0 * w0 + r1 * w1 + r2 * w2 + r3 * w3
        y[b + 3, j] += s0 * w0 + s1 * w1 + s2 * w2 + s3 * w3


# ---- one item: eight rows at a time, unpacked in registers


@njit(fastmath=True, nogil=True)
def _alone_fp32(x, weight, y):
    for i in range(0, len(x), 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(len(y)):
            y[j] += (
                x0 * weight[i, j]
                + x1 * weight[i + 1, j]
                + x2 * weight[i + 2, j]
                + x3 * weight[i + 3, j]
                + x4 * weight[i + 4, j]
                + x5 * weight[i + 5, j]
                + x6 * weight[i + 6, j]
                + x7 * weight[i + 7, j]
            )


@njit(fastmath=True, nogil=True)
def _alone_bf16(x, weight, scales, y, work):
    for i in range(0, len(x), 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        k = i // 2
        for j in range(len(y)):
            a, b, c, d = weight[k, j], weight[k + 1, j], weight[k + 2, j], weight[k + 3, j]
            y[j] += (
                x0 * _lower(a)
                + x1 * _upper(a)
                + x2 * _lower(b)
                + x3 * _upper(b)
                + x4 * _lower(c)
                + x5 * _upper(c)
                + x6 * _lower(d)
                + x7 * _upper(d)
            )


@njit(fastmath=True, nogil=True)
def _alone_int8(x, weight, scales, y, work):
    """Subtract the offset from all products at once, and apply the scale at the end."""
    total = np.float32(0)
    for i in range(len(x)):
        total += x[i]
    for j in range(len(y)):
        work[j] = -MIDDLE * total
    for i in range(0, len(x), 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        k = i // 4
        for j in range(len(y)):
            a, b = np.uint32(weight[k, j]), np.uint32(weight[k + 1, j])
            work[j] += (
                x0 * _byte0(a)
                + x1 * _byte1(a)
                + x2 * _byte2(a)
                + x3 * _byte3(a)
                + x4 * _byte0(b)
                + x5 * _byte1(b)
                + x6 * _byte2(b)
                + x7 * _byte3(b)
            )
    for j in range(len(y)):
        y[j] += work[j] * scales[j]


# ---- unpacking: a byte u in the top bits of the fraction gives the float32 1 + u / 256, cheaper than a conversion

MIDDLE = np.float32(1.5)
_ONE, _FIELD, _UPPER = np.uint32(0x3F800000), np.uint32(0x007F8000), np.uint32(0xFFFF0000)
_8, _16 = np.uint32(8), np.uint32(16)


@register_jitable
def _lower(word):
    return np.uint32(word << _16).view(np.float32)


@register_jitable
def _upper(word):
    return np.uint32(word & _UPPER).view(np.float32)


@register_jitable
def _byte0(word):
    return np.uint32(word & _FIELD | _ONE).view(np.float32)


@register_jitable
def _byte1(word):
    return np.uint32(word >> _8 & _FIELD | _ONE).view(np.float32)


@register_jitable
def _byte2(word):
    return np.uint32(word << _8 & _FIELD | _ONE).view(np.float32)


@register_jitable
def _byte3(word):
    return np.uint32((word << _16 | word >> _16) & _FIELD | _ONE).view(np.float32)
