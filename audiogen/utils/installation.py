"""What has to fit together for audiogen to run."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

from ..errors import AudiogenError

#: The versions that are tested together, as pinned in pyproject.toml.
TORCH_PAIR = {"torch": "2.11.0", "torchaudio": "2.11.0"}


def load_torchaudio() -> ModuleType:
    """Import torchaudio.

    Call this where torchaudio is used instead of importing it at the top of a module: only the training of codecs and
    vocoders and resampling on a GPU need it, and a torchaudio that does not fit torch leaves all the rest usable.

    Raises:
        AudiogenError: torchaudio is missing, or it cannot be loaded beside the installed torch.
    """
    try:
        return importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError) as error:
        versions = {"torch": torch.__version__, "torchaudio": package_version("torchaudio")}
        pair = " ".join(f"{name}=={pinned}" for name, pinned in TORCH_PAIR.items())
        if not versions["torchaudio"]:
            raise AudiogenError(f"torchaudio is not installed; type: pip install {pair}") from error
        # pip leaves the same version alone, even one built for another device.
        same = all(versions[name].split("+")[0] == pinned for name, pinned in TORCH_PAIR.items())
        raise AudiogenError(
            f"torchaudio {versions['torchaudio']} does not fit torch {versions['torch']} "
            f"({' '.join(str(error).split())[:200]}); "
            f"type: pip install {'--force-reinstall ' * same}{pair}"
        ) from error


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
