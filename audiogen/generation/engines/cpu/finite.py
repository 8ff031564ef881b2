"""Whether float32 numbers are finite, told by their bits: under fastmath the compiler may assume that they are.

Where a kernel would turn NaN into a number (it rounds, clamps or takes the larger of two), it asks here first and
passes NaN on, so that a model that has run away shows in its logits, as it does in torch.

numba compiles this where it is first called and is imported here: import this module where it is used.
"""

import numpy as np
from numba import njit

NAN = np.float32(np.nan)
_EXPONENT = np.int32(0x7F800000)


@njit(nogil=True)
def all_finite(x):
    """Whether none of (N,) float32, side by side in memory, is infinite or NaN."""
    bits, largest = x.view(np.int32), np.int32(0)
    for i in range(len(bits)):
        largest = max(largest, bits[i] & _EXPONENT)
    return largest < _EXPONENT
