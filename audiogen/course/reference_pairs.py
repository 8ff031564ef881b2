"""Pair each operation of backward/ with a reference made of torch's layers; the tests and lesson 5 compare the two.

pair = PAIRS["layer_norm"](lambda: 4)                     # random inputs, all sizes 4
y, dy, gradients = pair.run()                              # forward and backward by hand
by_autograd(pair.reference, pair.inputs, dy)              # should equal the gradients, see gradient_check.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import backward as b

#: Returns a size, 1 or more, at each call.
Size = Callable[[], int]


@dataclass(frozen=True)
class Pair:
    """An operation by hand and by torch.

    Attributes:
        forward, backward: from course/backward, with codes, targets and settings bound.
        reference: the same forward made of torch's layers, for autograd.
        inputs: float64 inputs of both.
    """

    forward: Callable
    backward: Callable
    reference: Callable
    inputs: list[Tensor]

    def run(self) -> tuple:
        """Return the result of the forward, a random dy of its shape, and the gradients of the backward, a tuple.

        Runs in inference mode, so that autograd can't be involved.
        """
        with torch.inference_mode():
            y, saved = self.forward(*self.inputs)
            dy = tuple(torch.randn_like(z) for z in y) if isinstance(y, tuple) else torch.randn_like(y)
            gradients = self.backward(dy, saved)
            gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return _outside(y), _outside(dy), _outside(gradients)


def embedding(size: Size) -> Pair:
    num_codes = size()
    codes = torch.randint(num_codes, (size(), size()))
    return Pair(
        lambda table: b.embedding(table, codes),
        b.embedding_backward,
        lambda table: F.embedding(codes, table),
        [_normal(num_codes, size())],
    )


def linear(size: Size) -> Pair:
    D, E = size(), size()
    return Pair(b.linear, b.linear_backward, F.linear, [_normal(size(), size(), D), _normal(E, D), _normal(E)])


def linear_without_bias(size: Size) -> Pair:
    D = size()
    return Pair(b.linear, b.linear_backward, F.linear, [_normal(size(), D), _normal(size(), D)])


def tanh(size: Size) -> Pair:
    return Pair(b.tanh, b.tanh_backward, torch.tanh, [3 * _normal(size(), size())])


def relu(size: Size) -> Pair:
    return Pair(b.relu, b.relu_backward, F.relu, [_normal(size(), size())])


def softmax(size: Size) -> Pair:
    return Pair(b.softmax, b.softmax_backward, lambda x: F.softmax(x, dim=-1), [3 * _normal(size(), size(), size())])


def cross_entropy(size: Size) -> Pair:
    B, S, V = size(), size(), size()
    target = torch.randint(V + 1, (B, S))  # V is a hole
    target[0, 0] = 0  # torch's mean over holes alone is NaN

    def reference(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=V)

    return Pair(
        lambda logits: b.cross_entropy(logits, target), b.cross_entropy_backward, reference, [5 * _normal(B, S, V)]
    )


def batch_norm(size: Size, forward: Callable = b.batch_norm, backward: Callable = b.batch_norm_backward) -> Pair:
    def reference(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, gain, bias, training=True)

    D = size()  # torch refuses a batch of one, hence 1 + size()
    return Pair(forward, backward, reference, [3 * _normal(1 + size(), D) + 2, _normal(D), _normal(D)])


def batch_norm_steps(size: Size) -> Pair:
    return batch_norm(size, b.batch_norm_steps, b.batch_norm_steps_backward)


def layer_norm(size: Size) -> Pair:
    D = 1 + size()
    return Pair(
        b.layer_norm,
        b.layer_norm_backward,
        lambda x, gain, bias: F.layer_norm(x, (D,), gain, bias),
        [3 * _normal(size(), size(), D) + 2, _normal(D), _normal(D)],
    )


def causal_conv(size: Size) -> Pair:
    D, E, dilation = size(), size(), size()
    return Pair(
        lambda *inputs: _call(b.causal_conv, *inputs, dilation),
        b.causal_conv_backward,
        lambda *inputs: _call(_padded_conv, *inputs, dilation),
        [_normal(size(), size(), D), _normal(size(), E, D), _normal(E)],
    )


def gate(size: Size) -> Pair:
    return Pair(b.gate, b.gate_backward, _gated, [3 * _normal(size(), size(), 2 * size())])


def wavenet_layer(size: Size) -> Pair:
    def reference(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> tuple:
        z = _gated(_padded_conv(x, weight, bias, dilation))
        return x + F.linear(z, out_weight, out_bias), z

    D, dilation = size(), size()
    return Pair(
        lambda *inputs: _call(b.wavenet_layer, *inputs, dilation),
        b.wavenet_layer_backward,
        reference,
        [_normal(size(), size(), D), _normal(size(), 2 * D, D), _normal(2 * D), _normal(D, D), _normal(D)],
    )


def causal_attention(size: Size) -> Pair:
    shape = size(), size(), size(), size()
    return Pair(
        b.causal_attention,
        b.causal_attention_backward,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        [_normal(*shape) for _ in range(3)],
    )


def self_attention(size: Size) -> Pair:
    num_heads = size()
    S, D = size(), num_heads * size()
    layer = nn.MultiheadAttention(D, num_heads, batch_first=True, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64)

    def reference(x: Tensor, *parameters: Tensor) -> Tensor:
        names = "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"
        return torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (x, x, x), {"attn_mask": mask, "need_weights": False}
        )[0]

    return Pair(
        lambda *inputs: _call(b.self_attention, *inputs, num_heads),
        b.self_attention_backward,
        reference,
        [_normal(size(), S, D), _normal(3 * D, D), _normal(3 * D), _normal(D, D), _normal(D)],
    )


PAIRS: dict[str, Callable[[Size], Pair]] = {
    make.__name__: make
    for make in (
        cross_entropy,
        linear,
        linear_without_bias,
        tanh,
        relu,
        batch_norm_steps,
        batch_norm,
        embedding,
        causal_conv,
        gate,
        wavenet_layer,
        layer_norm,
        softmax,
        causal_attention,
        self_attention,
    )
}


def _call(function: Callable, *arguments: Any) -> Any:
    return function(*arguments)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _padded_conv(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Apply torch's convolution, which takes (B, D, S) and weights (D_out, D_in, K), after padding with zeros."""
    padded = F.pad(x.mT, ((len(weight) - 1) * dilation, 0))
    return F.conv1d(padded, weight.permute(1, 2, 0), bias, dilation=dilation).mT


def _gated(x: Tensor) -> Tensor:
    signal, opened = x.chunk(2, dim=-1)
    return signal.tanh() * opened.sigmoid()


def _outside(tensors: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """Copy tensors for use with autograd, which refuses those made in inference mode."""
    return tensors.clone() if isinstance(tensors, Tensor) else tuple(z.clone() for z in tensors)
