"""bf16 in compiled code: the upper half of a float32, held as uint16, for which numba has no type of its own.

numba compiles this where it is first called and is imported here: import this module where it is used.
"""

import numpy as np
from numba import types
from numba.extending import overload, register_jitable


def widen(x):
    """A number out of an array of float32 or of bf16, as float32; in compiled code only."""
    raise NotImplementedError


def narrow(x, array):
    """float32 as the array holds it, bf16 rounded to the nearest, of two the even one; in compiled code only."""
    raise NotImplementedError


@overload(widen)
def _widen(x):
    return _widened if x == types.uint16 else _same


@overload(narrow)
def _narrow(x, array):
    return (lambda x, array: _rounded(x)) if array.dtype == types.uint16 else (lambda x, array: x)


def _same(x):
    return x


def _widened(x):
    return np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


@register_jitable
def _rounded(x):
    word = np.float32(x).view(np.uint32)
    return np.uint16((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
