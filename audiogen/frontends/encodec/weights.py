"""The file with EnCodec's published weights: found, fetched, checked, and kept as safetensors."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DownloadError
from ...utils.download import cache_folder, fetch
from ...utils.files import sha256_file
from ...utils.tensors import read_tensors, write_tensors

# As in encodec/model.py: ROOT_URL, and the name in encodec_model_24khz, which ends with the first digits of the
# file's SHA-256 (the convention of torch.hub, https://docs.pytorch.org/docs/stable/hub.html).
ROOT_URL = "https://dl.fbaipublicfiles.com/encodec/v0/"
CHECKPOINT = "encodec_24khz-d7cc33bc.th"
MAX_BYTES = 200 * 2**20  # the file has about 93 MB


def load_weights(weights: str) -> tuple[Path, dict[str, Tensor]]:
    """The state dict of the package's model on the CPU, and the file that it is from.

    Args:
        weights: "download", or the path of a .th (checked against the published checksum) or of a .safetensors.
            The first two leave a .safetensors in the cache folder, which "download" finds from then on.

    Raises:
        DownloadError: it can't be fetched or read, or is not the published file.
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
                f"or get that file some other way and give its path: frontend.weights=/path/to/{CHECKPOINT}",
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
    """The digits of the file's SHA-256 that its name states."""
    return Path(CHECKPOINT).stem.rpartition("-")[2]


def kept_weights() -> Path:
    return cache_folder() / Path(CHECKPOINT).with_suffix(".safetensors")


def keep(state: dict[str, Tensor]) -> None:
    write_tensors(kept_weights(), state, source=CHECKPOINT)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Reads a .th without running any code that it may hold (weights_only)."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DownloadError(f"{path}: holds more than weights, or is damaged ({reason}); get it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DownloadError(f"{path}: holds no state dict; get it again from {ROOT_URL}{CHECKPOINT}")
    return {name: tensor.contiguous() for name, tensor in state.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    return read_tensors(path, DownloadError, "delete it and run this again", with_sum=False)[0]
