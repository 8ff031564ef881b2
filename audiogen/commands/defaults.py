"""Defaults of commands, and the parsing of --set."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..config import parse_override
from ..errors import ConfigError
from ..utils.devices import bf16_pays

if TYPE_CHECKING:
    import torch

#: Default parts of `audiogen train FOLDER --out RUN`; tests/bench/defaults.py compares them with others.
FRONTEND, BACKBONE = "mel", "gpt"


def frontend_settings(overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Split "a.b=1" assignments into the front-end's settings and the remaining assignments.

    Example:
        >>> frontend_settings(["frontend.sample_rate=8000", "training.steps=5"])
        ({'sample_rate': 8000}, ['training.steps=5'])
    """
    settings, rest = {}, []
    for assignment in overrides:
        if assignment.strip().startswith("frontend."):
            (_, *groups, name), value = parse_override(assignment)
            place = settings
            for group in groups:  # a wrapped front-end, given as a name or as settings
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
    """Refuse settings in commands that do not train a model.

    Args:
        assignments: "a.b=1" assignments.
        taken: names of settings that the command uses.

    Raises:
        ConfigError: a setting would be ignored; names it.
    """
    for assignment in assignments:
        name = ".".join(parse_override(assignment)[0])
        if name not in taken:
            raise ConfigError(
                f"{name}: nothing is trained here, so it would be ignored; leave it out, or use it with train"
            )


def resolve_precision(precision: str, device: "torch.device") -> str:
    """Resolve "auto" for a device: "bf16" where it is known to be faster, else "fp32"."""
    if precision != "auto":
        return precision
    return "bf16" if bf16_pays(device) else "fp32"
