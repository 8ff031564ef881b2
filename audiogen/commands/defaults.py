"""The whole config of a run from what was typed; what was not typed, its parts choose."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..config import find, from_dict, override, parse_override, to_dict
from ..errors import ConfigError
from ..models.backbones import BACKBONES
from ..models.patterns import PATTERNS
from ..runs.config import RunConfig
from ..runs.training_config import TrainingConfig
from ..spec import Spec
from ..utils.devices import bf16_pays

#: What `audiogen train FOLDER --out RUN` takes where nothing is named; tests/bench/defaults.py compares it with others.
FRONTEND, BACKBONE = "mel", "gpt"


def default_config(
    frontend: dict[str, Any],
    spec: Spec,
    backbone: str,
    overrides: Iterable[str] = (),
    training: dict[str, Any] | None = None,
    num_codes: float = math.inf,
) -> RunConfig:
    """The whole config of a run.

    Args:
        frontend: the front-end's own dict, {"kind": ...}; overrides of it have been applied already.
        spec: of that front-end.
        backbone: kind of the backbone.
        overrides: "a.b=1" assignments, the last word on everything but the front-end.
        training: budget and seed, as the command line's own options say.
        num_codes: about how many there are to train on, as far as that is known.

    Raises:
        ConfigError: an override names an unknown key or has the wrong type.
    """
    part = find(backbone, BACKBONES, "backbone.kind")
    config, chosen = part.defaults(spec, num_codes)
    values = {
        "frontend": frontend,
        "backbone": {"kind": backbone, **to_dict(config)},
        "pattern": {"kind": "delay" if spec.num_rows > 1 else "parallel"},
        "data": {},
        "training": {**chosen, **(training or {})},
    }
    overrides = list(overrides)
    named = override(values, overrides)
    crop_frames = from_dict(TrainingConfig, named["training"], "training").crop_frames
    pattern = find(named["pattern"]["kind"], PATTERNS, "pattern.kind")(spec.num_rows)
    values["backbone"] |= to_dict(part.for_crops(config, pattern.num_steps(crop_frames)))
    return RunConfig.from_dict(override(values, overrides))


def frontend_settings(overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Splits "a.b=1" assignments into those of the front-end, as its settings, and the rest."""
    settings, rest = {}, []
    for assignment in overrides:
        if assignment.strip().startswith("frontend."):
            (_, *groups, name), value = parse_override(assignment)
            place = settings
            for group in groups:  # a front-end that is wrapped: so far by its name, or by settings of its own
                named = place.get(group, {})
                place[group] = named if isinstance(named, dict) else {"kind": named}
                place = place[group]
            if isinstance(place.get(name), dict) and isinstance(value, str):
                place[name]["kind"] = value
            else:
                place[name] = value
        else:
            rest.append(assignment)
    return settings, rest


def refuse_settings(assignments: Iterable[str], taken: Sequence[str] = ()) -> None:
    """Raises the ConfigError of a setting that a command which trains no model would ignore; it takes those `taken`."""
    for assignment in assignments:
        name = ".".join(parse_override(assignment)[0])
        if name not in taken:
            raise ConfigError(
                f"{name}: nothing is trained here, so that it would be ignored; leave it out, or give it to train"
            )


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on this device: bfloat16 where it is known to pay, else float32."""
    if precision != "auto":
        return precision
    return "bf16" if bf16_pays(device) else "fp32"
