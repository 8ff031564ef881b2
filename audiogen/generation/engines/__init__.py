"""Faster ways to run the same generate loop. `choose` picks one; models that none suits run as they are."""

from ...models.sequence_model import SequenceModel
from ..request import PRECISIONS, Request
from .base import Engine, log_once, log_unsupported
from .cpu.gpt import GPTEngine
from .cpu.wavenet import WaveNetEngine
from .cuda_graph import GraphEngine
from .eager import Eager

__all__ = ["ENGINES", "PRECISIONS", "Engine", "choose"]

ENGINES: dict[str, type[Engine]] = {"wavenet": WaveNetEngine, "gpt": GPTEngine, "graph": GraphEngine}


def choose(model: SequenceModel, request: Request) -> Engine:
    """Return the engine that runs this model, made from its weights as they are now; the plain loop where none does."""
    device = model.bos.device.type
    for name, kind in ENGINES.items():
        if not isinstance(model.backbone, kind.backbone) or device != kind.device:
            continue
        reason = kind.unsupported_reason(model)
        if reason is None:
            try:
                return kind(model, request)
            except ImportError as error:
                reason = f"{error.name} can't be imported"
        log_unsupported(name, reason)
    if request.precision != "fp32":
        log_once(
            f"the plain loop runs this model, with its weights as they are: nothing is rounded to {request.precision}"
        )
    return Eager(model, request)
