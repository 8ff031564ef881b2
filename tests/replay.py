"""A CUDA graph for those who have no GPU: it records what a step calls, with the memory that it reads and writes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from audiogen.generation.engines.cuda_graph import GraphEngine

#: What makes the host wait for the device, or makes sizes of values: none of it can be captured.
FORBIDDEN = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "unique_consecutive",
    "equal",
    "allclose",
    "is_nonzero",
    "bincount",
    "repeat_interleave",
    "lift_fresh",
    "histc",
}


class Recorder(TorchDispatchMode):
    """What is called within, as (operator, arguments, result); `replay` calls it again on the very same tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        name = operator.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if name in FORBIDDEN or by_mask:
            raise RuntimeError(f"{name} can't be captured")
        result = operator(*arguments, **(keywords or {}))
        self.calls.append((operator, arguments, keywords or {}, result))
        return result

    def replay(self):
        for operator, arguments, keywords, result in self.calls:
            again = operator(*arguments, **keywords)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)


def _tensors(x):
    return [x] if isinstance(x, torch.Tensor) else [t for part in x for t in _tensors(part)] if x is not None else []


def _leaves(state):
    if isinstance(state, torch.Tensor):
        return [state]
    return [leaf for part in (state.values() if isinstance(state, dict) else state or ()) for leaf in _leaves(part)]


class GraphOnCPU(GraphEngine):
    """The engine with that in the place of a graph. `captures` counts how often a step was noted down."""

    device = "cpu"
    captures = 0

    def _captured(self):
        kept = [self._hidden, self._seq, self._at, *_leaves(self._state)]
        kept += [] if self._logits is None else [self._logits]
        before = [tensor.clone() for tensor in kept]
        with Recorder() as recorder:
            self._run_step()
        for tensor, value in zip(kept, before, strict=True):  # a capture runs nothing
            tensor.copy_(value)
        self.captures += 1
        return recorder.replay
