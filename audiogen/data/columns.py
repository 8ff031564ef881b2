"""The files of a large cache as memory-mapped columns: opening costs no more for a million files than for one.

CACHE/files.bin     one ROW per file
CACHE/files.txt     path and note of each file, one after another, UTF-8
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from ..errors import CacheError
from ..utils.files import atomic_path
from .index import FileEntry, Part

ROWS_FILE, TEXTS_FILE = "files.bin", "files.txt"
ROW = np.dtype(
    [
        ("sha256", "u1", 32),
        ("sound", "u1", 32),  # zeros if it is not known
        ("samples", "<u8"),  # FileEntry.num_samples
        ("num_samples", "<u8"),  # these two as in CachedFile
        ("num_frames", "<u8"),
        ("sample_rate", "<u4"),
        ("num_channels", "<u2"),
        ("silent", "u1"),
        ("unused", "u1"),
        ("peak", "<f8"),
        ("rms", "<f8"),
        ("clipped", "<f8"),
        ("path_end", "<u8"),  # positions in files.txt
        ("note_end", "<u8"),
    ]
)

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for. Equal to another sequence of equal items."""

    def item(self, i: int) -> T:
        """Return item i, from 0."""
        raise NotImplementedError

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i: Any) -> Any:
        numbers = range(len(self))[i]  # an IndexError ends an iteration
        return self.item(numbers) if isinstance(numbers, int) else [self.item(number) for number in numbers]

    def __iter__(self) -> Iterator[T]:
        return map(self.item, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(lambda a, b: a == b, self, other))

    __hash__ = None  # pyright: ignore


class Columns:
    """The rows and texts of files, read from a folder.

    Attributes:
        rows: (n,) of ROW, memory-mapped.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = np.memmap(folder / ROWS_FILE, ROW, "r").view(np.ndarray)
        size = os.path.getsize(folder / TEXTS_FILE)
        self.texts = np.memmap(folder / TEXTS_FILE, "u1", "r") if size else np.zeros(0, "u1")

    def __reduce__(self) -> Any:
        return Columns, (self.folder,)  # other processes map the same files

    def check(self) -> None:
        """Check what holds for all rows; what a row says of itself is checked when it is read.

        Raises:
            ValueError: a number is impossible.
        """
        rows, texts = self.rows, np.empty(2 * len(self.rows), np.uint64)
        texts[::2], texts[1::2] = rows["path_end"], rows["note_end"]
        if (texts[1:] < texts[:-1]).any() or int(texts[-1]) != len(self.texts):
            raise ValueError(f"{TEXTS_FILE} has other texts")
        for name in ("num_frames", "num_samples", "samples", "sample_rate"):
            if not 1 <= int(rows[name].min()) <= int(rows[name].max()) < 2**62:
                raise ValueError("a file has no length or sample rate")

    def entry(self, i: int) -> FileEntry:
        """Return the sound file of row i.

        Raises:
            CacheError: its path leads out of the folder, or is no path.
        """
        row = self.rows[i]
        begin = int(self.rows["note_end"][i - 1]) if i else 0
        try:
            path = self.texts[begin : row["path_end"]].tobytes().decode("utf-8", "surrogateescape")
            note = self.texts[row["path_end"] : row["note_end"]].tobytes().decode()
            check_path(path)
        except ValueError as error:
            raise CacheError(f"{self.folder}: is damaged ({error}); remove it and encode again") from error
        return FileEntry(
            path,
            row["sha256"].tobytes().hex(),
            int(row["sample_rate"]),
            int(row["num_channels"]),
            int(row["samples"]),
            float(row["peak"]),
            float(row["rms"]),
            bool(row["silent"]),
            float(row["clipped"]),
            note,
            row["sound"].tobytes().hex() if row["sound"].any() else "",
        )


class Entries(Lazy[FileEntry]):
    """The sound files of columns."""

    def __init__(self, columns: Columns):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns.rows)

    def item(self, i: int) -> FileEntry:
        """Return entry i."""
        return self.columns.entry(i)

    @property
    def hashes(self) -> np.ndarray:
        """The content hashes (n, 32) uint8."""
        return self.columns.rows["sha256"]

    @cached_property
    def durations(self) -> np.ndarray:
        """Seconds of each file (n,) float64."""
        return self.columns.rows["samples"] / self.columns.rows["sample_rate"]


class Parts(Lazy[Part]):
    """Whole files among those of columns: one side of a split."""

    def __init__(self, entries: Entries, places: np.ndarray):
        self.entries, self.places = entries, places

    def __len__(self) -> int:
        return len(self.places)

    def item(self, i: int) -> Part:
        """Return part i."""
        return Part(self.entries[int(self.places[i])])

    @property
    def seconds(self) -> float:
        """Duration of all parts in seconds."""
        return float(self.entries.durations[self.places].sum())


class Paths(Lazy[str]):
    """The paths of some files of columns."""

    def __init__(self, entries: Entries, places: np.ndarray):
        self.entries, self.places = entries, places

    def __len__(self) -> int:
        return len(self.places)

    def item(self, i: int) -> str:
        """Return path i."""
        return self.entries[int(self.places[i])].path


def check_path(text: str) -> None:
    """Check that a path stays below the folder that it is relative to: decoding writes to a folder of the user's.

    Raises:
        ValueError: it does not, or no file can have this name.
    """
    path = Path(text)
    if path.anchor or ".." in path.parts or not path.name or "\0" in text:
        raise ValueError(f"the path {text!r} leads out of the folder")
    os.fsencode(path)


def write_columns(folder: Path, rows: np.ndarray, texts: bytes) -> None:
    """Write the files of columns; the texts are in the order of the rows."""
    for name, data in ((ROWS_FILE, np.ascontiguousarray(rows, ROW).data), (TEXTS_FILE, texts)):
        with atomic_path(folder / name) as temporary, open(temporary, "wb") as file:
            file.write(data)
