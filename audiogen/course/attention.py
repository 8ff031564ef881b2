"""Attention in small steps, from averaging the past to many heads: each gives what the one before gave where they meet.

Queries are (..., S, d), keys (..., T, d), values (..., T, e): S steps look at T others. They may come from one sequence
(self-attention) or from two (cross-attention); nothing here asks which.

Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2; Karpathy, nanoGPT lecture ("mathematical trick").
"""

import math

import torch
from torch import Tensor


def past_mean_loop(x: Tensor) -> Tensor:
    """y[t] = the mean of x[0] to x[t], one step after the other: (S, D) -> (S, D)."""
    return torch.stack([x[: t + 1].mean(dim=0) for t in range(len(x))])


def past_mean_matrix(x: Tensor) -> Tensor:
    """The same as one product with a triangle of ones, each row divided by its sum."""
    triangle = torch.ones(len(x), len(x), dtype=x.dtype).tril()  # (S, S)
    return triangle / triangle.sum(dim=1, keepdim=True) @ x


def past_mean_softmax(x: Tensor) -> Tensor:
    """The same with weights that a softmax makes: scores of zero, and minus infinity where a step must not look."""
    scores = torch.zeros(len(x), len(x), dtype=x.dtype).masked_fill(~causal_mask(len(x)), -math.inf)
    return scores.softmax(dim=1) @ x


def causal_mask(num_steps: int) -> Tensor:
    """(S, S) bool: whether step t, the row, may see step j: itself and the past."""
    return torch.ones(num_steps, num_steps, dtype=torch.bool).tril()


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None, scaled: bool = True) -> Tensor:
    """The softmax of the queries' products with the keys: (..., S, T), rows sum to 1.

    Args:
        mask: (..., S, T) bool, whether the query may see the key; None lets it see all.
        scaled: divides by sqrt(d), so that the scores of random vectors keep variance 1 however long they are.
    """
    scores = q @ k.transpose(-2, -1)
    if scaled:
        scores = scores / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each query takes the mean of the values, weighted by `attention_weights`: (..., S, e)."""
    return attention_weights(q, k, mask) @ v


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, S, D) -> (B, H, S, D / H): each head has a slice of the features to itself."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, D / H) -> (B, S, D): the heads' results side by side again."""
    return x.transpose(1, 2).flatten(2)


def entropy(weights: Tensor) -> Tensor:
    """Bits of each row: (..., S, T) -> (..., S). 2 to the power of it is how many steps a row looks at in effect."""
    return torch.special.entr(weights).sum(dim=-1) / math.log(2)


def look_back(weights: Tensor) -> Tensor:
    """Steps from each one back to where it looks, on average: (..., S, S) -> (..., S)."""
    t = torch.arange(weights.shape[-1], dtype=weights.dtype)
    return t - weights @ t
