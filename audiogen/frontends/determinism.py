"""Force full float32 arithmetic so that encoding is reproducible."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.Lock()
_before: list[str] = []  # what the program has set, while a thread is inside
_inside = 0  # threads


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in full float32 within this context, whatever precision the program has set.

    TF32 (cuDNN's default for convolutions), "medium" matrix products and autocast keep only 8 to 11 bits of each
    number, which would change many codes. The settings are those of all threads: the first one changes them, and the
    last one to leave restores them.
    """
    global _before, _inside
    backends: Any = torch.backends  # whose stubs lack most of these
    places = [
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
        backends.mkldnn.matmul,
    ]
    with _lock:
        if _inside == 0:
            _before = [place.fp32_precision for place in places]
            for place in places:
                place.fp32_precision = "ieee"
        _inside += 1
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for place, precision in zip(places, _before, strict=True):
                    place.fp32_precision = precision
