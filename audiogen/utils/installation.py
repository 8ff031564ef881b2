"""Check that the installed packages fit together."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

from ..errors import AudiogenError

#: The versions that are tested together, as pinned in pyproject.toml.
TORCH_PAIR = {"torch": "2.11.0", "torchaudio": "2.11.0"}


def load_torchaudio() -> ModuleType:
    """Import torchaudio.

    Call this where torchaudio is used instead of importing it at the top of a module. Only codec and vocoder training
    and resampling on a GPU need it; everything else works even if torchaudio does not fit torch.

    Raises:
        AudiogenError: torchaudio is missing, or fails to load with the installed torch.
    """
    try:
        return importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError) as error:
        versions = {"torch": torch.__version__, "torchaudio": package_version("torchaudio")}
        pair = " ".join(f"{name}=={pinned}" for name, pinned in TORCH_PAIR.items())
        if not versions["torchaudio"]:
            raise AudiogenError(f"torchaudio is not installed; type: pip install {pair}") from error
        # pip keeps an installed package of the same version, even if it was built for another device.
        same = all(versions[name].split("+")[0] == pinned for name, pinned in TORCH_PAIR.items())
        raise AudiogenError(
            f"torchaudio {versions['torchaudio']} does not fit torch {versions['torch']} "
            f"({' '.join(str(error).split())[:200]}); "
            f"type: pip install {'--force-reinstall ' * same}{pair}"
        ) from error


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
