"""index.json of an encoded cache: the position of each file in data.bin, and checksums of both."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import from_dict
from ..errors import CacheError, ConfigError
from ..spec import CODE_TYPES, FRAME_TYPE, Spec
from ..utils.files import atomic_write_json, sha256_file
from ..utils.json_files import LISTS, read_format
from .index import FileEntry, Rejected

FORMAT = 1
INDEX_FILE, DATA_FILE = "index.json", "data.bin"
FRONTEND_FILES = ("config.json", "frontend.safetensors")
DESCRIPTORS_FOLDER = "descriptors"  # see descriptors.py
REMEDY = "remove it and encode again"
#: Frames of data.bin checked at a time.
BLOCK = 2**20


def is_cache(folder: str | Path) -> bool:
    """Return whether a folder is an encoded cache (complete or damaged) rather than a folder of sound files."""
    return all(os.path.isfile(Path(folder, name)) for name in (DATA_FILE, *FRONTEND_FILES))


@dataclass(frozen=True)
class CachedFile:
    """A sound file in the cache.

    Attributes:
        entry: the sound file, its path relative to the folder that was encoded.
        num_samples: length at the front-end's sample rate, to which decoding trims.
        num_frames: T.
    """

    entry: FileEntry
    num_samples: int
    num_frames: int

    @property
    def path(self) -> str:
        """Path relative to the folder that was encoded."""
        return self.entry.path

    @property
    def sha256(self) -> str:
        """SHA-256 of the sound file."""
        return self.entry.sha256


@dataclass(frozen=True)
class Record:
    """The contents of index.json.

    Attributes:
        fingerprint: fingerprint of the front-end.
        dtype: numpy dtype of data.bin.
        shape: (total frames, C) of data.bin.
        data_sha256: SHA-256 of data.bin.
        files: files in the order of data.bin.
        rejected, ignored: as in Index.
    """

    fingerprint: str
    dtype: str
    shape: Sequence[int]
    data_sha256: str
    files: list[CachedFile]
    rejected: list[Rejected]
    ignored: int

    @cached_property
    def offsets(self) -> np.ndarray:
        """Positions (files + 1,) int64: file i is data[offsets[i]:offsets[i + 1]]."""
        return np.cumsum([0, *(file.num_frames for file in self.files)])

    def write(self, folder: Path) -> None:
        """Write index.json atomically."""
        values = asdict(self)
        atomic_write_json(folder / INDEX_FILE, {"format": FORMAT, **values, "checksum": _checksum(values)})


def read_record(folder: Path, verify: bool = True) -> Record:
    """Read and check index.json, and check data.bin against it: all of it if `verify`, else its size.

    Raises:
        CacheError: missing, incomplete, damaged or of a newer format.
    """
    try:
        values = read_format(folder / INDEX_FILE, FORMAT, CacheError, REMEDY, LISTS)
    except FileNotFoundError:
        state = "is half-written" if (folder / DATA_FILE).is_file() else "holds no encoded cache"
        raise CacheError(
            f"{folder}: {state}: it has no {INDEX_FILE}; encode a folder into it with audiogen tokenize"
        ) from None
    values.pop("format")
    if values.pop("checksum", None) != _checksum(values):
        raise damaged(folder, f"{INDEX_FILE} does not match its checksum")
    try:
        record = _from_json(values)
        size, wanted = (folder / DATA_FILE).stat().st_size, _check(record)
        if size != wanted:
            raise ValueError(f"{DATA_FILE} has {size} bytes instead of {wanted}")
        if verify and sha256_file(folder / DATA_FILE) != record.data_sha256:
            raise ValueError(f"{DATA_FILE} does not match its checksum")
    except OSError as error:
        raise damaged(folder, f"{DATA_FILE}: {error.strerror}") from error
    except (TypeError, ValueError, LookupError, ConfigError) as error:
        raise damaged(folder, f"{INDEX_FILE} is inconsistent: {error}") from error
    return record


def damaged(folder: Path, what: str) -> CacheError:
    """Return the CacheError of a damaged cache; `what` says what is wrong."""
    return CacheError(f"{folder}: is damaged ({' '.join(what.split())[:200]}); {REMEDY}")


def check_data(data: np.ndarray, spec: Spec) -> None:
    """Check stored data (total frames, C) against the spec of the front-end that made it.

    Raises:
        ValueError: the dtype or number of rows differs, a code is out of range, or a value is not finite.
    """
    codes, rows, codebook_size = spec.discrete, spec.num_channels, spec.num_choices // spec.num_rows
    if data.dtype.str.replace("|", "<") != spec.storage_dtype or data.shape[1] != rows:
        raise ValueError(f"{DATA_FILE} holds {data.shape[1]} rows of {data.dtype}, its front-end makes {rows}")
    if codes and codebook_size > np.iinfo(data.dtype).max:
        return  # every value is a code
    for first in range(0, len(data), BLOCK):
        block = data[first : first + BLOCK]
        if block.max() >= codebook_size if codes else not np.isfinite(block).all():
            raise ValueError(f"{DATA_FILE} holds {'a code that the front-end does not have' if codes else 'NaN'}")


def _from_json(values: dict[str, Any]) -> Record:
    return Record(
        **{
            **values,
            "files": [from_dict(CachedFile, row, "files") for row in values["files"]],
            "rejected": [from_dict(Rejected, row, "rejected") for row in values["rejected"]],
        }
    )


def _check(record: Record) -> int:
    """Check a record and return the size of its data.bin in bytes.

    Raises:
        ValueError, TypeError: a value is impossible or has the wrong type.
    """
    texts, numbers = (record.fingerprint, record.dtype, record.data_sha256), (*record.shape, record.ignored)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a value has the wrong type")
    paths = [file.path for file in record.files]
    for file in record.files:
        # Decoding writes below a folder that the user chooses; no path may lead out of it.
        path = Path(file.path)
        if path.anchor or ".." in path.parts or not path.name or "\0" in file.path:
            raise ValueError(f"the path {file.path!r} leads out of the folder")
        os.fsencode(path)  # raises ValueError if no file can have this name
        if min(file.num_frames, file.num_samples, file.entry.sample_rate, file.entry.num_samples) < 1:
            raise ValueError(f"{file.path!r} has no length or sample rate")
    if len(set(paths)) < len(paths):
        raise ValueError("two files have the same path")
    num_frames, num_rows = record.shape
    if record.dtype not in (*CODE_TYPES.values(), FRAME_TYPE) or num_frames != sum(f.num_frames for f in record.files):
        raise ValueError(f"{record.dtype} of {record.shape}")
    if num_rows < 1 or not record.files:
        raise ValueError("it is empty")
    return num_frames * num_rows * np.dtype(record.dtype).itemsize


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
