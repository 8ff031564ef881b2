"""The contract of an engine."""

import functools
import logging
from typing import ClassVar

import torch
from torch import Tensor

from ...models.backbones import Backbone
from ...models.conditioning import AskedConditions, Changed, Prepared
from ...models.layers import Memory, State
from ...models.sequence_model import SequenceModel
from ..request import Request

log = logging.getLogger("audiogen")


@functools.cache
def log_once(line: str) -> None:
    """Log a message once per process."""
    log.info("%s", line)


def log_unsupported(name: str, reason: str) -> None:
    """Log once why an engine can't run a model."""
    log_once(f"the engine {name} can't run this model ({reason}), so the plain loop does")


class Engine:
    """A faster way to run the loop of generate.py for one kind of model, with the same results.

    An engine is made for one call of `generate` or `stream`, from the weights at that time. The model processes the
    prompt, then the engine decodes block by block:

        engine.prefill(prompt)  engine.decode(block 0)  engine.decode(block 1)  ...

    Libraries that take time to load or compile are imported in `__init__`, not at the top of the module.

    Args:
        model: a model for which `unsupported_reason` returns None, in evaluation mode.
        request: batch size, sampling and precision.
    """

    #: The engine runs models of this backbone, on this kind of device.
    backbone: ClassVar[type[Backbone]] = Backbone
    device: ClassVar[str] = "cpu"
    #: Seconds of sound to `decode` at a time: less lowers the latency, more needs fewer calls.
    seconds_at_once: ClassVar[float] = 0.05

    @classmethod
    def unsupported_reason(cls, model: SequenceModel) -> str | None:
        """Return why this engine can't run a model with its backbone; None if it can.

        The base class refuses weights that are not float32, modules with hooks, and autocast.
        """
        if getattr(model.backbone.config, "cross_attention", False):
            return "its backbone attends to a text"
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
            return "its weights are not float32"
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            return "its modules have hooks, which an engine would not call"
        if torch.is_autocast_enabled(cls.device):
            return "autocast is on, which an engine would ignore"
        return None

    @classmethod
    def pays(cls, model: SequenceModel, request: Request) -> bool:
        """Return whether the engine is faster than the plain loop for a request."""
        return True

    def __init__(self, model: SequenceModel, request: Request):
        self.model, self.request = model, request
        #: Rows of the hidden: with guidance two for each item, with conditions and without.
        self.rows = request.rows
        self.step = 0  # that is drawn next
        self._given: Prepared | Changed | None = self._prepared(request.conditions)
        self._null = self._prepared(None) if request.guided else None

    def _prepared(self, conditions: AskedConditions | None) -> Prepared | None:
        device = self.model.bos.device
        conditions = {
            name: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x
            for name, x in (conditions or {}).items()
        }
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            return self.model.prepare(conditions)

    def change(self, conditions: AskedConditions) -> None:
        """Replace the conditions from the first frame on of which no step has been predicted yet.

        Raises:
            ConfigError: as in `SequenceModel.prepare`.
        """
        before, after = self._given, self._prepared(conditions)
        if before is not None and after is not None:
            newest = int(self.model.pattern.newest_frame(self.step, self.step + 1))
            self._given = Changed(before.after if isinstance(before, Changed) else before, after, newest + 1)

    def prefill(self, seq: Tensor) -> None:
        """Process the steps (B, C, S) of the prompt, S >= 0, with the model in one pass."""
        with torch.inference_mode():
            self.step, rows = seq.shape[2], self.in_rows(seq)
            stop = self.step + 1
            self.set_state(*self.model.start(len(rows), rows, self.added(0, stop), self.memory(0, stop)))

    def in_rows(self, x: Tensor) -> Tensor:
        """Repeat each item (B, ...) for its row without conditions, where guidance needs one."""
        return torch.stack([x, x], dim=1).flatten(0, 1) if self.request.guided else x

    def added(self, start: int, stop: int) -> Tensor | None:
        """Return what conditions add to the inputs that predict the steps [start, stop): (rows or 1, n or 1, D).

        None for a model without conditions.
        """
        if self._given is None:
            return None
        with torch.autocast(self.model.bos.device.type, enabled=False):
            given = self.model.added(self._given, start, stop)
            null = None if self._null is None else self.model.added(self._null, start, stop)
        if given is not None and self.request.changes is not None:  # of one shape, whatever the conditions are
            given = given.expand(self.request.batch_size, stop - start, -1)
        if given is None or null is None:
            return given
        shape = (self.request.batch_size, *given.shape[1:])
        return torch.stack([given.expand(shape), null.expand(shape)], dim=1).flatten(0, 1)

    def memory(self, start: int, stop: int) -> Memory | None:
        """Return the texts that the backbone attends to at the steps [start, stop), for all rows."""
        found = self.model.memory(self._given, start, stop)
        if found is None or not self.request.guided:
            return found
        given = found.wanted.expand(self.request.batch_size, -1)
        return found._replace(wanted=torch.stack([given, torch.zeros_like(given)], dim=1).flatten(0, 1))

    def to_sample(self, hidden: Tensor) -> Tensor:
        """Combine the rows (rows, D) of each item as guidance says: (B, D), what the head draws from."""
        if not self.request.guided:
            return hidden
        return self.model.head.combine(hidden[0::2], hidden[1::2], self.request.guidance)

    def set_state(self, hidden: Tensor, state: State) -> None:
        """Continue from the model's state; may be called again to start over.

        Args:
            hidden: (B, D), from which the head predicts the next step; consumed.
            state: the state of the model; consumed.
        """
        raise NotImplementedError

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        """Draw the next n steps and observe each of them, keeping the values that are known.

        Draws are those of `sampling.draw`: the inverse of the cumulative filtered probabilities, in float64; a hole if
        a probability is not a number.

        Args:
            seq: (B, C, n), written in place where it is not known. May be a strided view.
            known: (C, n) bool, True where seq holds the prompt or a hole.
            uniforms: (B, n, U) float64 in (0, 1), U being head.num_uniforms.
            logits: (B, n, K, V) float32, filled with the logits of each step, to compare engines.
        """
        raise NotImplementedError

    def logits(self, seq: Tensor) -> Tensor:
        """Return teacher-forced logits from the first step: steps (B, K, S) -> (B, S, K, V)."""
        B, K, S = seq.shape
        logits = torch.empty(B, S, K, self.model.spec.num_choices // K, device=seq.device)
        uniforms = torch.full((B, S, self.model.head.num_uniforms), 0.5, dtype=torch.float64, device=seq.device)
        self.prefill(seq[:, :, :0])
        with torch.inference_mode():
            self.decode(seq.clone(), torch.ones_like(seq[0], dtype=torch.bool), uniforms, logits)
        return logits
