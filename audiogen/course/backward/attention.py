"""Softmax, causal attention, and multi-head self-attention."""

import math

import torch
from torch import Tensor

from .basic import Saved, linear, linear_backward


def softmax(x: Tensor) -> tuple[Tensor, Saved]:
    """Compute exp(x) / sum(exp(x)) along the last axis: (..., V) -> (..., V). An x of -inf gives 0."""
    y = (x - x.amax(dim=-1, keepdim=True)).exp()  # the same result, without overflow
    y = y / y.sum(dim=-1, keepdim=True)
    return y, (y,)


def softmax_backward(dy: Tensor, saved: Saved) -> Tensor:
    """Compute dx = y (dy - sum(y dy)) along the last axis.

    ln y[i] = x[i] - ln(sum over j of exp(x[j])), whose slope in x[k] is (1 if i = k else 0) - y[k]; so y[i]'s is
    y[i] times that, and by the chain rule

        dx[k] = sum over i of dy[i] y[i] ((1 if i = k else 0) - y[k]) = y[k] dy[k] - y[k] sum over i of dy[i] y[i]

    sum(y dy) is the mean of dy weighted by y: an entry is raised if its dy is above that mean, and lowered if below. A
    row of dx sums to zero, and dx is 0 where y is 0 (a masked step) or 1.
    """
    (y,) = saved
    return y * (dy - (y * dy).sum(dim=-1, keepdim=True))


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Saved]:
    """Average the values up to each step, weighted by how well its query matches their keys.

    All tensors are (B, H, S, D):

        scores = q k' / sqrt(D), -inf above the diagonal        (B, H, S, S)
        weights = softmax(scores)                               (B, H, S, S)
        y = weights v                                           (B, H, S, D)

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2.1 and its mask of 3.2.3.
    """
    S, D = q.shape[-2:]
    later = torch.ones(S, S, dtype=torch.bool, device=q.device).triu(1)
    weights, _ = softmax((q @ k.mT / math.sqrt(D)).masked_fill(later, -math.inf))
    return weights @ v, (q, k, v, weights)


def causal_attention_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dq, dk, dv, (B, H, S, D) each: two matrix products with a softmax between them, in reverse.

        y = weights v               dweights = dy v'        how much step t gains from a larger weight of value j
                                    dv = weights' dy        summed over the steps that attend to it
        weights = softmax(scores)   dscores = `softmax_backward` of dweights, 0 above the diagonal
        scores = q k' / sqrt(D)     dq = dscores k / sqrt(D),  dk = dscores' q / sqrt(D)

    In the forward pass, row t gathers from columns j <= t. The transposes reverse this: dk and dv of step j gather from
    steps t >= j. So gradients flow into the past, and the gradient of a step depends on later steps only.
    """
    q, k, v, weights = saved
    dscores = softmax_backward(dy @ v.mT, (weights,)) / math.sqrt(q.shape[-1])
    return dscores @ k, dscores.mT @ q, weights.mT @ dy


def self_attention(
    x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor, num_heads: int
) -> tuple[Tensor, Saved]:
    """Compute multi-head causal self-attention, with a linear layer before and after it.

    Args:
        x: (B, S, D), D a multiple of num_heads.
        weight: (3 D, D), the rows of queries, keys and values in this order.
        bias: (3 D,).
        out_weight: (D, D).
        out_bias: (D,).
        num_heads: H.

    Returns:
        (B, S, D).

    Source: Vaswani et al. 2017, section 3.2.2.
    """
    qkv, in_saved = linear(x, weight, bias)  # (B, S, 3 D)
    q, k, v = (split_heads(z, num_heads) for z in qkv.chunk(3, dim=-1))
    heads, attention_saved = causal_attention(q, k, v)  # (B, H, S, D / H)
    y, out_saved = linear(join_heads(heads), out_weight, out_bias)
    return y, (in_saved, attention_saved, out_saved)


def self_attention_backward(dy: Tensor, saved: Saved) -> tuple[Tensor, ...]:
    """Compute dx (B, S, D), dweight, dbias, dout_weight and dout_bias from dy (B, S, D).

    The calls of the forward pass in reverse. Splitting into heads only moves numbers, so its backward is joining, and
    vice versa.
    """
    in_saved, attention_saved, out_saved = saved
    num_heads = attention_saved[0].shape[1]
    djoined, dout_weight, dout_bias = linear_backward(dy, out_saved)
    dqkv = causal_attention_backward(split_heads(djoined, num_heads), attention_saved)
    dx, dweight, dbias = linear_backward(torch.cat([join_heads(z) for z in dqkv], dim=-1), in_saved)
    return dx, dweight, dbias, dout_weight, dout_bias


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split the features into heads: (B, S, D) -> (B, H, S, D / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Concatenate the heads: (B, H, S, D / H) -> (B, S, D)."""
    return x.transpose(1, 2).flatten(2)
