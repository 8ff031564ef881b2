"""Choose a device, and ask what it does fast."""

import os
import re
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch


def check_device(name: str) -> None:
    """Raise a ConfigError unless a name is one that `choose_device` knows."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"--device: {name!r} is unknown; choose auto, cpu or cuda")


def choose_device(name: str) -> "torch.device":
    """Return the device of a name: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: the name is unknown, or the GPU does not exist.
    """
    check_device(name)
    import torch  # slow, and not needed to refuse a name

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device: there is no GPU {name!r} that CUDA can use here; choose auto or cpu")
    return device


def send(x: "torch.Tensor", device: "torch.device | str") -> "torch.Tensor":
    """Copy a tensor to a device without waiting for it.

    To a GPU through page-locked memory: a copy from other memory waits until all that the GPU was told before is done,
    even with non_blocking.
    """
    import torch

    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def bf16_pays(device: "torch.device") -> bool:
    """Return whether the device multiplies bfloat16 in hardware.

    On such a CPU a training step in bfloat16 takes 0.4 to 0.7 of the time (tests/bench/precision.py).
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # older GPUs emulate it
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    # Containers and schedulers may allow fewer cores than exist; not every system reports it.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
