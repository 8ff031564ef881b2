"""Engines: faster ways to run the generation loop. `choose` picks one; other models run in the plain loop."""

from ...models.sequence_model import SequenceModel
from ...utils.devices import bf16_pays
from ..request import PRECISIONS, Request
from .base import Engine, log_once, log_unsupported
from .cpu.gpt import GPTEngine
from .cpu.rounded_loop import RoundedLoop
from .cpu.wavenet import WaveNetEngine
from .cuda_graph import GraphEngine
from .eager import Eager

__all__ = ["ENGINES", "PRECISIONS", "Engine", "choose"]

ENGINES: dict[str, type[Engine]] = {"wavenet": WaveNetEngine, "gpt": GPTEngine, "graph": GraphEngine}


def choose(model: SequenceModel, request: Request) -> Engine:
    """Return an engine for a model and its current weights, or the plain loop.

    The plain loop runs what no engine supports, and what it runs faster.
    """
    device = model.bos.device.type
    for name, kind in ENGINES.items():
        if not isinstance(model.backbone, kind.backbone) or device != kind.device:
            continue
        reason = kind.unsupported_reason(model)
        if reason is None:
            if not kind.pays(model, request):
                rounds = request.precision != "fp32" and bf16_pays(model.bos.device)
                return RoundedLoop(model, request) if rounds else Eager(model, request)
            try:
                return kind(model, request)
            except ImportError as error:
                reason = f"{error.name} can't be imported"
        log_unsupported(name, reason)
    if request.precision != "fp32":
        log_once(f"this model runs in the plain loop, which does not round weights to {request.precision}")
    return Eager(model, request)
