"""Collectives (all-reduce, broadcast); no-ops when torch.distributed is not initialised."""

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum x over all processes, in place, and return it."""
    if _together():
        dist.all_reduce(x)
    return x


def from_first_rank(x: Tensor) -> Tensor:
    """Replace x by the first process's, in place, and return it."""
    if _together():
        dist.broadcast(x, src=0)
    return x


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
