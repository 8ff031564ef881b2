"""Store tensors as safetensors with a checksum. Nothing is unpickled."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import AudiogenError
from .files import atomic_write_bytes, open_regular
from .json_files import damaged, parse_json

#: The one metadata key that holds everything as JSON. safetensors writes several keys in arbitrary order, so that equal
#: weights would give different files.
ABOUT = "audiogen"
#: Metadata keys of the checksum in older versions.
OLD_SUMS = ("sha256", "sha256_of_tensors")


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 in hexadecimal of all names, dtypes, shapes and bytes, whatever the device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], **about: Any) -> None:
    """Write `tensor_bytes` to a file, whole or not at all.

    Raises:
        AudiogenError: the disk is full or the file can't be written; names the path and the bytes.
    """
    atomic_write_bytes(path, tensor_bytes(tensors, **about))


def tensor_bytes(tensors: Mapping[str, Tensor], **about: Any) -> bytes:
    """Return a safetensors file with a checksum and metadata.

    safetensors' own writer leaves temporary files behind when killed, and raises its own kind of error.

    Args:
        tensors: tensors by name, on any device.
        **about: metadata, as JSON values.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = json.dumps({"format": 1, **about, "sha256": hash_tensors(plain)}, allow_nan=False)
    return safetensors.torch.save(plain, {ABOUT: metadata})


def read_tensors(
    path: str | Path,
    kind: type[AudiogenError],
    remedy: str,
    like: Mapping[str, Tensor] | None = None,
    absent: Mapping[str, Tensor] = MappingProxyType({}),
    with_sum: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors to the CPU, and the metadata given to `write_tensors`.

    Args:
        path: path of the file.
        kind: exception type to raise.
        remedy: what the user can do about a damaged file; ends the message.
        like: tensors with the expected names and shapes; compared before any memory is allocated.
        absent: tensors that older files may lack, filled in where they are missing.
        with_sum: refuse a file without a checksum.

    Raises:
        kind: missing, not a regular file, damaged, with NaN or infinity, or with other names or shapes; one line.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            about = parse_json(metadata.get(ABOUT, "{}").encode())
            there = {name: file.get_slice(name).get_shape() for name in file.keys()}
            filled = {name: x for name, x in absent.items() if name not in there}
            if like is not None:
                _compare({name: list(x.shape) for name, x in like.items() if name not in filled}, there)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if not isinstance(about, dict):
            raise ValueError("its metadata is not a JSON object")
        wanted = next((sum_ for sum_ in (about.get("sha256"), *map(metadata.get, OLD_SUMS)) if sum_ is not None), None)
        if wanted is None and with_sum:
            raise ValueError("it has no checksum")
        if wanted is not None and wanted != hash_tensors(tensors):
            raise ValueError("its content does not match its checksum")
        if not all(bool(x.isfinite().all()) for x in tensors.values()):
            raise ValueError("it holds NaN or infinity")
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise damaged(path, error, kind, remedy) from error
    return {**tensors, **filled}, about


def _compare(wanted: Mapping[str, list[int]], there: Mapping[str, list[int]]) -> None:
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            raise ValueError(f"{name} is {there.get(name, 'missing')}, not {wanted.get(name, 'known')}")
