"""Parse what was typed on the command line, without loading torch."""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import find, parse_override
from ..errors import ConfigError
from ..runs.training_config import TrainingConfig
from ..utils.devices import check_device

#: Maximum number of files per command; more must be a typo.
MAX_FILES = 1_000_000


def registered(package: str, registry: str) -> list[str]:
    """Return the names in a registry. They are read from its source, since importing its parts would load torch.

    Args:
        package: the package of audiogen whose __init__.py holds the registry, such as "frontends".
        registry: the name of the dict, such as "FRONTENDS".
    """
    source = Path(__file__).parents[1].joinpath(package, "__init__.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == registry:
            assert isinstance(statement.value, ast.Dict)
            return [str(ast.literal_eval(key)) for key in statement.value.keys if key is not None]
    raise LookupError(f"audiogen/{package}/__init__.py has no {registry}")


def parse_device(name: str) -> str:
    """Return the name of a device.

    Raises:
        ConfigError: there is no such name.
    """
    check_device(name)
    return name


def parse_frontend(name: str | None) -> str | None:
    """Return the name of a front-end, or the path of a folder that holds one.

    Raises:
        ConfigError: it is a single word that is neither; suggests the nearest name.
    """
    if name is not None and name == Path(name).name and not Path(name).exists():
        find(name, dict.fromkeys(registered("frontends", "FRONTENDS"), object), "frontend")
    return name


def split_names(text: str) -> list[str]:
    """Return the names of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_stages(names: str | None) -> list[str] | None:
    """Return the front-ends of --stages: names, or paths of folders that hold one.

    Raises:
        ConfigError: there is only one, or one is a single word that is neither; suggests the nearest name.
    """
    if names is None:
        return None
    stages = split_names(names)
    for name in stages:
        parse_frontend(name)
    if len(stages) < 2:
        raise ConfigError("--stages: give two front-ends or more, such as semantic,mel; for a single one: --frontend")
    return stages


def parse_backbone(name: str | None) -> str | None:
    """Return the name of a backbone.

    Raises:
        ConfigError: there is no such backbone; suggests the nearest name.
    """
    if name is not None:
        find(name, dict.fromkeys(registered("models/backbones", "BACKBONES"), object), "backbone.kind")
    return name


def parse_settings(assignments: list[str] | None) -> list[str]:
    """Return "a.b=1" assignments. Their names are checked where the parts are known.

    Raises:
        ConfigError: one is not of this form.
    """
    for assignment in assignments or []:
        parse_override(assignment)
    return assignments or []


def parse_start(name: str | None) -> str | None:
    """Return the value of --from.

    Raises:
        ConfigError: it is neither base nor scratch.
    """
    if name not in (None, "base", "scratch"):
        raise ConfigError(f"--from: must be base or scratch, got {name!r}")
    return name


def parse_budget(steps: int | None, minutes: float | None, seed: int | None) -> dict[str, Any]:
    """Return the fields of TrainingConfig that --steps, --minutes and --seed set; none for what was not typed.

    Raises:
        ConfigError: a value is out of range, or both --steps and --minutes were typed.
    """
    if steps is not None and minutes is not None:
        raise ConfigError("--steps and --minutes: give one of them, not both")
    typed: dict[str, Any] = {} if steps is minutes is None else {"steps": steps, "minutes": minutes}
    if seed is not None:
        typed["seed"] = seed
    TrainingConfig(**typed)
    return typed


def parse_labels(assignments: Iterable[str]) -> dict[str, str | None]:
    """Parse the values of --label: "digit=7" becomes {"digit": "7"}, and "digit=" means "not given".

    Raises:
        ConfigError: an assignment is not of this form, or a name is given twice.
    """
    found: dict[str, str | None] = {}
    for assignment in assignments:
        name, equals, value = (text.strip() for text in assignment.partition("="))
        if not name or not equals:
            raise ConfigError(f"--label: {assignment!r} must be of the form NAME=VALUE, such as digit=7")
        if name in found:
            raise ConfigError(f"--label: {name} is given twice")
        found[name] = value or None
    return found


def parse_seconds(text: str) -> float | None:
    """Parse the value of --seconds: a number, or "auto", which becomes None.

    Raises:
        ConfigError: it is neither.
    """
    if text.strip().lower() == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--seconds: must be a number, or auto, got {text!r}") from None


def seeds_of_files(num: int, seed: int | None) -> range:
    """Return one seed per file.

    Raises:
        ConfigError: there are too many files, or a seed is out of range.
    """
    from ..generation.request import choose_seeds  # loads numpy

    if num > MAX_FILES:
        raise ConfigError(f"num: must be {MAX_FILES:,} or less, got {num:,}")
    return choose_seeds(num, seed)


def in_brackets(asked: Mapping[str, str]) -> str:
    """Format the labels of an item to follow its name: "  (digit 7, speaker jackson)"."""
    return f"  ({', '.join(f'{name} {value}' for name, value in asked.items())})" if asked else ""
