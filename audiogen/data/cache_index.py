"""index.json of an encoded cache: the position of each file in data.bin, and checksums of both.

From `MANY_FILES` on (format 2), the files are not in index.json but in columns, and each block of data.bin is verified
when it is first read.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..config import from_dict
from ..errors import CacheError, ConfigError
from ..spec import CODE_TYPES, FRAME_TYPE, Spec
from ..utils.files import atomic_write_json, sha256_file
from ..utils.json_files import LISTS, read_format
from .columns import ROW, ROWS_FILE, TEXTS_FILE, Columns, Entries, Lazy, check_path, write_columns
from .index import FileEntry, Rejected

FORMAT, COLUMNS_FORMAT = 1, 2
#: A cache of this many files has format 2.
MANY_FILES = 10_000
INDEX_FILE, DATA_FILE = "index.json", "data.bin"
COLUMN_FILES = (ROWS_FILE, TEXTS_FILE)
FRONTEND_FILES = ("config.json", "frontend.safetensors")
DESCRIPTORS_FOLDER = "descriptors"  # see descriptors.py
REMEDY = "remove it and encode again"
#: Frames of data.bin checked at a time.
BLOCK = 2**20
#: Bytes of data.bin, or a little less, with a checksum of their own in format 2.
BLOCK_BYTES = 2**26


def is_cache(folder: str | Path) -> bool:
    """Return whether a folder is an encoded cache (complete or damaged) rather than a folder of sound files."""
    return all(os.path.isfile(Path(str(folder), name)) for name in (DATA_FILE, *FRONTEND_FILES))


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


class CachedFiles(Lazy[CachedFile]):
    """The files of columns."""

    def __init__(self, columns: Columns):
        self.columns, self.entries = columns, Entries(columns)

    def __len__(self) -> int:
        return len(self.columns.rows)

    def item(self, i: int) -> CachedFile:
        """Return file i."""
        row = self.columns.rows[i]
        return CachedFile(self.entries[i], int(row["num_samples"]), int(row["num_frames"]))


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
        blocks: SHA-256 of each block of data.bin (see `block_frames`); none in format 1.
    """

    fingerprint: str
    dtype: str
    shape: Sequence[int]
    data_sha256: str
    files: Sequence[CachedFile]
    rejected: list[Rejected]
    ignored: int
    blocks: Sequence[str] = ()

    @cached_property
    def entries(self) -> Sequence[FileEntry]:
        """The sound files."""
        return self.files.entries if isinstance(self.files, CachedFiles) else [file.entry for file in self.files]

    @cached_property
    def num_frames(self) -> np.ndarray:
        """Frames of each file (files,) int64."""
        if isinstance(self.files, CachedFiles):
            return self.files.columns.rows["num_frames"].astype(np.int64)
        return np.array([file.num_frames for file in self.files], np.int64)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Positions (files + 1,) int64: file i is data[offsets[i]:offsets[i + 1]]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.num_frames)])

    @property
    def block_frames(self) -> int:
        """Frames of each block of data.bin but the last."""
        return max(1, BLOCK_BYTES // (self.shape[1] * np.dtype(self.dtype).itemsize))

    def write(self, folder: Path) -> None:
        """Write index.json atomically, after columns if there are many files. data.bin must be there."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values["rejected"] = [asdict(file) for file in self.rejected]
        if len(self.files) < MANY_FILES:
            del values["blocks"]
            values["files"] = [asdict(file) for file in self.files]
            for name in COLUMN_FILES:
                (folder / name).unlink(missing_ok=True)
            version = FORMAT
        else:
            del values["files"]
            write_columns(folder, *_pack(self.files))
            values["columns"] = {name: sha256_file(folder / name) for name in COLUMN_FILES}
            values["blocks"] = _sum_blocks(folder / DATA_FILE, self)
            version = COLUMNS_FORMAT
        atomic_write_json(folder / INDEX_FILE, {"format": version, **values, "checksum": _checksum(values)})


class VerifiedData:
    """Frames (total frames, C) of a data.bin, memory-mapped; each block is verified when it is first read.

    Args:
        stored: the frames.
        record: what is known of them.
        spec: spec of the front-end that made them.
        folder: folder of the cache.
    """

    def __init__(self, stored: np.ndarray, record: Record, spec: Spec, folder: Path):
        self.stored, self.record, self.spec, self.folder = stored, record, spec, folder
        self.shape, self.dtype = stored.shape, stored.dtype
        self._verified = np.zeros(len(record.blocks), bool)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, frames: slice | np.ndarray) -> np.ndarray:
        """Return frames.

        Raises:
            CacheError: they have changed since they were written.
        """
        size = self.record.block_frames
        if isinstance(frames, slice):
            first, end, step = frames.indices(len(self.stored))
            blocks = range(first // size, -(-end // size)) if step > 0 and end > first else ()
        else:
            blocks = np.unique(np.asarray(frames) // size).tolist()
        for block in blocks:
            if not self._verified[block]:
                self._verify(block, self.stored[block * size : (block + 1) * size])
        return self.stored[frames]

    def _verify(self, block: int, frames: np.ndarray) -> None:
        try:
            if hashlib.sha256(frames.data).hexdigest() != self.record.blocks[block]:
                raise ValueError(f"{DATA_FILE} does not match its checksums")
            check_data(frames, self.spec)
        except ValueError as error:
            raise damaged(self.folder, str(error)) from error
        self._verified[block] = True


def read_record(folder: Path, verify: bool = True) -> Record:
    """Read and check index.json, and check data.bin against it: all of it if `verify`, else its size.

    In format 2, only the size of data.bin is checked; see `VerifiedData`.

    Raises:
        CacheError: missing, incomplete, damaged or of a newer format.
    """
    try:
        values = read_format(folder / INDEX_FILE, COLUMNS_FORMAT, CacheError, REMEDY, LISTS)
    except FileNotFoundError:
        state = "is half-written" if (folder / DATA_FILE).is_file() else "holds no encoded cache"
        raise CacheError(
            f"{folder}: {state}: it has no {INDEX_FILE}; encode a folder into it with audiogen tokenize"
        ) from None
    version = values.pop("format")
    if values.pop("checksum", None) != _checksum(values):
        raise damaged(folder, f"{INDEX_FILE} does not match its checksum")
    try:
        record = _from_json(values) if version == FORMAT else _with_columns(folder, values)
        size, wanted = (folder / DATA_FILE).stat().st_size, _check(record)
        if size != wanted:
            raise ValueError(f"{DATA_FILE} has {size} bytes instead of {wanted}")
        if verify and version == FORMAT and sha256_file(folder / DATA_FILE) != record.data_sha256:
            raise ValueError(f"{DATA_FILE} does not match its checksum")
    except OSError as error:
        raise damaged(folder, f"{Path(error.filename or DATA_FILE).name}: {error.strerror}") from error
    except (TypeError, ValueError, OverflowError, LookupError, ConfigError) as error:
        raise damaged(folder, f"{INDEX_FILE} is inconsistent: {error}") from error
    return record


def damaged(folder: Path, what: str) -> CacheError:
    """Return the CacheError of a damaged cache; `what` says what is wrong."""
    return CacheError(f"{folder}: is damaged ({' '.join(what.split())[:200]}); {REMEDY}")


def check_data(data: "np.ndarray | VerifiedData", spec: Spec) -> None:
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


def _with_columns(folder: Path, values: dict[str, Any]) -> Record:
    sums = values.pop("columns")
    for name in COLUMN_FILES:
        if sha256_file(folder / name) != sums[name]:
            raise ValueError(f"{name} does not match its checksum")
    rejected = [from_dict(Rejected, row, "rejected") for row in values.pop("rejected")]
    return Record(**values, rejected=rejected, files=CachedFiles(Columns(folder)))


def _pack(files: Sequence[CachedFile]) -> tuple[np.ndarray, bytes]:
    """Convert files to rows and texts; see columns.py."""
    rows, texts, end = np.zeros(len(files), ROW), [], 0
    for row, file in zip(rows, files, strict=True):
        entry = file.entry
        path, note = entry.path.encode("utf-8", "surrogateescape"), entry.note.encode()
        texts += [path, note]
        row["sha256"] = np.frombuffer(bytes.fromhex(entry.sha256), np.uint8)
        if entry.sound:
            row["sound"] = np.frombuffer(bytes.fromhex(entry.sound), np.uint8)
        row["samples"], row["num_samples"], row["num_frames"] = entry.num_samples, file.num_samples, file.num_frames
        for name in ("sample_rate", "num_channels", "silent", "peak", "rms", "clipped"):
            row[name] = getattr(entry, name)
        row["path_end"] = end + len(path)
        row["note_end"] = end = end + len(path) + len(note)
    return rows, b"".join(texts)


def _sum_blocks(path: Path, record: Record) -> list[str]:
    size = record.block_frames * record.shape[1] * np.dtype(record.dtype).itemsize
    with open(path, "rb") as file:
        return [hashlib.sha256(block).hexdigest() for block in iter(lambda: file.read(size), b"")]


def _check(record: Record) -> int:
    """Check a record and return the size of its data.bin in bytes.

    Raises:
        ValueError, TypeError: a value is impossible or has the wrong type.
    """
    texts = (record.fingerprint, record.dtype, record.data_sha256, *record.blocks)
    numbers = (*record.shape, record.ignored)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a value has the wrong type")
    num_frames, num_rows = record.shape
    if num_rows < 1 or not len(record.files):
        raise ValueError("it is empty")
    if isinstance(record.files, CachedFiles):
        record.files.columns.check()
        if len(record.blocks) != -(-num_frames // record.block_frames):
            raise ValueError(f"it has {len(record.blocks)} blocks")
    else:
        _check_files(record.files)
    if record.dtype not in (*CODE_TYPES.values(), FRAME_TYPE) or num_frames != int(record.num_frames.sum()):
        raise ValueError(f"{record.dtype} of {record.shape}")
    return num_frames * num_rows * np.dtype(record.dtype).itemsize


def _check_files(files: Sequence[CachedFile]) -> None:
    paths = [file.path for file in files]
    for file in files:
        check_path(file.path)
        if min(file.num_frames, file.num_samples, file.entry.sample_rate, file.entry.num_samples) < 1:
            raise ValueError(f"{file.path!r} has no length or sample rate")
    if len(set(paths)) < len(paths):
        raise ValueError("two files have the same path")


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
