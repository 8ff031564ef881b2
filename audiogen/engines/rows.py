"""Products of vectors with large matrices, compiled: a row of weights times x, row after row, as they lie in memory.

For matrices that no cache holds. With one item, reading them is all that takes time, and one long stream is what memory
does best. As bf16 (the upper half of a float32) they are half as long; as int8 a quarter, and x is then rounded too,
for this product alone: to so many bits that a sum of all its products just fits into 32.

numba compiles this where it is first called and is imported here: import this module where it is used.
"""

from typing import NamedTuple

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from torch import nn

TYPES = {"fp32": np.float32, "bf16": np.uint16, "int8": np.int8}
LARGEST = 127                   # of an int8 weight


class Rows(NamedTuple):
    """Linear layers of one shape, stacked: y = weight x * scale + bias."""

    weight: np.ndarray          # (L, O, I) float32, uint16 (bf16) or int8
    scale: np.ndarray           # (L, O) float32; counts for int8 alone
    bias: np.ndarray            # (L, O) float32


def pack(layers: list[nn.Linear], precision: str) -> Rows:
    """The layers' weights side by side, rounded to the precision: "fp32", "bf16" or "int8", a scale a row."""
    # Made by numpy, which asks for large pages where a system gives them on demand: half the time of a step.
    weight = np.empty((len(layers), *layers[0].weight.shape), TYPES[precision])
    scale = np.ones(weight.shape[:2], np.float32)
    for i, layer in enumerate(layers):
        values = layer.weight.detach()
        if precision == "bf16":
            values = values.bfloat16().view(torch.uint16)
        elif precision == "int8":
            steps = values.abs().amax(dim=1).clamp(min=1e-30) / LARGEST
            scale[i], values = steps.numpy(), (values / steps[:, None]).round()
        torch.from_numpy(weight[i]).copy_(values)
    return Rows(weight, scale, np.stack([layer.bias.detach().numpy() for layer in layers]))


def product(x, rows, layer, y, rounded):
    """y[b] = the linear layer of x[b]; in compiled code only.

    Args:
        x: (B, I) float32.
        y: (B, O) float32, written.
        rounded: (B, I or more) int16 to work in.
    """
    raise NotImplementedError


@overload(product, jit_options={"fastmath": True, "nogil": True})
def _product(x, rows, layer, y, rounded):
    return {types.float32: _fp32, types.uint16: _bf16, types.int8: _int8}[rows.types[0].dtype]


def _fp32(x, rows, layer, y, rounded):
    weight, bias = rows.weight[layer], rows.bias[layer]
    for o in range(len(weight)):
        row = weight[o]
        for b in range(len(x)):
            xb, total = x[b], np.float32(0)
            for i in range(len(row)):
                total += row[i] * xb[i]
            y[b, o] = total + bias[o]


def _bf16(x, rows, layer, y, rounded):
    weight, bias = rows.weight[layer], rows.bias[layer]
    for o in range(len(weight)):
        row = weight[o]
        for b in range(len(x)):
            xb, total = x[b], np.float32(0)
            for i in range(len(row)):
                total += np.uint32(np.uint32(row[i]) << np.uint32(16)).view(np.float32) * xb[i]
            y[b, o] = total + bias[o]


def _int8(x, rows, layer, y, rounded):
    weight, scale, bias = rows.weight[layer], rows.scale[layer], rows.bias[layer]
    most = np.float32(min(2 ** 15 - 1, (2 ** 31 - 1) // (LARGEST * x.shape[1])))
    for b in range(len(x)):
        y[b] = round_to(x[b], most, rounded[b])
    for o in range(len(weight)):
        row = weight[o]
        for b in range(len(x)):
            xb, total = rounded[b], np.int32(0)
            for i in range(len(row)):
                total += np.int32(row[i]) * np.int32(xb[i])
            # numba adds in 64 bits; told that 32 are meant, LLVM multiplies and adds 32 pairs in an instruction.
            y[b, o] = np.float32(np.int32(total)) * (y[b, o] * scale[o]) + bias[o]


@njit(fastmath=True, nogil=True)
def round_to(x, most, rounded):
    """The multiples in [-most, most] of the step that is returned."""
    largest = np.float32(1e-30)
    for i in range(len(x)):
        largest = max(largest, abs(x[i]))
    scale = most / largest
    for i in range(len(x)):
        rounded[i] = np.int16(np.rint(x[i] * scale))
    return largest / most
