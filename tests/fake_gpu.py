"""A GPU for those who have none: tensors without values that say they are on one, and a watch over the host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
GPU = torch.device("cuda", 0)

#: Results whose shapes depend on values, as they are where each value is 1.
ALL_ONES: dict[Any, Callable[..., Any]] = {
    aten.repeat_interleave.Tensor: lambda repeats, **_: torch.zeros_like(repeats, dtype=torch.int64),
    aten.nonzero.default: lambda x: torch.zeros(x.numel(), x.ndim, dtype=torch.int64, device=x.device),
    aten._unique2.default: lambda x, *_, **__: (x.new_zeros(1), x.new_zeros(0), x.new_zeros(0)),
}
#: Operators that look at values although torch does not tag them so, by name.
LOOKS = {"_linalg_check_errors", "histc", "equal"}
TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class FakeGPU(FakeTensorMode):
    """Runs operators on tensors that have a shape, a dtype and a device, but no values; one on the wrong device raises.

    Whoever asks for a value gets 1, and no two tensors are equal. Backward passes work without a driver: autograd's
    engine, which would start a thread for each GPU, is told that tensors on it are "meta" ones, which it treats as
    those of a CPU.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)  # they count as tensors of the CPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # C++ asks; Python reads an attribute
            device = args[0].fake_device if isinstance(args[0], FakeTensor) else torch.device("cpu")
            return torch.device("meta") if device == GPU else device
        if str(kwargs.get("device")) == "meta":  # made in C++ beside such a tensor
            kwargs = {**kwargs, "device": GPU}
        if func is aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is aten.equal.default:
            return False
        if func in ALL_ONES:
            with self:
                return ALL_ONES[func](*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Pretend that there is a GPU: what is made within is fake, and `module.to(GPU)` moves real weights there."""
    with (
        mock.patch.object(FakeTensor, "numpy", _numpy),
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(Tensor, "pin_memory", _pinned),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda: True),
        FakeGPU(),
    ):
        yield


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Apply what Module.to and the like do to parameters and buffers, which torch can't exchange for fake ones."""
    changed: dict[int, Tensor] = {}
    for part in module.modules():
        for name, x in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if id(x) not in changed:
                y = change(x.detach())
                changed[id(x)] = nn.Parameter(y, x.requires_grad) if isinstance(x, nn.Parameter) else y
            setattr(part, name, changed[id(x)])
    return module


def _pinned(x: Tensor) -> Tensor:
    y: Any = x.clone()
    y.pinned = True
    return y


def _numpy(x: Tensor) -> np.ndarray:
    if x.device.type != "cpu":
        raise TypeError(f"can't convert a tensor on {x.device} to numpy")
    return np.ones(tuple(x.shape), str(x.dtype).removeprefix("torch."))


class HostSync(AssertionError):
    """The host would have to wait for the GPU."""


class Watch(TorchDispatchMode):
    """Raises HostSync where the host would wait for a GPU: to look at a value, to learn a shape, or for a copy."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reason = why_it_waits(func, args, kwargs or {})
        if reason:
            raise HostSync(f"{func}: {reason}")
        return func(*args, **(kwargs or {}))


def why_it_waits(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """Say why the host would wait for a GPU in an operator; None where it would not."""
    if func is torch.ops.prim.device.default:
        return None
    name = func.overloadpacket.__name__
    if name in ("_to_copy", "copy_"):
        return _why_a_copy_waits(*args, **kwargs)
    tensors = [x for x in _flat(args) if isinstance(x, Tensor)]
    if not any(x.device.type == "cuda" for x in tensors):
        return None
    if name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
        indices = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            return "a mask is counted"
        return "the index has to be copied to the GPU" if any(x.device.type != "cuda" for x in indices) else None
    return "a value is looked at, or a shape depends on it" if name in LOOKS or TAGS & set(func.tags) else None


def _why_a_copy_waits(x: Tensor, other: Any = None, non_blocking: bool = False, **kwargs: Any) -> str | None:
    given = other if isinstance(other, Tensor) else x
    source, target = given.device, x.device if given is other else kwargs.get("device")
    from_cpu, to_cpu = (torch.device(device or source).type == "cpu" for device in (source, target))  # else "meta" too
    if to_cpu and not from_cpu:
        return "a copy to the CPU"
    if from_cpu and not to_cpu and (not non_blocking or not getattr(given, "pinned", False)):
        return "a copy to the GPU that blocks, or from memory that is not page-locked"
    return None


def _flat(x: Any) -> list[Any]:
    return [leaf for part in x for leaf in _flat(part)] if isinstance(x, list | tuple) else [x]
