"""bf16 in compiled code: the upper half of a float32, stored as uint16, since numba has no type for it.

This module imports numba, which is slow: import it only where it is used.
"""

import numpy as np
from numba import types
from numba.extending import overload, register_jitable


def widen(x):
    """Convert an element of a float32 or bf16 array to float32. Callable only from compiled code."""
    raise NotImplementedError


def narrow(x, array):
    """Convert a float32 to the array's dtype; bf16 rounds half to even. Callable only from compiled code."""
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
