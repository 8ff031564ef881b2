"""Base class of engines that run a compiled kernel on a CPU."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ....models.embeddings import CodeEmbedding
from ....models.heads import CategoricalHead
from ....models.sequence_model import SequenceModel
from ...request import Request
from ..base import Engine
from .threads import Threads


class KernelEngine(Engine):
    """Run models with one kind of backbone, in fp32, bf16 or int8.

    A single item runs on one thread. The items of a batch are shared among up to as many threads as torch uses, while
    that is faster; the results are the same to the bit.

    Subclasses set in `__init__`:
        _run: the kernel, run(weights, *memory, position, hidden, seq, known, *drawing, added, guidance).
        _weights: the packed weights of the model.
        _memory: the kernel's state, arrays (rows, ...) that it writes in place.
    and in `set_state`:
        _position: number of steps observed.
        _hidden: (rows, D), from which the head predicts the next step.
    """

    #: Types of embedding and head that the engine knows.
    ends: ClassVar[tuple[tuple[type, type], ...]] = ((CodeEmbedding, CategoricalHead),)
    #: Items that the kernel computes together: a thread gets a multiple of this number.
    together: ClassVar[int] = 1
    _run: Callable
    _weights: tuple
    _memory: tuple[np.ndarray, ...]
    _position: int
    _hidden: np.ndarray

    @classmethod
    def unsupported_reason(cls, model: SequenceModel) -> str | None:
        if type(model.backbone) is not cls.backbone:
            return f"its backbone is not {cls.backbone.__name__} itself"
        if (type(model.embed), type(model.head)) not in cls.ends:
            return f"it has no code for {type(model.head).__name__}"
        return super().unsupported_reason(model)

    def __init__(self, model: SequenceModel, request: Request):
        super().__init__(model, request)
        self.threads = Threads(request.batch_size, self.together)

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        from ....utils.jit import log_compilation

        values, given = np.ascontiguousarray(seq.numpy()), np.ascontiguousarray(known.numpy())
        steps, each = values.shape[2], self.rows // self.request.batch_size
        drawing, added = self._drawing(uniforms, logits), self._added(steps)

        def run(items: slice) -> None:
            rows = slice(each * items.start, each * items.stop)
            self._run(
                self._weights,
                *self._memory_of(items, rows),
                self._position,
                self._hidden[rows],
                values[items],
                given,
                *(x[items] if isinstance(x, np.ndarray) else x for x in drawing),
                added[rows] if len(added) > 1 else added,
                np.float32(self.request.guidance),
            )

        with log_compilation(f"the engine for {self.backbone.__name__}"):
            self.threads.run(run, steps)
        seq.copy_(torch.from_numpy(values))
        self._position += steps
        self.step += steps

    def _drawing(self, uniforms: Tensor, logits: Tensor | None) -> tuple[Any, ...]:
        """Convert uniform numbers (B, n, U) to what the kernel draws with; arrays have an entry for each item."""
        from .sampling import filters

        return (
            np.ascontiguousarray(uniforms.numpy()),
            filters(self.request.sampling, self.model.spec.num_choices // self.model.spec.num_rows),
            np.empty((0, 0, 0, 0), np.float32) if logits is None else logits.numpy(),
        )

    def _memory_of(self, items: slice, rows: slice) -> tuple[Any, ...]:
        """Return the state of some items, and the kernel's working memory for them, if it takes any."""
        return tuple(array[rows] for array in self._memory)

    @torch.inference_mode()
    def _added(self, num_steps: int) -> np.ndarray:
        """Return what conditions add after each of the next steps, (rows or 1, num_steps or 1, ...); zeros for none."""
        added = self.added(self.step + 1, self.step + num_steps + 1)
        none = self.model.bos.new_zeros(1, 1, self.model.backbone.dim)
        added = self.pack_added(none if added is None else added)
        return np.ascontiguousarray(added.numpy())

    def pack_added(self, added: Tensor) -> Tensor:
        """Convert what is added to the embeddings, (..., D), to what the kernel adds."""
        return added
