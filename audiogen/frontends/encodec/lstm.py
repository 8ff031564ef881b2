"""An LSTM layer on the CPU, for few sequences at once: as fast as its weights can be read.

A step of one sequence is a product of a matrix with a vector, and its time that of getting the matrix (4 MB in EnCodec)
from the outer cache into the core. torch's own layer repacks the weights at each call besides, which takes as long as
some hundred steps: too long for one block, and far too long for a frame of a live stream.

numba compiles this where it is first called (seconds; kept on disk where there is a place for it).
"""

import math

import numpy as np
import torch
from torch import Tensor

from ...utils.jit import compiled


def lstm_layer(given: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """One layer over S steps (torch.nn.LSTM's equations and order of gates: input, forget, cell, output).

    Args:
        given: (S, B, 4 H): what the inputs give to the gates, with both biases. Float32 or float64 on the CPU.
        weight: (4 H, H), `weight_hh`.
        h, c: (B, H), replaced by those after the last step.

    Returns:
        (S, B, H): h after each step.
    """
    y = torch.empty(*given.shape[:2], weight.shape[1], dtype=given.dtype)
    _steps(given.numpy(), weight.numpy(), h.numpy(), c.numpy(), y.numpy())
    return y


@compiled(fastmath={"reassoc", "contract", "nsz"})  # sums in any order; infinity still means what it does
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
                # tanh x = 1 - 2 / (1 + e^2x), as exp takes a third of tanh's time
                c[b, j] = keep * c[b, j] + enter * (one - two / (one + math.exp(two * gates[b, 2 * size + j])))
                h[b, j] = leave * (one - two / (one + math.exp(two * c[b, j])))
                y[t, b, j] = h[b, j]
