"""Check by their bits whether float32 numbers are finite: with fastmath, the compiler may assume that they are.

A kernel that would turn NaN into a number (by rounding, clamping or taking a maximum) checks first and passes NaN on,
so that a model that has diverged shows in its logits, as in torch.

This module imports numba, which is slow: import it only where it is used.
"""

import numpy as np
from numba import njit

NAN = np.float32(np.nan)
_EXPONENT = np.int32(0x7F800000)


@njit(nogil=True)
def all_finite(x):
    """Return whether all of x (N,) float32, contiguous in memory, are finite."""
    bits, largest = x.view(np.int32), np.int32(0)
    for i in range(len(bits)):
        largest = max(largest, bits[i] & _EXPONENT)
    return largest < _EXPONENT
