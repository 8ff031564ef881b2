"""Convert configs between frozen dataclasses, dicts and overrides such as "a.b=1".

A part (front-end, backbone) nests its `Config` in its class, and a registry maps each kind to its class. In JSON a part
is a dict of its fields with its kind first: `{"kind": "gpt", "dim": 384}`.
"""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ConfigError, nearest


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a dataclass to a dict of JSON values (tuples become lists)."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """Build the dataclass `cls` strictly: refuse unknown keys and values of another type.

    Args:
        cls: a dataclass.
        values: its fields by name; a missing field takes its default.
        where: dotted name of this dict, for messages.

    Raises:
        ConfigError: a key is unknown (the message suggests the nearest one), missing, or of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected settings by name, got {values!r}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise unknown_key(_dotted(where, key), [_dotted(where, name) for name in names])
    fields = {key: _checked(value, hints[key], _dotted(where, key)) for key, value in values.items()}
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.name not in fields
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{_dotted(where, missing[0])}: a value is needed; add it")
    return cls(**fields)


def part_to_dict(config: Any, registry: Mapping[str, type]) -> dict[str, Any]:
    """Convert the config of a part to a dict with its kind first.

    Raises:
        ConfigError: no class of the registry has this config.
    """
    for kind, part in registry.items():
        if part.Config is type(config):
            return {"kind": kind, **to_dict(config)}
    raise ConfigError(f"{type(config).__qualname__} belongs to none of {', '.join(registry)}")


def part_from_dict(values: Mapping[str, Any], registry: Mapping[str, type], where: str) -> Any:
    """Build the config of the part that `values["kind"]` names.

    Raises:
        ConfigError: the kind is missing or unknown, or a key or value is not valid for it.
    """
    if not isinstance(values, Mapping) or "kind" not in values:
        raise ConfigError(f'{where}: a "kind" is needed, one of {", ".join(registry)}')
    part = find(values["kind"], registry, where)
    return from_dict(part.Config, {key: value for key, value in values.items() if key != "kind"}, where)


def find(kind: Any, registry: Mapping[str, type], where: str) -> type:
    """Return the class registered as `kind`.

    Raises:
        ConfigError: there is none; the message suggests the nearest kind.
    """
    if not isinstance(kind, str) or kind not in registry:
        near = nearest(str(kind), registry)
        raise ConfigError(f"{where}: there is no {kind!r}{near}; choose one of {', '.join(registry)}")
    return registry[kind]


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Copy the nested dict `values` and apply assignments such as "backbone.dim=128".

    A value is parsed as JSON if possible (numbers, true, false, null, lists), otherwise taken as text. Only the path to
    a nested dict is checked here; `from_dict` checks the last key and the value.

    Raises:
        ConfigError: an assignment has no "=", its path does not exist, or it names a group of settings.
    """
    result = json.loads(json.dumps(dict(values)))
    for assignment in assignments:
        path, value = parse_override(assignment)
        place = result
        for depth, key in enumerate(path[:-1]):
            if not isinstance(place.get(key), dict):
                groups = [name for name, inner in place.items() if isinstance(inner, dict)]
                raise unknown_key(".".join(path), [".".join([*path[:depth], name]) for name in groups])
            place = place[key]
        if isinstance(place.get(path[-1]), dict):
            raise ConfigError(
                f"{'.'.join(path)}: is a group of settings; set one of them, such as "
                f"{'.'.join(path)}.{next(iter(place[path[-1]]), 'name')}=..."
            )
        place[path[-1]] = value
    return result


def parse_override(assignment: str) -> tuple[list[str], Any]:
    """Parse an assignment: "a.b=1" -> (["a", "b"], 1).

    Raises:
        ConfigError: it is not of the form name=value.
    """
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"{assignment!r}: settings are written as name=value, such as backbone.dim=128")
    try:
        return path, json.loads(text)
    except json.JSONDecodeError:
        return path, text.strip()


def unknown_key(key: str, valid: Iterable[str]) -> ConfigError:
    """Return the error for an unknown key; it suggests the nearest valid one."""
    valid = list(valid)
    return ConfigError(f"{key}: unknown setting{nearest(key, valid)}; valid are {', '.join(valid) or 'none'}")


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Check `value` against the type `hint`. Only int to float and list to tuple are converted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            if isinstance(choice, type) and dataclasses.is_dataclass(choice) and isinstance(value, Mapping):
                return from_dict(choice, value, where)
            try:
                return _checked(value, choice, where)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, tuple | list) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            return tuple(_checked(item, inner, where) for item, inner in zip(value, hints, strict=True))
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    elif hint is float:
        # Python's json reads NaN and infinity, but JSON has neither, so they could not be saved again.
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
    elif hint is types.NoneType:
        if value is None:
            return value
    elif type(value) is hint:
        return value
    wanted = " or ".join(map(_type_name, arguments)) if origin in (typing.Union, types.UnionType) else _type_name(hint)
    raise ConfigError(f"{where}: expected {wanted}, got {value!r}")


def _type_name(hint: Any) -> str:
    if hint is types.NoneType:
        return "null"
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
