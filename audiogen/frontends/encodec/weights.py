"""Download and check EnCodec's published weights, and keep them as safetensors."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DownloadError
from ...utils.download import cache_folder, fetch
from ...utils.files import sha256_file
from ...utils.tensors import read_tensors, write_tensors

# From encodec/model.py: ROOT_URL, and the file name in encodec_model_24khz. It ends with the first digits of the file's
# SHA-256, as torch.hub's convention is (https://docs.pytorch.org/docs/stable/hub.html).
ROOT_URL = "https://dl.fbaipublicfiles.com/encodec/v0/"
CHECKPOINT = "encodec_24khz-d7cc33bc.th"
MAX_BYTES = 200 * 2**20  # the file is about 93 MB


def load_weights(weights: str) -> tuple[Path, dict[str, Tensor]]:
    """Load the state dict of the package's model to the CPU; return the path it came from and the tensors.

    Args:
        weights: "download", or the path of a .th (checked against the published checksum) or of a .safetensors.
            The first two leave a .safetensors in the cache folder, which "download" uses from then on.

    Raises:
        DownloadError: it can't be downloaded or read, or is not the published file.
    """
    if weights == "download":
        kept = kept_weights()
        if not kept.exists():
            path = cache_folder() / CHECKPOINT
            fetch(
                ROOT_URL + CHECKPOINT,
                path,
                published_digits(),
                MAX_BYTES,
                f"or get that file in another way and give its path: frontend.weights=/path/to/{CHECKPOINT}",
            )
            keep(read_checkpoint(path))
            path.unlink()
        return kept, read_safetensors(kept)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise DownloadError(f'{path}: there is no such file; give the path of {CHECKPOINT}, or weights="download"')
    if path.suffix == ".safetensors":
        return path, read_safetensors(path)
    digest = sha256_file(path)
    if not digest.startswith(published_digits()):
        raise DownloadError(
            f"{path}: its SHA-256 is {digest}, but the published file's begins with "
            f"{published_digits()}; get it again from {ROOT_URL}{CHECKPOINT}"
        )
    state = read_checkpoint(path)
    keep(state)
    return path, state


def published_digits() -> str:
    """Return the first digits of the file's SHA-256, from its name."""
    return Path(CHECKPOINT).stem.rpartition("-")[2]


def kept_weights() -> Path:
    """Return the path of the converted weights in the cache folder."""
    return cache_folder() / Path(CHECKPOINT).with_suffix(".safetensors")


def keep(state: dict[str, Tensor]) -> None:
    """Save the weights in the cache folder."""
    write_tensors(kept_weights(), state, source=CHECKPOINT)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a .th without running code from it (weights_only).

    Raises:
        DownloadError: it is damaged or contains anything but tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DownloadError(f"{path}: contains more than weights, or is damaged ({reason}); get it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DownloadError(f"{path}: contains no state dict; get it again from {ROOT_URL}{CHECKPOINT}")
    return {name: tensor.contiguous() for name, tensor in state.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors with or without our checksum."""
    return read_tensors(path, DownloadError, "delete it and run this again", with_sum=False)[0]
