"""Engines: faster ways to run the generation loop. `choose` picks one; other models run in the plain loop."""

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
    """Return an engine for a model and its current weights; the plain loop if no engine supports the model."""
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
        log_once(f"this model runs in the plain loop, which does not round weights to {request.precision}")
    return Eager(model, request)
