"""numba's compiler, for the loops that no torch call does fast. Import it only where it is used: it takes a moment."""

from collections.abc import Callable

import numba


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
