"""Frozen dataclasses <-> dicts <-> "a.b=1". Knows nothing of audio.

A part (front-end, backbone) nests its `Config` beside its class; a registry maps a kind to the class. As JSON a
part is its fields with its kind in front: `{"kind": "gpt", "dim": 384}`.
"""

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ConfigError


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as a dict of JSON values (tuples become lists)."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """Builds the dataclass `cls` strictly: unknown keys and values of another type are refused.

    Args:
        cls: a dataclass.
        values: its fields; those left out take their defaults.
        where: dotted name of this dict, for messages.

    Raises:
        ConfigError: names the key, and the nearest valid one if it is unknown.
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
    """The config of a part as a dict with its kind in front."""
    for kind, part in registry.items():
        if part.Config is type(config):
            return {"kind": kind, **to_dict(config)}
    raise ConfigError(f"{type(config).__qualname__} belongs to none of {', '.join(registry)}")


def part_from_dict(values: Mapping[str, Any], registry: Mapping[str, type], where: str) -> Any:
    """The config of the part that `values["kind"]` names.

    Raises:
        ConfigError: the kind is missing or unknown, or a key does not fit it.
    """
    if not isinstance(values, Mapping) or "kind" not in values:
        raise ConfigError(f'{where}: a "kind" is needed, one of {", ".join(registry)}')
    part = find(values["kind"], registry, where)
    return from_dict(part.Config, {key: value for key, value in values.items() if key != "kind"}, where)


def find(kind: Any, registry: Mapping[str, type], where: str) -> type:
    """The class registered as `kind`, or a ConfigError that names the nearest one."""
    if not isinstance(kind, str) or kind not in registry:
        near = _nearest(str(kind), registry)
        raise ConfigError(f"{where}: there is no {kind!r}{near}; choose one of {', '.join(registry)}")
    return registry[kind]


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of the nested dict `values` with assignments such as "backbone.dim=128" laid over it.

    Values are read as JSON where they are JSON (numbers, true, false, null, lists), else as text. That keys are
    known is checked by `from_dict`, which sees the whole; only the path to a nested dict is checked here.
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
    """ "a.b=1" -> (["a", "b"], 1)."""
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"{assignment!r}: settings are written as name=value, such as backbone.dim=128")
    try:
        return path, json.loads(text)
    except json.JSONDecodeError:
        return path, text.strip()


def unknown_key(key: str, valid: Iterable[str]) -> ConfigError:
    valid = list(valid)
    return ConfigError(f"{key}: unknown setting{_nearest(key, valid)}; valid are {', '.join(valid) or 'none'}")


def _nearest(name: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.4)
    return f", did you mean {close[0]}?" if close else ""


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`: int is taken for float, a list for a tuple, nothing else is bent."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            if dataclasses.is_dataclass(choice) and isinstance(value, Mapping):
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
    elif dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    elif hint is float:
        # JSON has no NaN and no infinity, though Python reads them: they could not be saved again.
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
