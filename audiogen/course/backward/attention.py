"""Softmax, causal attention, and the whole layer of several heads."""

import math

import torch
from torch import Tensor

from .basic import Saved, linear, linear_backward


def softmax(x: Tensor) -> tuple[Tensor, Saved]:
    """exp(x) / sum(exp(x)) along the last axis: (..., V) -> (..., V). An x of -inf gets 0."""
    y = (x - x.amax(dim=-1, keepdim=True)).exp()  # the same y, and exp can't overflow
    y = y / y.sum(dim=-1, keepdim=True)
    return y, (y,)


def softmax_backward(dy: Tensor, saved: Saved) -> Tensor:
    """dx = y (dy - sum(y dy)) along the last axis.

    ln y[i] = x[i] - ln(sum over j of exp(x[j])), whose slope in x[k] is (1 if i = k else 0) - y[k]; so y[i]'s is
    y[i] times that, and by the chain rule

        dx[k] = sum over i of dy[i] y[i] ((1 if i = k else 0) - y[k]) = y[k] dy[k] - y[k] sum over i of dy[i] y[i]

    sum(y dy) is the mean of dy under the weights y: an entry is raised if it is worth more than the others are on
    average, and lowered if less. A row's dx sums to zero, and where y is 0 (a step that is masked) or 1, so is dx.
    """
    (y,) = saved
    return y * (dy - (y * dy).sum(dim=-1, keepdim=True))


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Saved]:
    """Each step's mean of the values up to it, weighted by how well its query fits their keys: (B, H, S, D) each -> the
    same.

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
    """(B, H, S, D) -> dq, dk, dv (B, H, S, D) each: two matrix products with a softmax between them, from the end.

        y = weights v               dweights = dy v'        how much step t gains from more of value j
                                    dv = weights' dy        from every step that looked at it, as it looked
        weights = softmax(scores)   dscores = `softmax_backward` of dweights, 0 above the diagonal
        scores = q k' / sqrt(D)     dq = dscores k / sqrt(D),  dk = dscores' q / sqrt(D)

    Forwards a row t gathers from the columns j <= t; the transposes send it back: dk and dv of step j gather from the
    steps t >= j. So gradients flow into the past, and each step's is made by its future alone.
    """
    q, k, v, weights = saved
    dscores = softmax_backward(dy @ v.mT, (weights,)) / math.sqrt(q.shape[-1])
    return dscores @ k, dscores.mT @ q, weights.mT @ dy


def self_attention(
    x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor, num_heads: int
) -> tuple[Tensor, Saved]:
    """Queries, keys and values of x; attention in each head; a linear layer over the heads side by side.

    Args:
        x: (B, S, D), D a multiple of num_heads.
        weight, bias: (3 D, D), (3 D,), the rows of queries, keys and values one after the other.
        out_weight, out_bias: (D, D), (D,).

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
    """(B, S, D) -> dx (B, S, D), dweight, dbias, dout_weight, dout_bias.

    The forward's calls in reverse. To split into heads only moves numbers, so its backward is to join, and the other
    way round.
    """
    in_saved, attention_saved, out_saved = saved
    num_heads = attention_saved[0].shape[1]
    djoined, dout_weight, dout_bias = linear_backward(dy, out_saved)
    dqkv = causal_attention_backward(split_heads(djoined, num_heads), attention_saved)
    dx, dweight, dbias = linear_backward(torch.cat([join_heads(z) for z in dqkv], dim=-1), in_saved)
    return dx, dweight, dbias, dout_weight, dout_bias


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, S, D) -> (B, H, S, D / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, S, D / H) -> (B, S, D)."""
    return x.transpose(1, 2).flatten(2)
