"""Which device "auto" is."""

import torch

from .errors import ConfigError


def choose_device(name: str) -> torch.device:
    """"auto" (a GPU where there is one), "cpu" or "cuda" -> the device.

    Raises:
        ConfigError: an unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device: {name!r} is unknown; choose auto, cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("--device: no CUDA GPU can be used here; choose auto or cpu")
    return torch.device(name)
