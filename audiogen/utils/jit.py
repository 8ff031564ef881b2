"""numba's compiler, for the loops that no torch call does fast. Import it only where it is used: it takes a moment."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
from numba.core import event

log = logging.getLogger("audiogen")


def compiled(**options: bool) -> Callable[[Callable], Callable]:
    """A decorator: compiled where it is first called, and kept on disk if there is a place for it.

    Args:
        options: numba.njit's, such as fastmath.
    """

    def compile_it(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # numba finds no place for it
            return numba.njit(nogil=True, **options)(function)

    return compile_it


@contextmanager
def log_compilation(what: str) -> Iterator[None]:
    """Within, one line says so before numba begins to compile; what it finds on disk, it loads without a word."""
    with event.install_listener("numba:compile", _CompilationLogger(what)):
        yield


class _CompilationLogger(event.Listener):
    def __init__(self, what: str):
        self.what, self.silent = what, False

    def on_start(self, event: event.Event) -> None:
        if not self.silent:  # what it calls is compiled within
            log.info("compiling %s, which takes about 10 s; the next time it is there", self.what)
        self.silent = True

    def on_end(self, event: event.Event) -> None:
        pass
