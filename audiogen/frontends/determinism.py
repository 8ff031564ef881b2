"""Force full float32 arithmetic so that encoding is reproducible."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in full float32 within this context, whatever precision the program has set.

    TF32 (cuDNN's default for convolutions), "medium" matrix products and autocast keep only 8 to 11 bits of each
    number, which would change many codes.
    """
    backends: Any = torch.backends  # whose stubs lack most of these
    places = [
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
        backends.mkldnn.matmul,
    ]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
