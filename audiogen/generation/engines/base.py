"""The contract of an engine."""

import functools
import logging
from typing import ClassVar

import torch
from torch import Tensor

from ...models.backbones import Backbone
from ...models.layers import State
from ...models.sequence_model import SequenceModel
from ..request import Request

log = logging.getLogger("audiogen")


@functools.cache
def log_once(line: str) -> None:
    """Says it once, not once for each batch."""
    log.info("%s", line)


def log_unsupported(name: str, reason: str) -> None:
    log_once(f"the engine {name} can't run this model ({reason}), so the plain loop does")


class Engine:
    """A faster way to run the loop of generate.py for models of one kind; never another meaning.

    Made for one call of `generate` or `stream`, from the weights as they then are. It takes over from the model once
    this has seen the prompt, and goes on block by block:

        engine.prefill(prompt)  engine.decode(block 0)  engine.decode(block 1)  ...

    An engine that needs a library or time to compile imports it in `__init__`, not where its module is imported.

    Args:
        model: one that `unsupported_reason` finds nothing against, in evaluation mode.
        request: how many items are generated side by side, the filters, and the precision.
    """

    #: What it is for: models of this backbone, on this kind of device.
    backbone: ClassVar[type[Backbone]] = Backbone
    device: ClassVar[str] = "cpu"
    #: Seconds of sound that `decode` should be asked for at a time: less is heard sooner, more takes fewer calls.
    seconds_at_once: ClassVar[float] = 0.05

    @classmethod
    def unsupported_reason(cls, model: SequenceModel) -> str | None:
        """Why this engine can't run the model, which is of the kind that it is for; None if it can. Here: weights that
        are not float32, modules that someone watches, autocast, which chooses other types."""
        if model.conditioner is not None:
            return "it has conditions"
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
            return "its weights are not float32"
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            return "hooks wait for its modules to be called"
        if torch.is_autocast_enabled(cls.device):
            return "autocast is on, which chooses other types"
        return None

    def __init__(self, model: SequenceModel, request: Request):
        self.model, self.request = model, request
        self.step = 0  # that is drawn next

    def prefill(self, seq: Tensor) -> None:
        """Begins after the steps (B, C, S), S being 0 or more, which the model runs through at once."""
        with torch.inference_mode():
            self.step, rows = seq.shape[2], self.in_rows(seq)
            self.set_state(*self.model.start(len(rows), rows, self.added(0, self.step + 1)))

    def in_rows(self, x: Tensor) -> Tensor:
        """Repeat (B, ...) where guidance needs two rows for each item: first all with conditions, then all without."""
        return torch.cat([x, x]) if self.request.guided else x

    def added(self, start: int, stop: int) -> Tensor | None:
        """Return what conditions add to the inputs that predict the steps [start, stop): (rows or 1, n or 1, D).

        None for a model without conditions.
        """
        request, device = self.request, self.model.bos.device
        conditions = {name: values.to(device) for name, values in (request.conditions or {}).items()}
        given, null = self.model.added(conditions, start, stop), self.model.added({}, start, stop)
        if given is None or null is None or not request.guided:
            return given
        shape = (request.batch_size, *given.shape[1:])
        return torch.cat([given.expand(shape), null.expand(shape)])

    def to_sample(self, hidden: Tensor) -> Tensor:
        """Combine the rows (rows, D) of each item as guidance says: (B, D), what the head draws from."""
        if not self.request.guided:
            return hidden
        given, null = hidden.chunk(2)
        return self.model.head.combine(given, null, self.request.guidance)

    def set_state(self, hidden: Tensor, state: State) -> None:
        """Goes on from the hidden (B, D) that predicts the next step, and the state of the model, consuming both.
        May be called again, to begin anew."""
        raise NotImplementedError

    def decode(self, seq: Tensor, known: Tensor, uniforms: Tensor, logits: Tensor | None = None) -> None:
        """Goes through the next n steps: draws each, keeps what is known of it, and observes the result.

        A draw is sampling.draw's: the inverse of the cumulative filtered probabilities, in float64; and a hole where
        they are not numbers.

        Args:
            seq: (B, C, n), written in place where it is not known. May be a strided view.
            known: (C, n) bool: of the prompt, or a hole.
            uniforms: (B, n, U) float64 in (0, 1), U being head.num_uniforms.
            logits: (B, n, K, V) float32 that takes the logits of each step, for those who compare engines.
        """
        raise NotImplementedError

    def logits(self, seq: Tensor) -> Tensor:
        """Teacher-forced, from the beginning: steps (B, K, S) -> the logits that predict each, (B, S, K, V)."""
        B, K, S = seq.shape
        logits = torch.empty(B, S, K, self.model.spec.codebook_size, device=seq.device)
        uniforms = torch.full((B, S, self.model.head.num_uniforms), 0.5, dtype=torch.float64, device=seq.device)
        self.prefill(seq[:, :, :0])
        with torch.inference_mode():
            self.decode(seq.clone(), torch.ones_like(seq[0], dtype=torch.bool), uniforms, logits)
        return logits
