"""Where training starts from: the base model, which ships with the package, or new weights.

The base is a run over mel frames of 44.1 kHz. Its bands lie on a grid in Hz and its frames on one in seconds, so it
serves every sample rate: a lower one has only the leading bands, whose distribution the same weights contain.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..frontends import Frontend, load_frontend
from ..frontends.mel.mel import Mel
from ..models.sequence_model import SequenceModel
from .config import RunConfig
from .folder import read_config, read_weights

#: A run folder like any other: `audiogen generate` takes it too.
BASE = Path(__file__).parents[1] / "weights" / "base"
#: Settings that change no shape of a weight, and so may be set together with the base model.
FREE = ("frontend.sample_rate", "frontend.griffin_lim_iterations", "backbone.dropout", "backbone.window")


@cache
def base_config() -> RunConfig:
    """Return the config of the base model."""
    return read_config(BASE)


def fine_tuning() -> tuple[Any, dict[str, Any]]:
    """Return the backbone's config and the training settings of a model that starts from the base."""
    training = {
        "start": "base",
        "crop_frames": 384,
        "batch_size": 4,
        "learning_rate": 3e-4,  # 1e-3 reaches a lower loss, but then generation drifts into noise on clean tunes
        "warmup": 0.1,
        "weight_decay": 0.1,
    }
    return replace(base_config().backbone, dropout=0.1), training


@cache
def _base_frontend() -> Mel:
    frontend = load_frontend(BASE)
    assert isinstance(frontend, Mel)
    return frontend


def base_frontend(sample_rate: int, **settings: Any) -> Mel:
    """Return the base model's front-end for a sample rate in Hz.

    Args:
        sample_rate: Hz.
        **settings: other settings of Mel that leave the frames as they are.
    """
    return _base_frontend().resampled(sample_rate, **settings)


def is_base_frontend(frontend: Frontend) -> bool:
    """Tell whether the base model can model what a front-end makes."""
    if not isinstance(frontend, Mel) or not frontend.fitted:
        return False
    like = base_frontend(frontend.spec.sample_rate, griffin_lim_iterations=frontend.config.griffin_lim_iterations)
    return frontend.fingerprint() == like.fingerprint()


@torch.no_grad()
def start_from_base(model: SequenceModel) -> None:
    """Copy the base model's weights into a model of its config, for the bands that the model has.

    Raises:
        ConfigError: the model is of another config.
    """
    base, _ = read_weights(BASE, base_config(), _base_frontend().spec)
    parts: dict[str, Any] = {"embed": base.embed, "head": base.head}
    weights, bands = base.state_dict(), model.spec.num_channels
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        weights |= {f"{name}.{key}": value for key, value in part.leading_bands(own, bands).items()}
    try:
        model.load_state_dict(model.state_dict() | weights)  # what the base lacks, such as conditions, stays new
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"training.start: the base model has other weights ({reason}); use scratch") from error
