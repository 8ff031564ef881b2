"""An LSTM layer for small batches on the CPU, limited only by the bandwidth for its weights.

A step of one sequence is a matrix-vector product, whose time is that of reading the matrix (4 MB in EnCodec) from the
outer cache. torch's own layer also repacks the weights at each call, which takes as long as some hundred steps: too
slow for one block, and far too slow for each frame of a live stream.

numba compiles this on the first call (seconds; cached on disk if possible).
"""

import math

import numpy as np
import torch
from torch import Tensor

from ...utils.jit import compiled


def lstm_layer(given: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """Run one layer over S steps, with torch.nn.LSTM's equations and order of gates: input, forget, cell, output.

    Args:
        given: (S, B, 4 H), the inputs times weight_ih plus both biases; float32 or float64 on the CPU.
        weight: (4 H, H), torch's weight_hh.
        h: (B, H), the hidden state; updated in place.
        c: (B, H), the cell state; updated in place.

    Returns:
        (S, B, H): h after each step.
    """
    y = torch.empty(*given.shape[:2], weight.shape[1], dtype=given.dtype)
    _steps(given.numpy(), weight.numpy(), h.numpy(), c.numpy(), y.numpy())
    return y


@compiled(fastmath={"reassoc", "contract", "nsz"})  # allow sums in any order, but keep infinity
def _steps(given, weight, h, c, y):
    num_steps, batch_size, num_gates = given.shape
    size = num_gates // 4
    one, zero = given.dtype.type(1), given.dtype.type(0)
    gates = np.empty((batch_size, num_gates), given.dtype)
    two = one + one
    for t in range(num_steps):
        for i in range(0, num_gates, 4):
            for b in range(batch_size):
                sum0, sum1, sum2, sum3 = zero, zero, zero, zero
                for j in range(size):
                    x = h[b, j]
                    sum0 += weight[i, j] * x
                    sum1 += weight[i + 1, j] * x
                    sum2 += weight[i + 2, j] * x
                    sum3 += weight[i + 3, j] * x
                gates[b, i] = given[t, b, i] + sum0
                gates[b, i + 1] = given[t, b, i + 1] + sum1
                gates[b, i + 2] = given[t, b, i + 2] + sum2
                gates[b, i + 3] = given[t, b, i + 3] + sum3
        for b in range(batch_size):
            for j in range(size):
                enter = one / (one + math.exp(-gates[b, j]))
                keep = one / (one + math.exp(-gates[b, size + j]))
                leave = one / (one + math.exp(-gates[b, 3 * size + j]))
                # tanh x = 1 - 2 / (1 + e^2x): exp takes a third of the time of tanh
                c[b, j] = keep * c[b, j] + enter * (one - two / (one + math.exp(two * gates[b, 2 * size + j])))
                h[b, j] = leave * (one - two / (one + math.exp(two * c[b, j])))
                y[t, b, j] = h[b, j]
