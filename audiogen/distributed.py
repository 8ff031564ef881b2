"""Agreement between processes that train together; alone, each is the identity."""

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of every process's x, in place."""
    if _together():
        dist.all_reduce(x)
    return x


def from_first_rank(x: Tensor) -> Tensor:
    """The first process's x, in place."""
    if _together():
        dist.broadcast(x, src=0)
    return x


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
