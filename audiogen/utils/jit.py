"""Compile loops with numba. Import this module only where it is used: importing numba is slow."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import event
from numba.core.caching import FunctionCache

from .files import locked

log = logging.getLogger("audiogen")


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """Decorate a function to compile it on its first call and cache it on disk if possible.

    Args:
        **options: options of numba.njit, such as fastmath.
    """

    def compile_it(function: Callable) -> Callable:
        found: Any = numba.njit(nogil=True, **options)(function)
        with suppress(RuntimeError):  # numba finds no writable folder for its cache
            found._cache = _Cache(function)
        return found

    return compile_it


class _Cache(FunctionCache):
    """numba's cache of one function, to which one process at a time adds code.

    Two that add code for different types at the same time would give it the same place, and the code for one would
    later be run for the other.
    """

    def save_overload(self, sig: Any, data: Any) -> None:
        with locked(Path(self.cache_path) / "audiogen.lock"):
            super().save_overload(sig, data)


@contextmanager
def log_compilation(what: str) -> Iterator[None]:
    """Log one line before numba compiles; cached code loads silently."""
    with event.install_listener("numba:compile", _CompilationLogger(what)):
        yield


class _CompilationLogger(event.Listener):
    def __init__(self, what: str):
        self.what, self.silent = what, False

    def on_start(self, event: event.Event) -> None:
        if not self.silent:  # compiling a function also compiles those it calls
            log.info("compiling %s, which takes about 10 s; later runs use the cached code", self.what)
        self.silent = True

    def on_end(self, event: event.Event) -> None:
        pass
