"""Settings that suit a front-end and a backbone, where the user sets none. The README has a measured row for each."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..config import find, from_dict, override, parse_override
from ..errors import ConfigError
from ..models.backbones import BACKBONES
from ..models.patterns import PATTERNS
from ..runs.config import RunConfig
from ..runs.training_config import TrainingConfig
from ..spec import Spec
from ..utils.devices import bf16_pays

#: What `audiogen train FOLDER --out RUN` takes where nothing is named. Four codebooks, each refining the one before,
#: keep clearly more of the sound than one: a mel distance of 0.21 in the place of 0.26 on spoken digits.
FRONTEND, FRONTEND_SETTINGS, BACKBONE = "melvq", {"num_codebooks": 4, "codebook_size": 256}, "gpt"

# Samples need long crops and small models, frames short crops and larger ones.
SAMPLES: dict[str, dict[str, Any]] = {
    "bigram": {
        "backbone": {"dim": 256},
        "training": {"crop_frames": 4096, "batch_size": 16, "learning_rate": 1e-2, "weight_decay": 0.0},
    },
    "mlp": {
        "backbone": {"dim": 32, "context": 32, "hidden_dim": 384, "num_layers": 2},
        "training": {"crop_frames": 2048, "batch_size": 8, "learning_rate": 2e-3, "weight_decay": 0.01},
    },
    "wavenet": {
        "backbone": {},
        "training": {"crop_frames": 4096, "batch_size": 2, "learning_rate": 2e-3, "weight_decay": 0.01},
    },
    "gpt": {
        "backbone": {"dim": 128, "num_layers": 4, "num_heads": 4},
        "training": {"crop_frames": 512, "batch_size": 8, "learning_rate": 2e-3, "weight_decay": 0.1},
    },
}
FRAMES: dict[str, dict[str, Any]] = {
    "bigram": {
        "backbone": {"dim": 512},
        "training": {"crop_frames": 256, "batch_size": 16, "learning_rate": 3e-3, "weight_decay": 0.1},
    },
    "mlp": {
        "backbone": {"dim": 64, "context": 8, "hidden_dim": 512},
        "training": {"crop_frames": 256, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.1},
    },
    "wavenet": {
        "backbone": {"dim": 256, "residual_dim": 96, "num_layers": 10, "dilation_cycle": 5},
        "training": {"crop_frames": 256, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.1},
    },
    "gpt": {
        "backbone": {"dim": 192, "num_layers": 4, "num_heads": 4, "dropout": 0.1},
        "training": {"crop_frames": 256, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.1},
    },
}
#: Fewer codes than this the larger model knows by heart before it has learned what they have in common. On 16 unlike
#: clips of music, 22,500 codes, it was best after 13 steps, at 8.43 bits, worse than a blind guess, and this one after
#: 88, at 7.75. From 18 minutes of spoken digits, 66,000 codes, the larger one learns.
FEW_CODES = 50_000
OF_FEW: dict[str, dict[str, Any]] = {"gpt": {"dim": 96, "num_layers": 2, "dropout": 0.3}}
# Densities are sharp at the end, and the way there is long: many steps, of few crops each and at higher rates.
DENSITIES: dict[str, dict[str, Any]] = {
    "bigram": {**FRAMES["bigram"], "training": {**FRAMES["bigram"]["training"], "learning_rate": 1e-2}},
    "mlp": {
        "backbone": {"dim": 128, "context": 8, "hidden_dim": 512},
        "training": {**FRAMES["mlp"]["training"], "batch_size": 4, "learning_rate": 3e-3},
    },
    "wavenet": {
        "backbone": {**FRAMES["wavenet"]["backbone"], "residual_dim": 128},
        "training": {**FRAMES["wavenet"]["training"], "batch_size": 4, "learning_rate": 5e-3},
    },
    "gpt": {**FRAMES["gpt"], "training": {**FRAMES["gpt"]["training"], "learning_rate": 3e-3}},
}
# Codes that stand for one frame or more, each.
VARYING: dict[str, dict[str, Any]] = {**FRAMES, "bigram": {**FRAMES["bigram"], "backbone": {"dim": 1024}}}


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
    tables = {1: SAMPLES, None: VARYING}
    table = DENSITIES if spec.unit == "nats" else tables.get(spec.hop_length, FRAMES)
    chosen, few = table[backbone], OF_FEW.get(backbone, {}) if table is FRAMES and num_codes < FEW_CODES else {}
    values = override(
        {
            "frontend": frontend,
            "backbone": {"kind": backbone, **chosen["backbone"], **few},
            "pattern": {"kind": "delay" if spec.num_rows > 1 else "parallel"},
            "data": {},
            "training": {**chosen["training"], **(training or {})},
        },
        overrides,
    )
    length = from_dict(TrainingConfig, values["training"], "training").crop_frames
    if "window" in {field.name for field in dataclasses.fields(part.Config)}:
        # Half the crop: the other half teaches what it is like to have no beginning in sight.
        pattern = find(values["pattern"]["kind"], PATTERNS, "pattern.kind")(spec.num_rows)
        values["backbone"].setdefault("window", max(1, pattern.num_steps(length) // 2))
    return RunConfig.from_dict(values)


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
