"""Which device "auto" is, and what it is good at."""

import re

import torch

from ..errors import ConfigError


def choose_device(name: str) -> torch.device:
    """ "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1" -> the device.

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


def bf16_pays(device: torch.device) -> bool:
    """Whether it multiplies bfloat16 in hardware: then a training step takes 0.4 to 0.7 of the time on a CPU
    (tests/bench/precision.py)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # older ones emulate it
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
