"""Backward passes written by hand for every operation of the course's networks, on plain tensors without autograd.

An operation is a pair of functions, called like this:

    y, saved = linear(x, weight, bias)                      # forward: the result, and what the backward needs
    dx, dweight, dbias = linear_backward(dy, saved)         # backward: a gradient for each tensor input, in order

`dy` means dL/dy, the derivative of the loss L (a single number) by each entry of y. So dy has the shape of y and dx
that of x, and an operation does not need to know L. With one tensor input, the backward returns a single gradient.
Integers (codes, targets, a dilation) have no gradient. `saved` is a tuple that only the matching backward uses.

A chain of operations runs forwards in order and backwards in reverse; each dx is the dy of the operation before. Three
rules are enough to derive all of them, and the docstrings refer to them:

    chain rule    dx[i] = sum over j of dy[j] times the slope of y[j] in x[i]
    used twice    a value used in two places gets the sum of the gradients from both
    broadcast     a value copied along an axis gets the sum of its gradients along that axis; conversely, a sum along an
                  axis passes its gradient to every entry, and a mean passes 1/N of it

Shapes: N rows, B items, S steps, D or V features, H heads; `...` are any leading axes.

Source: Rumelhart, Hinton and Williams 1986, Learning representations by back-propagating errors; Karpathy, makemore
part 4 (the operations of the MLP). Other sources are named in the functions.
"""

from .attention import (
    causal_attention,
    causal_attention_backward,
    self_attention,
    self_attention_backward,
    softmax,
    softmax_backward,
)
from .basic import (
    cross_entropy,
    cross_entropy_backward,
    embedding,
    embedding_backward,
    linear,
    linear_backward,
    relu,
    relu_backward,
    tanh,
    tanh_backward,
)
from .convolution import causal_conv, causal_conv_backward, gate, gate_backward, wavenet_layer, wavenet_layer_backward
from .norms import (
    EPSILON,
    batch_norm,
    batch_norm_backward,
    batch_norm_steps,
    batch_norm_steps_backward,
    layer_norm,
    layer_norm_backward,
)

__all__ = [
    "EPSILON",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_steps",
    "batch_norm_steps_backward",
    "causal_attention",
    "causal_attention_backward",
    "causal_conv",
    "causal_conv_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "embedding",
    "embedding_backward",
    "gate",
    "gate_backward",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "relu",
    "relu_backward",
    "self_attention",
    "self_attention_backward",
    "softmax",
    "softmax_backward",
    "tanh",
    "tanh_backward",
    "wavenet_layer",
    "wavenet_layer_backward",
]
