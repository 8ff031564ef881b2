"""Arithmetic that the same sound gives the same codes by."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Whole float32, whatever the rest of the program has asked for.

    TF32 (the default of cuDNN's convolutions), "medium" products and autocast keep 8 to 11 bits of each number, and
    would move a good part of the codes.
    """
    backends = torch.backends
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
