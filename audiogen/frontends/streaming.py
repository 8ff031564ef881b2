"""Cut a stream of chunks of any size into the blocks that a front-end processes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def reblocked(chunks: Iterable[Tensor], first: int, size: int) -> Iterator[tuple[Tensor, bool]]:
    """Cut chunks (B, C, n), n >= 0, into a block of `first` frames or samples, blocks of `size`, and the rest.

    Yields (block, whether it is the last one). The last block may be empty.

        chunks      | 5 | 0 | 1 | 9                 |
        first 4     |  4  |    4     |   4    |  3  |
        size 4

    Each block is a contiguous copy, because matrix products may round differently for a different memory layout.
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
        waiting = [_own(joined[..., begin:])]  # a view would keep the whole chunk in memory
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
    """Apply `block` to the blocks of a stream and yield the results that are not empty.

    Args:
        block: (x, state, last) -> (y, state).
        chunks: tensors (B, C, n) of any lengths.
        first: length of the first block.
        size: length of the other blocks.
        flushes: whether `block` may return something for an empty last block.
    """
    state = None
    for x, last in reblocked(chunks, first, size):
        if x.shape[-1] or last and flushes and state is not None:
            y, state = block(x, state, last)
            if y.shape[-1]:
                yield y
