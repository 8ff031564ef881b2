"""The plain loop, which runs any model. All other engines must equal it."""

import torch
from torch import Tensor

from ...models.layers import State
from ...models.sequence_model import SequenceModel
from .base import Engine


class Eager(Engine):
    """Draw a step, observe it, draw the next. The last step drawn is observed only when another one is requested."""

    seconds_at_once = 0.0  # a call costs nothing compared with a step

    @classmethod
    def unsupported_reason(cls, model: SequenceModel) -> str | None:
        return None

    def set_state(self, hidden: Tensor, state: State) -> None:
        self._hidden, self._state, self._pending = hidden, state, None

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        model, sampling, n = self.model, self.request.sampling, seq.shape[2]
        with torch.inference_mode():
            added = self.added(self.step + 1, self.step + n + 1)
            for s in range(n):
                if self._pending is not None:
                    x, added_before, memory = self._pending
                    self._hidden, self._state = model.advance(x, self._state, added_before, memory)
                hidden = self.to_sample(self._hidden)
                if logits is not None:
                    logits[:, s] = model.head.logits(hidden)
                x = model.head.sample(hidden, sampling, uniforms[:, s])  # (B, C)
                seq[:, :, s] = torch.where(known[:, s], seq[:, :, s], x)
                following = None if added is None else added[:, s : s + 1] if added.shape[1] > 1 else added
                memory = self.memory(self.step + 1 + s, self.step + 2 + s)
                self._pending = self.in_rows(seq[:, :, s : s + 1].clone()), following, memory
            self.step += n
