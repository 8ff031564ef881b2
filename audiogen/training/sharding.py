"""Ranks that hold a share of the weights each (torch's FSDP2), for models that are too large for one GPU.

The rows of each parameter are shared out among a group of ranks, by default those of a machine, whose links are fast.
The other groups hold the same:

    parameter      rows 0-2   rows 3-5   rows 6-8   rows 9-11
    group 0         rank 0     rank 1     rank 2     rank 3
    group 1         rank 4     rank 5     rank 6     rank 7

A part of the backbone is put together shortly before it runs, and taken apart after it. Gradients are summed over the
ranks of a group, of which each keeps that of its rows, and then over the groups.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ..distributed import TreeSum, World, add_up_in, piece_of_sum
from ..models.sequence_model import SequenceModel
from .checkpoint import Rows
from .gradients import squares

dist: Any = torch.distributed  # whose names are not all declared as public


class Shards:
    """A share of the weights on each rank; see `Weights`.

    Exact sums are made in the tree of `audiogen.distributed`, over the ranks first: so the ranks take batches in turn,
    and the result has the bytes that replicas have. The norm alone is a sum of squares in another order, in float64;
    rounded to float32 it is the same, but for one step in many millions. On CPUs, torch's AdamW rounds in another way
    where numbers do not fill a vector of 16: there the bytes are equal if a multiple of 16 numbers of each parameter
    falls to each rank. Sums that are not exact are torch's own.

    Args:
        model: the model to train, with the same weights on all ranks. Its parameters are empty outside of `whole`.
        num_batches: batches per step, of all ranks.
        world: the ranks, which are connected.
        exact: whether sums are exact.
        size: ranks of a group; None for those of a machine.
        bf16: exchange the weights of the backbone's parts as bfloat16, rather than as the float32 that autocast then
            rounds: half of the bytes. Their layer norms then see rounded weights, too, and the residual stream is
            bfloat16 between them.
        compiled: compile the backbone's parts.

    Raises:
        ConfigError: the ranks can't share out the batches or the weights in this way.
    """

    def __init__(
        self,
        model: SequenceModel,
        num_batches: int,
        world: World,
        exact: bool = True,
        size: int | None = None,
        bf16: bool = False,
        compiled: bool = False,
    ):
        self.whole_model, self.num_batches, self.world, self.exact = model, num_batches, world, exact
        self.share = world.share(num_batches, exact, in_turn=True)
        self.num_shares = size or world.ranks_per_machine
        world.check_groups(self.num_shares, exact)
        self.within, self.across = world.groups(self.num_shares)
        self.model = self.forward = self._sharded(copy.deepcopy(model), bf16, compiled)
        self.total = TreeSum()
        own, self.rows = [], {}
        for (name, whole), p in zip(model.named_parameters(), self.model.parameters(), strict=True):
            own.append(nn.Parameter(p.to_local().detach(), p.requires_grad))
            each = -(-len(whole) // self.num_shares)  # rows, as FSDP2 cuts them
            start, stop = (min(len(whole), (world.rank % self.num_shares + i) * each) for i in (0, 1))
            self.rows[name] = Rows(start, stop, len(whole))
            whole.data = whole.new_empty(0)
        self.own = nn.ParameterList(own)

    def _sharded(self, model: SequenceModel, bf16: bool, compiled: bool) -> Any:
        kind = model.bos.device.type
        if self.across is None or self.exact:  # `_over_groups` makes exact sums
            mesh = DeviceMesh.from_group(self.within, kind)
        else:
            ranks = torch.arange(self.world.size).view(-1, self.num_shares)
            names = ("groups", "ranks")
            mesh = DeviceMesh.from_group([self.across, self.within], kind, mesh=ranks, mesh_dim_names=names)
        of_parts = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
        for part in model.backbone.parts():
            if compiled:
                part.compile()
            fully_shard(part, mesh=mesh, mp_policy=of_parts)
        sharded: Any = fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(sharded, "redraw")
        stream = torch.cuda.Stream() if kind == "cuda" else None
        for module in sharded.modules():
            if isinstance(module, FSDPModule):
                # The loss is divided by the number of batches, so sums are wanted. gloo takes means for sums.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                if self.exact:
                    module.set_custom_reduce_scatter(_TreeReduceScatter())  # pyright: ignore
                if self.exact and self.across is not None:
                    module.set_all_reduce_hook(self._over_groups, stream=stream)
        return sharded

    def _over_groups(self, gradient: Tensor) -> None:
        """Sum the gradient of this rank's rows over the groups."""
        padded = nn.functional.pad(gradient, (0, -len(gradient) % (self.world.size // self.num_shares)))
        add_up_in(self.across, padded)
        gradient.copy_(padded[: len(gradient)])

    @contextmanager
    def of_batch(self, last: bool) -> Iterator[None]:
        """Sum the gradient of a batch over the ranks, and add it to those before."""
        if self.across is not None and not self.exact:
            self.forward.set_requires_all_reduce(last)
        with self.world.exchanging():
            yield
        if self.exact or last:  # otherwise torch adds them
            trained = [p for p in self.forward.parameters() if p.requires_grad]
            self.total.add([torch.zeros_like(p.to_local()) if p.grad is None else p.grad.to_local() for p in trained])
            for p in trained:
                p.grad = None

    def finish(self) -> Tensor:
        gradients = self.total.result()
        torch._foreach_div_(gradients, self.num_batches)  # pyright: ignore
        trained = [p for p in self.own.parameters() if p.requires_grad]
        for p, gradient in zip(trained, gradients, strict=True):
            p.grad = gradient
        return self.world.gather(squares(trained)[None])[: self.num_shares].sum().sqrt().float()

    def named(self, own: nn.Module) -> dict[str, Tensor]:
        # Buffers do not change in training, and are whole.
        names, found = [name for name, _ in self.whole_model.named_parameters()], self.whole_model.state_dict()
        return {**found, **{name: p.detach() for name, p in zip(names, own.parameters(), strict=True)}}

    def restore(self, own: nn.Module, tensors: dict[str, Tensor]) -> None:
        into = self.named(own)
        if into.keys() != tensors.keys():
            raise ValueError(f"it differs in {sorted(into.keys() ^ tensors.keys())[0]}")
        with torch.no_grad():
            for name, x in tensors.items():
                if into[name].shape != x.shape:
                    raise ValueError(f"{name} is {list(x.shape)}, not {list(into[name].shape)}")
                into[name].copy_(x)
            for buffer, sharded in zip(self.whole_model.buffers(), self.model.buffers(), strict=True):
                sharded.copy_(buffer)

    @contextmanager
    def whole(self, own: nn.Module) -> Iterator[SequenceModel]:
        for whole, rows, p in zip(self.whole_model.parameters(), self.rows.values(), own.parameters(), strict=True):
            each = -(-rows.of // self.num_shares)
            piece = p.detach().new_zeros(each, *p.shape[1:])
            piece[: len(p)] = p.detach()
            joined = piece.new_empty(self.num_shares * each, *p.shape[1:])
            with self.world.exchanging():
                dist.all_gather_into_tensor(joined, piece, group=self.within)
            whole.data = joined[: rows.of]
        try:
            yield self.whole_model
        finally:
            for p in self.whole_model.parameters():
                p.data = p.data.new_empty(0)


class _TreeReduceScatter:
    """What FSDP2 calls to sum gradients over the ranks of a group; see `piece_of_sum`."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        output_tensor.copy_(piece_of_sum(group, input_tensor))
