"""How ranks hold the weights of a model, and sum the gradients of a step's batches: each holds all weights.

`audiogen.training.sharding` has the other way: each rank holds a share of them.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import TreeSum, World
from ..models.sequence_model import SequenceModel


class Weights(Protocol):
    """The weights of a model as a rank holds them, and the mean gradient of a step's batches.

    for number in weights.share:
        with weights.of_batch(last=number == weights.share[-1]):
            loss(weights.forward(batch)).backward()
    norm = weights.finish()                         # now each parameter has its gradient

    Attributes:
        model: the SequenceModel that is trained, for what is neither forward nor backward.
        forward: the module to call in training.
        own: the module that this rank trains and averages; its parameters are in the order of the model's.
        rows: a dict of Rows: which rows of a parameter `own` has, by its name in the model; empty if it has them all.
        num_shares: number of ranks that together have all rows.
        share: numbers of this rank's batches.
    """

    model: Any
    forward: Any
    own: Any
    rows: Any
    num_shares: int
    share: range

    def of_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Return the context of the forward and backward pass of a batch; the rank's last one is marked."""
        ...

    def finish(self) -> Tensor:
        """Set the gradient of each parameter of `own`; return the norm of all ranks' gradient."""
        ...

    def named(self, own: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of `own`, or of a copy of it, by their names in the model."""
        ...

    def restore(self, own: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Overwrite the tensors of `own`, or of a copy of it, by what `named` returned."""
        ...

    def whole(self, own: nn.Module) -> AbstractContextManager[SequenceModel]:
        """Return the model with the weights of `own`, or of a copy of it, for the time of a block."""
        ...


class Replicas:
    """All weights on each rank, and gradients that are summed in the tree of `audiogen.distributed`.

    So they have the same bytes for any number of ranks.

    Args:
        model: the model to train.
        num_batches: batches per step, of all ranks.
        world: the ranks.
        forward: the module to call in training; the model if it is None.
    """

    exact = True

    def __init__(self, model: SequenceModel, num_batches: int, world: World, forward: nn.Module | None = None):
        self.model, self.own, self.num_batches, self.world = model, model, num_batches, world
        self.forward: Any = forward or model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.rows, self.num_shares = {}, 1
        self.share = world.share(num_batches, self.exact)
        self.total = TreeSum()

    @contextmanager
    def of_batch(self, last: bool) -> Iterator[None]:
        yield
        if self.num_batches > 1:
            self.total.add([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
            for p in self.parameters:
                p.grad = None

    def finish(self) -> Tensor:
        if self.num_batches > 1:
            gradients = self.world.add_up(self.total.result())
            torch._foreach_div_(gradients, self.num_batches)  # pyright: ignore
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = gradient
        return squares(self.parameters).sqrt().float()

    def named(self, own: nn.Module) -> dict[str, Tensor]:
        return own.state_dict()

    def restore(self, own: nn.Module, tensors: dict[str, Tensor]) -> None:
        own.load_state_dict(tensors)

    def whole(self, own: Any) -> AbstractContextManager[SequenceModel]:
        return nullcontext(own)


class OverlappedReplicas(Replicas):
    """All weights on each rank, and gradients that torch's DistributedDataParallel sums during the backward pass.

    For large models on slow networks. Equal to `Replicas` within rounding.
    """

    exact = False

    def __init__(self, model: SequenceModel, num_batches: int, world: World, forward: nn.Module | None = None):
        super().__init__(model, num_batches, world, forward)
        self.forward = DistributedDataParallel(self.forward, broadcast_buffers=False)

    @contextmanager
    def of_batch(self, last: bool) -> Iterator[None]:
        with self.world.exchanging(), nullcontext() if last else self.forward.no_sync():
            yield

    def finish(self) -> Tensor:
        for p in self.parameters:
            if p.grad is not None:
                p.grad.div_(len(self.share))
        return squares(self.parameters).sqrt().float()


def squares(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Sum the squares of gradients, in float64: then the norm is the same in whichever parts they are summed."""
    found = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters if p.grad is not None]
    return torch.stack(found).square().sum()


def compiled(model: SequenceModel) -> nn.Module:
    """Return the model as training is to call it, compiled: each block by itself where its backbone has blocks.

    Blocks are alike, so one of them is compiled for all, in a time that does not grow with their number. The result
    shares its weights with the model, which is not compiled: evaluation and generation call it with many shapes.
    """
    if not model.backbone.parts():
        return torch.compile(model)  # pyright: ignore
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for block in twin.backbone.parts():
        block.compile()
    return twin
