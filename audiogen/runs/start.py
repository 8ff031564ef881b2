"""Start training from the base model that ships with the package.

The base model is a run over mel frames at 44.1 kHz. The bands in Hz and the frames in seconds are the same at every
sample rate. A lower rate has only the leading bands, and the weights contain a model of these.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from ..errors import ConfigError
from ..frontends import Frontend, load_frontend
from ..frontends.mel.mel import Mel
from ..models.sequence_model import SequenceModel
from .config import RunConfig
from .folder import read_config, read_weights
from .outlook import BASE as BASE
from .outlook import FINE_TUNING

#: Settings that do not change the shape of any weight, so they can be changed for the base model.
FREE = (
    "frontend.sample_rate",
    "frontend.spectrum",
    "frontend.griffin_lim_iterations",
    "backbone.dropout",
    "backbone.window",
)
#: From the shipped network's spectrum so many iterations are as good as 60 from a smooth one (docs/benchmarks.md).
ITERATIONS = 24


@cache
def base_config() -> RunConfig:
    """Return the config of the base model."""
    return read_config(BASE)


def fine_tuning() -> tuple[Any, str, dict[str, Any]]:
    """Return the backbone's config, the head and the training settings for fine-tuning the base model."""
    return replace(base_config().backbone, dropout=0.1), base_config().head, FINE_TUNING


@cache
def _base_frontend() -> Mel:
    frontend = load_frontend(BASE)
    assert isinstance(frontend, Mel)
    return frontend


def base_frontend(sample_rate: int, **settings: Any) -> Mel:
    """Return the base model's front-end for a sample rate in Hz.

    Args:
        sample_rate: Hz.
        **settings: other settings of Mel that do not change the frames.
    """
    settings = {"spectrum": "shipped", **settings}
    if settings["spectrum"] == "shipped":
        settings.setdefault("griffin_lim_iterations", ITERATIONS)
    return _base_frontend().resampled(sample_rate, **settings)


def is_base_frontend(frontend: Frontend) -> bool:
    """Tell whether a front-end makes the frames of the base model."""
    if not isinstance(frontend, Mel) or not frontend.fitted:
        return False
    plain = {"griffin_lim_iterations": 1, "spectrum": "smooth"}
    like = base_frontend(frontend.spec.sample_rate, **plain)
    same_settings = replace(frontend.config, vocoder=None, **plain) == like.config
    return same_settings and torch.equal(frontend.mean.cpu(), like.mean) and torch.equal(frontend.std.cpu(), like.std)


@torch.no_grad()
def start_from_base(model: SequenceModel) -> None:
    """Copy the base model's weights into a model, for the bands that the model has.

    Raises:
        ConfigError: the model has another config than the base model.
    """
    config = base_config()
    base, _ = read_weights(BASE, config, _base_frontend().spec)
    parts: dict[str, Any] = {"embed": base.embed, "head": base.head}
    weights, bands = base.state_dict(), model.spec.num_channels
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        weights |= {f"{name}.{key}": value for key, value in part.leading_bands(own, bands).items()}
    # The base was also trained without each of its conditions, with null vectors of zero.
    conditions = {} if model.conditioner is None else model.conditioner.parts
    for name, settings in config.conditions.items():
        if name not in conditions or not conditions[name].has_same_weights(conditions[name].config, settings):
            weights = {key: x for key, x in weights.items() if not key.startswith(f"conditioner.condition_{name}.")}
    try:
        model.load_state_dict(model.state_dict() | weights)  # weights that the base lacks, of conditions, stay new
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"training.start: the base model has other weights ({reason}); use scratch") from error
