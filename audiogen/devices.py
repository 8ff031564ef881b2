"""Which device "auto" is."""

import re

import torch

from .errors import ConfigError


def choose_device(name: str) -> torch.device:
    """"auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1" -> the device.

    Raises:
        ConfigError: an unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"--device: {name!r} is unknown; choose auto, cpu or cuda")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device: there is no GPU {name!r} that CUDA can use here; choose auto or cpu")
    return device
