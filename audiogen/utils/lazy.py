"""Import the names of a package when they are first used."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(namespace: dict[str, Any], homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package, which imports a name from its module when it is first used.

    Args:
        namespace: the package's `globals()`.
        homes: the module of each name, relative to the package.
    """
    package = namespace["__name__"]

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = getattr(importlib.import_module(f".{homes[name]}", package), name)
        return namespace[name]

    return get
