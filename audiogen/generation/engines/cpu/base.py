"""Base class of engines that run a compiled kernel on one CPU core."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ....models.embeddings import CodeEmbedding
from ....models.heads import CategoricalHead
from ....models.sequence_model import SequenceModel
from ..base import Engine


class KernelEngine(Engine):
    """Run models of codes with one kind of backbone, in fp32, bf16 or int8, on one thread whatever torch's setting.

    Subclasses set in `__init__`:
        _run: the kernel, run(weights, *memory, position, hidden, seq, known, uniforms, filters, logits,
            added, guidance).
        _weights: the packed weights of the model.
        _memory: the kernel's state and working memory, arrays that it writes in place.
    and in `set_state`:
        _position: number of steps observed.
        _hidden: (B, D), from which the head predicts the next step.
    """

    #: Types of embedding and head that the engine knows.
    ends: ClassVar[tuple[tuple[type, type], ...]] = ((CodeEmbedding, CategoricalHead),)
    _run: Callable
    _weights: tuple
    _memory: tuple[Any, ...]
    _position: int
    _hidden: np.ndarray

    @classmethod
    def unsupported_reason(cls, model: SequenceModel) -> str | None:
        if type(model.backbone) is not cls.backbone:
            return f"its backbone is not {cls.backbone.__name__} itself"
        if (type(model.embed), type(model.head)) not in cls.ends:
            return f"it has no code for {type(model.head).__name__}"
        return super().unsupported_reason(model)

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        from ....utils.jit import log_compilation
        from .sampling import filters

        codes = np.ascontiguousarray(seq.numpy())
        with log_compilation(f"the engine for {self.backbone.__name__}"):
            self._run(
                self._weights,
                *self._memory,
                self._position,
                self._hidden,
                codes,
                np.ascontiguousarray(known.numpy()),
                np.ascontiguousarray(uniforms.numpy()),
                filters(self.request.sampling, self.model.spec.num_choices // self.model.spec.num_rows),
                np.empty((0, 0, 0, 0), np.float32) if logits is None else logits.numpy(),
                self._added(codes.shape[2]),
                np.float32(self.request.guidance),
            )
        seq.copy_(torch.from_numpy(codes))
        self._position += codes.shape[2]
        self.step += codes.shape[2]

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
