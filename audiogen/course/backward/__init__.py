"""Backward passes written by hand: every piece of the course's networks, over plain tensors and without autograd.

A piece is a pair of functions, always called in the same way:

    y, saved = linear(x, weight, bias)                      # forward: the result, and what its backward will need
    dx, dweight, dbias = linear_backward(dy, saved)         # backward: a gradient for each tensor input, in order

`dy` means dL/dy: how much the one number at the end, the loss L, grows when an entry of y grows. So dy has the shape
of y, dx that of x, and a piece needs to know nothing of what L is. A piece with one tensor input returns the one
gradient. Integers (codes, targets, a dilation) have none, and are left out. `saved` is a tuple that only the piece's
own backward opens.

A chain of pieces is run forwards in order and backwards in reverse; each dx is the next one's dy. Three rules are
enough to derive them all, and the docstrings refer to them:

    chain rule    dx[i] = sum over j of dy[j] times the slope of y[j] in x[i]
    used twice    what enters two places gets the sum of what comes back from both
    broadcast     a value copied along an axis was used as often as it was copied: its gradient is summed over that
                  axis; and a sum over an axis sends its one gradient back to every entry, a mean 1/N of it

Shapes: N rows, B items, S steps, D or V features, H heads; `...` are axes that are only carried along.

Source: Rumelhart, Hinton and Williams 1986, Learning representations by back-propagating errors; Karpathy, makemore
part 4 (the pieces of the MLP). Sources of the rest are named beside it.
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
