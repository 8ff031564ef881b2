"""Attention in small steps, from averaging the past to multiple heads; each step generalises the one before.

Queries are (..., S, d), keys (..., T, d), values (..., T, e): S steps attend to T others, of the same sequence
(self-attention) or of another one (cross-attention).

Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2; Karpathy, nanoGPT lecture ("mathematical trick").
"""

import math

import torch
from torch import Tensor


def past_mean_loop(x: Tensor) -> Tensor:
    """Average the past in a loop, y[t] = mean(x[0], ..., x[t]): (S, D) -> (S, D)."""
    return torch.stack([x[: t + 1].mean(dim=0) for t in range(len(x))])


def past_mean_matrix(x: Tensor) -> Tensor:
    """Average the past with one matrix product: a triangle of ones, each row divided by its sum."""
    triangle = torch.ones(len(x), len(x), dtype=x.dtype).tril()  # (S, S)
    return triangle / triangle.sum(dim=1, keepdim=True) @ x


def past_mean_softmax(x: Tensor) -> Tensor:
    """Average the past with softmax weights: scores of 0, and minus infinity for steps that are masked."""
    scores = torch.zeros(len(x), len(x), dtype=x.dtype).masked_fill(~causal_mask(len(x)), -math.inf)
    return scores.softmax(dim=1) @ x


def causal_mask(num_steps: int) -> Tensor:
    """Return a mask (S, S) bool: whether step t (row) may attend to step j, which is itself or the past."""
    return torch.ones(num_steps, num_steps, dtype=torch.bool).tril()


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, scaled: bool = True) -> Tensor:
    """Compute the softmax of the products of queries and keys: (..., S, T), rows sum to 1.

    Args:
        q: queries (..., S, d).
        k: keys (..., T, d).
        mask: (..., S, T) bool, whether the query may attend to the key; None for all.
        scaled: divide by sqrt(d), so that the scores of random vectors have variance 1 for any d.
    """
    scores = q @ k.transpose(-2, -1)
    if scaled:
        scores = scores / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the values for each query, weighted by `attention_weights`: (..., S, e)."""
    return attention_weights(q, k, mask) @ v


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split the features into heads: (B, S, D) -> (B, H, S, D / H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Concatenate the heads: (B, H, S, D / H) -> (B, S, D)."""
    return x.transpose(1, 2).flatten(2)


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of each row in bits, (..., S, T) -> (..., S); 2 ** entropy is an effective number of steps."""
    return torch.special.entr(weights).sum(dim=-1) / math.log(2)


def look_back(weights: Tensor) -> Tensor:
    """Return the average distance, in steps, that each step looks back: (..., S, S) -> (..., S)."""
    t = torch.arange(weights.shape[-1], dtype=weights.dtype)
    return t - weights @ t
