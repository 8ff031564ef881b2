"""What commands take where nothing is named, and the parsing of --set."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..config import parse_override
from ..errors import ConfigError
from ..utils.devices import bf16_pays

#: What `audiogen train FOLDER --out RUN` takes where nothing is named; tests/bench/defaults.py compares it with others.
FRONTEND, BACKBONE = "mel", "gpt"


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
