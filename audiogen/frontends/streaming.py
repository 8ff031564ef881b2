"""Sound that comes in chunks of any size, as the blocks that a front-end works in."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def reblocked(chunks: Iterable[Tensor], first: int, size: int) -> Iterator[tuple[Tensor, bool]]:
    """Chunks (B, C, n), n >= 0, as a block of `first`, blocks of `size`, and what is left, which may be nothing.

        chunks      | 5 | 0 | 1 | 9                 |
        first 4     |  4  |    4     |   4    |  3  |       blocks, the last of them with True
        size 4

    Each is a tensor of its own: a product of the same numbers may be rounded otherwise where they lie otherwise in
    memory.
    """
    waiting: list[Tensor] = []
    count, wanted = 0, first
    for chunk in chunks:
        waiting.append(chunk)
        count += chunk.shape[-1]
        if count < wanted:
            continue
        joined, begin = waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim=-1), 0
        while count >= wanted:
            yield _own(joined[..., begin : begin + wanted]), False
            begin, count, wanted = begin + wanted, count - wanted, size
        waiting = [_own(joined[..., begin:])]  # a view would keep all of it in memory
    if waiting:
        yield _own(torch.cat(waiting, dim=-1)), True


def _own(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def blockwise(
    block: Callable[[Tensor, Any, bool], tuple[Tensor, Any]],
    chunks: Iterable[Tensor],
    first: int,
    size: int,
    flushes: bool,
) -> Iterator[Tensor]:
    """block(x, state, last) -> (y, state) over the blocks of chunks, without those y that are empty.

    Args:
        flushes: whether something may come out at the end although nothing more goes in.
    """
    state = None
    for x, last in reblocked(chunks, first, size):
        if x.shape[-1] or last and flushes and state is not None:
            y, state = block(x, state, last)
            if y.shape[-1]:
                yield y
