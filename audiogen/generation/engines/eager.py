"""The loop as the model itself runs it: works for every model, and is what the other engines must equal."""

import torch
from torch import Tensor

from ...models.layers import State
from ...models.sequence_model import SequenceModel
from .base import Engine


class Eager(Engine):
    """Draw a step, observe it, draw the next. A step is observed when the next one is asked for, so none in vain."""

    seconds_at_once = 0.0  # a call costs nothing beside a step

    @classmethod
    def unsupported_reason(cls, model: SequenceModel) -> str | None:
        return None

    def set_state(self, hidden: Tensor, state: State) -> None:
        self._hidden, self._state, self._pending = hidden, state, None

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        model, sampling = self.model, self.request.sampling
        with torch.inference_mode():
            for s in range(seq.shape[2]):
                if self._pending is not None:
                    self._hidden, self._state = model.advance(self._pending, self._state)
                if logits is not None:
                    logits[:, s] = model.head.logits(self._hidden)
                x = model.head.sample(self._hidden, sampling, uniforms[:, s])  # (B, C)
                seq[:, :, s] = torch.where(known[:, s], seq[:, :, s], x)
                self._pending = seq[:, :, s : s + 1].clone()
