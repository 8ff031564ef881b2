"""Faster ways to run the same generate loop. `choose` picks one; models that none suits run as they are."""

import functools
import logging

from ..errors import ConfigError
from ..model import SequenceModel
from .base import PRECISIONS, Engine
from .eager import Eager
from .wavenet import WaveNetEngine

log = logging.getLogger("audiogen")

#: By the name that the log tells.
ENGINES: dict[str, type[Engine]] = {"wavenet": WaveNetEngine}


def choose(model: SequenceModel, batch_size: int) -> Engine:
    """The engine that runs this model, made from its weights as they are now; the plain loop where none does.

    Raises:
        ConfigError: model.precision is unknown.
    """
    if model.precision not in PRECISIONS:
        raise ConfigError(f"precision: {model.precision!r} is unknown; choose {', '.join(PRECISIONS)}")
    reasons = []
    for name, kind in ENGINES.items():
        reason = kind.refusal(model)
        if reason is None:
            try:
                return kind(model, batch_size)
            except ImportError as error:
                reason = f"it needs {error.name}, which can't be imported"
        reasons.append(f"{name}: {reason}")
    _tell("; ".join(reasons) or "there is none")
    return Eager(model, batch_size)


@functools.cache
def _tell(reason: str) -> None:
    """Once for each reason, not once for each batch."""
    log.info("no engine runs this model, so the plain loop does (%s)", reason)
