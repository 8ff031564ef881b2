"""index.json of an encoded cache: what lies where in data.bin, and the sums that both are checked against."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError
from ..utils.files import atomic_write_json, sha256_file
from .index import FileEntry, Rejected

FORMAT = 1
INDEX_FILE, DATA_FILE = "index.json", "data.bin"
#: How codes are stored, by how many codes each type can hold; frames are float32.
CODE_TYPES, FRAME_TYPE = {2**8: "<u1", 2**16: "<u2", 2**32: "<u4"}, "<f4"


@dataclass(frozen=True)
class CachedFile:
    """A sound file in the cache.

    Attributes:
        entry: the sound file, its path relative to the folder that was encoded.
        num_samples: its length at the front-end's sample rate, which decoding trims to.
        num_frames: T.
    """

    entry: FileEntry
    num_samples: int
    num_frames: int

    @property
    def path(self) -> str:
        return self.entry.path

    @property
    def sha256(self) -> str:
        return self.entry.sha256


@dataclass(frozen=True)
class Record:
    """All of index.json.

    Attributes:
        fingerprint: of the front-end.
        dtype, shape: of data.bin as numpy writes them; (total frames, C).
        data_sha256: of data.bin.
        files: in the order in which they lie in data.bin.
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
        """(files + 1,) int64: file i is data[offsets[i]:offsets[i + 1]]."""
        return np.cumsum([0, *(file.num_frames for file in self.files)])

    def write(self, folder: Path) -> None:
        values = asdict(self)
        atomic_write_json(folder / INDEX_FILE, {"format": FORMAT, **values, "checksum": _checksum(values)})


def read_record(folder: Path) -> Record:
    """Reads index.json and checks it, and data.bin against it.

    Raises:
        CacheError: not there, half-written, damaged or of a newer format.
    """
    if not (folder / INDEX_FILE).is_file():
        state = "is half-written" if (folder / DATA_FILE).is_file() else "holds no encoded cache"
        raise CacheError(f"{folder}: {state}, it has no {INDEX_FILE}; encode a folder into it with audiogen tokenize")
    try:
        values = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        version, checksum = values.pop("format"), values.pop("checksum")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(folder, f"{INDEX_FILE} can't be read: {error}") from error
    if not isinstance(version, int) or version > FORMAT:
        raise CacheError(f"{folder}: is of format {version}, this version reads up to {FORMAT}; update audiogen")
    if _checksum(values) != checksum:
        raise damaged(folder, f"{INDEX_FILE} does not match its checksum")
    try:
        record = _from_json(values)
        wanted = _check(record)
    except (TypeError, ValueError, LookupError) as error:
        raise damaged(folder, f"{INDEX_FILE} does not add up: {error}") from error
    try:
        size = (folder / DATA_FILE).stat().st_size
        if size != wanted:
            raise damaged(folder, f"{DATA_FILE} has {size} bytes instead of {wanted}")
        if sha256_file(folder / DATA_FILE) != record.data_sha256:
            raise damaged(folder, f"{DATA_FILE} does not match its checksum")
    except OSError as error:
        raise damaged(folder, f"{DATA_FILE}: {error.strerror}") from error
    return record


def damaged(folder: Path, what: str) -> CacheError:
    return CacheError(f"{folder}: is damaged ({what}); remove it and encode again")


def _from_json(values: dict[str, Any]) -> Record:
    files = [CachedFile(FileEntry(**row["entry"]), row["num_samples"], row["num_frames"]) for row in values["files"]]
    return Record(**{**values, "files": files, "rejected": [Rejected(**row) for row in values["rejected"]]})


def _check(record: Record) -> int:
    """How many bytes data.bin must have. Raises ValueError or TypeError where it can't be so."""
    for file in record.files:
        # Decoding writes below a folder of the user's choice, and must not be led out of it.
        path = Path(file.path)
        if path.anchor or ".." in path.parts or not path.name:
            raise ValueError(f"the path {file.path!r} leads elsewhere")
        if not (
            isinstance(file.num_frames, int)
            and isinstance(file.num_samples, int)
            and file.num_frames > 0
            and file.num_samples > 0
        ):
            raise ValueError(f"{file.path} has {file.num_frames!r} frames of {file.num_samples!r} samples")
    num_frames, num_rows = record.shape
    if record.dtype not in (*CODE_TYPES.values(), FRAME_TYPE) or num_frames != record.offsets[-1]:
        raise ValueError(f"{record.dtype} of {record.shape}")
    return num_frames * num_rows * np.dtype(record.dtype).itemsize


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
