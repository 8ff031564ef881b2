"""Sum the gradients of a step's batches, over the batches of a rank and over the ranks."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import TreeSum, World


class GradientSum(Protocol):
    """Makes the mean gradient of a step's batches.

    for place in share:
        with gradients.of_batch(last=place == share[-1]):
            loss(gradients.forward(batch)).backward()
    gradients.finish()                                      # now each parameter has its gradient
    """

    forward: Any  # the model to call

    def of_batch(self, last: bool) -> Any:
        """Return the context of the forward and backward pass of a batch; the rank's last one is marked."""
        ...

    def finish(self) -> None:
        """Set the gradient of each parameter."""
        ...


class ExactSum:
    """Sums in the tree of `audiogen.distributed`, with the same bytes for any number of ranks.

    Args:
        forward: the model, or what calls it.
        parameters: those that are trained.
        num_batches: batches per step, of all ranks.
        world: the ranks.
    """

    def __init__(self, forward: Any, parameters: list[nn.Parameter], num_batches: int, world: World):
        self.forward, self.parameters, self.num_batches, self.world = forward, parameters, num_batches, world
        self.total = TreeSum()

    @contextmanager
    def of_batch(self, last: bool) -> Iterator[None]:
        yield
        if self.num_batches > 1:
            self.total.add([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
            for p in self.parameters:
                p.grad = None

    def finish(self) -> None:
        if self.num_batches > 1:
            gradients = self.world.add_up(self.total.result())
            torch._foreach_div_(gradients, self.num_batches)  # pyright: ignore
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = gradient


class OverlappedSum:
    """Sums in the order that suits the network, during the backward pass, by torch's DistributedDataParallel.

    For large models on slow networks. Equal to `ExactSum` within rounding.

    Args:
        forward: the model, or what calls it.
        parameters: those that are trained.
        num_batches: batches per step, of all ranks.
        world: the ranks, which are connected.
    """

    def __init__(self, forward: Any, parameters: list[nn.Parameter], num_batches: int, world: World):
        self.forward = DistributedDataParallel(forward, broadcast_buffers=False)
        self.parameters, self.num_own = parameters, num_batches // world.size

    def of_batch(self, last: bool) -> Any:
        return nullcontext() if last else self.forward.no_sync()

    def finish(self) -> None:
        for p in self.parameters:
            if p.grad is not None:
                p.grad.div_(self.num_own)
