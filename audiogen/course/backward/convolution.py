"""WaveNet's layer: a dilated causal convolution, a gate, and a residual path around them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .basic import Saved, linear, linear_backward


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> tuple[Tensor, Saved]:
    """Convolve over the current and earlier steps: (B, S, D_in), (K, D_out, D_in), (D_out,) -> (B, S, D_out).

    There are K matrices, one per tap, the oldest first; the last one belongs to the current step:

        y[t] = bias + sum over k of weight[k] x[t - (K - 1 - k) dilation],      x[t] = 0 before the start

        K = 2, dilation 4     x  . . . o . . . o          y[7] = weight[0] x[3] + weight[1] x[7] + bias
                                       \\_______|
                              y                o

    Source: van den Oord et al. 2016, WaveNet, section 2.1.
    """
    S, past = x.shape[1], (len(weight) - 1) * dilation
    padded = F.pad(x, (0, 0, past, 0))  # (B, past + S, D_in)
    y = bias + sum(padded[:, k * dilation : k * dilation + S] @ tap.T for k, tap in enumerate(weight))
    return y, (padded, weight, dilation)


def causal_conv_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dx (B, S, D_in), dweight (K, D_out, D_in) and dbias (D_out,) from dy (B, S, D_out).

    Each tap is a linear layer on a shifted copy of x, so its backward is `linear_backward`, and x, used by all taps,
    gets the sum. What goes forwards in time comes back with the opposite shift:

        dx[s] = sum over k of weight[k]' dy[s + (K - 1 - k) dilation]       an anticausal convolution
        dweight[k] = sum over items and t of dy[t] x[t - (K - 1 - k) dilation]'

        K = 2, dilation 4     dy           o . . . o      dx[3] = weight[1]' dy[3] + weight[0]' dy[7]
                                           |_______/
                              dx           o

    Gradients of the zeros before the start are discarded.
    """
    padded, weight, dilation = saved
    S = dy.shape[1]
    dpadded, dweight = torch.zeros_like(padded), torch.empty_like(weight)
    for k, tap in enumerate(weight):
        seen = slice(k * dilation, k * dilation + S)
        dpadded[:, seen] += dy @ tap
        dweight[k] = dy.flatten(0, 1).T @ padded[:, seen].flatten(0, 1)
    return dpadded[:, padded.shape[1] - S :], dweight, dy.sum(dim=(0, 1))


def gate(x: Tensor) -> tuple[Tensor, Saved]:
    """Compute tanh(first half) * sigmoid(second half): (..., 2 D) -> (..., D).

    Source: van den Oord et al. 2016, WaveNet, section 2.3.
    """
    signal, opened = x.chunk(2, dim=-1)
    signal, opened = signal.tanh(), 1 / (1 + (-opened).exp())
    return signal * opened, (signal, opened)


def gate_backward(dy: Tensor, saved: Saved) -> Tensor:
    """Compute dx (..., 2 D) from dy (..., D).

    In a product, each factor gets the other one times dy; then tanh' = 1 - tanh^2 and sigmoid' = sigmoid (1 - sigmoid)
    (as sigmoid(x) = (1 + tanh(x / 2)) / 2). So a closed gate also blocks the gradient: a layer does not learn from what
    it does not let through.
    """
    signal, opened = saved
    return torch.cat([dy * opened * (1 - signal * signal), dy * signal * opened * (1 - opened)], dim=-1)


def wavenet_layer(
    x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor, dilation: int
) -> tuple[tuple[Tensor, Tensor], Saved]:
    """Apply convolution, gate and linear layer, and add x: returns y for the next layer and z for the skip path.

    Args:
        x: (B, S, D).
        weight: (K, 2 D, D), of the convolution.
        bias: (2 D,), of the convolution.
        out_weight: (D, D).
        out_bias: (D,).
        dilation: steps between taps.

    Returns:
        (y, z), both (B, S, D): y = x + linear(z), z = gate(conv(x)).

    Source: van den Oord et al. 2016, WaveNet, section 2.4, figure 4.
    """
    gates, conv_saved = causal_conv(x, weight, bias, dilation)
    z, gate_saved = gate(gates)
    residual, linear_saved = linear(z, out_weight, out_bias)
    return (x + residual, z), (conv_saved, gate_saved, linear_saved)


def wavenet_layer_backward(gradients: tuple[Tensor, Tensor], saved: Saved) -> tuple[Tensor, ...]:
    """Compute dx, dweight, dbias, dout_weight and dout_bias from (dy, dz), both (B, S, D).

    z is used twice, by the linear layer and by the skip path; so is x, by the convolution and by the residual sum.
    Through that sum dy reaches dx unchanged: however many layers there are, one path back has no factor that could make
    the gradient vanish.
    """
    dy, dz = gradients
    conv_saved, gate_saved, linear_saved = saved
    dz_residual, dout_weight, dout_bias = linear_backward(dy, linear_saved)
    dx, dweight, dbias = causal_conv_backward(gate_backward(dz + dz_residual, gate_saved), conv_saved)
    return dx + dy, dweight, dbias, dout_weight, dout_bias
