"""Split a corpus into training and held-out files by content hash, never by crop."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..utils.remote import fetched
from .columns import Entries, Parts
from .index import FileEntry, Index, Part, files_of

if TYPE_CHECKING:
    from torch import Tensor

#: From this many files on, a file's hash alone decides on which side it is.
MANY = 1000
#: Minimum duration (seconds) of either side when a single file is split.
SHORTEST_PIECE = 0.1
#: Maximum gap (seconds) between the sides of a single file, for models of unbounded receptive field.
UNBOUNDED_GAP = 10.0
#: Minutes of training sound below which a warning says that they are few.
LITTLE = 3.0
#: `Frontend.fit` gets long files in pieces of this many seconds, which bounds memory.
PIECE_SECONDS = 60.0


@dataclass(frozen=True)
class Split:
    """Two sides that share no content, each sorted by content hash.

    Attributes:
        train: parts to train on.
        held_out: parts to evaluate on.
        note: a warning for the user, or empty.
    """

    train: Sequence[Part]
    held_out: Sequence[Part]
    note: str = ""

    @property
    def summary(self) -> str:
        """One line: "2430 files (17.7 min) to train on, 270 (2.0 min) held out"."""
        train, held_out = (_seconds(side) / 60 for side in (self.train, self.held_out))
        little = (
            "that is little, and a model may soon memorise it; ten minutes or more are better" if train < LITTLE else ""
        )
        notes = "".join(f"; {note}" for note in (self.note, little) if note)
        return (
            f"{len(self.train)} file{'' if len(self.train) == 1 else 's'} ({train:.1f} min) to train on, "
            f"{len(self.held_out)} ({held_out:.1f} min) "
            f"held out{notes}"
        )


def split(index: Index, held_out: float = 0.1, gap_seconds: float = 0.0, threshold: bool = True) -> Split:
    """Hold out the files whose content hashes come first.

    The content alone decides, not names, order or folders. Below `MANY` files, a fraction of them is held out, so
    adding a file moves at most one other across. From there on, those files are held out whose hashes are below this
    fraction of the highest possible one: about as many, and adding files moves no other across. The fraction is of
    files, since each is scored separately; the fraction of seconds may differ, and `Split.summary` states both. Of a
    single file, the last fraction `held_out` is held out, after a gap, and `note` says so.

    Args:
        index: the files to split.
        held_out: fraction of the files, above 0 and below 1; each side gets at least one file.
        gap_seconds: the model's receptive field in seconds, used for a single file. If it is infinite, the gap is as
            long as the held-out part, at most `UNBOUNDED_GAP`, and `note` says so.
        threshold: False for a fraction of the files in any case, as in older runs.

    Raises:
        DataError: there are no files, or a single one that is too short to split.

    Example:
        >>> for i in range(10):
        ...     write_audio(f"sounds/{i}.wav", torch.rand(1, 8000) - 0.5, 8000)
        >>> sides = split(scan("sounds", progress=False))
        >>> len(sides.train), len(sides.held_out)
        (9, 1)
    """
    index.require_files()
    files = index.files
    if len(files) == 1:
        return _cut(index, files[0], held_out, gap_seconds)
    count = min(max(1, round(held_out * len(files))), len(files) - 1)
    if isinstance(files, Entries):
        firsts = files.hashes[:, :8].copy().view(">u8")[:, 0]
    else:
        files = sorted(files, key=lambda file: file.sha256)
        firsts = np.array([int(file.sha256[:16], 16) for file in files], np.uint64)
    if threshold and len(files) >= MANY:
        below = int(np.count_nonzero(firsts < np.uint64(held_out * 2.0**64)))
        count = below if 0 < below < len(files) else count
    if isinstance(files, Entries):
        order = np.argsort(firsts, kind="stable")
        return Split(Parts(files, order[count:]), Parts(files, order[:count]))
    return Split([Part(file) for file in files[count:]], [Part(file) for file in files[:count]])


def _seconds(side: Sequence[Part]) -> float:
    return side.seconds if isinstance(side, Parts) else sum(part.seconds for part in side)


def split_each(
    index: Index, names: Sequence[str], held_out: float = 0.1, gap_seconds: float = 0.0, threshold: bool = True
) -> Split:
    """Split each of several folders that were scanned together, so that files of each are held out.

    Args:
        index: the files of all folders.
        names: names of the folders, as in `corpus_names`.
        held_out: as in `split`.
        gap_seconds: as in `split`.
        threshold: as in `split`.

    Raises:
        DataError: a folder has no files, or a single one that is too short to split.
    """
    prefixed = {file.sha256: file for file in index.files}
    train, kept, notes = [], [], []
    for name in names:
        sides = split(files_of(index, name), held_out, gap_seconds, threshold)
        train += [replace(part, file=prefixed[part.file.sha256]) for part in sides.train]
        kept += [replace(part, file=prefixed[part.file.sha256]) for part in sides.held_out]
        notes += [f"{name}: {sides.note}"] if sides.note else []
    train, kept = (sorted(side, key=lambda part: part.file.sha256) for side in (train, kept))
    return Split(train, kept, "; ".join(notes))


def _cut(index: Index, file: FileEntry, held_out: float, gap_seconds: float) -> Split:
    """Split a single file: 0 ........ training ........ | gap | held out | 1."""
    start, unbounded = 1 - held_out, ""
    if math.isinf(gap_seconds):
        gap_seconds = min(UNBOUNDED_GAP, held_out * file.duration)
        unbounded = ", though this model's receptive field is unbounded"
    stop = start - gap_seconds / file.duration
    if min(stop, held_out) * file.duration < SHORTEST_PIECE:
        needed = max(SHORTEST_PIECE / held_out, (SHORTEST_PIECE + gap_seconds) / start)
        raise DataError(
            f"{index.folder}: one file only ({file.path}, {file.duration:.4g} s) is too little to hold "
            f"anything out; add a second file, or use one of {needed:.4g} s or more"
        )
    note = (
        f"one file only: its last {held_out:.0%} ({held_out * file.duration:.4g} s) is held out, after a gap of "
        f"{gap_seconds:.4g} s{unbounded}"
    )
    return Split([Part(file, 0.0, stop)], [Part(file, start, 1.0)], note)


def training_wavs(index: Index, parts: Sequence[Part], sample_rate: int) -> "Iterable[Tensor]":
    """Return the sound of parts for `Frontend.fit`: a re-iterable of wavs (1, N) float32.

    Parts longer than a minute come in pieces of a minute. No sound outside the parts is used, apart from the few
    milliseconds that the resampling filter extends beyond their ends.

    Args:
        index: the index of the folder that holds the files.
        parts: usually `Split.train`.
        sample_rate: rate of the wavs in Hz.
    """
    return _Wavs(index.folder, parts, sample_rate)


@dataclass(frozen=True)
class _Wavs:
    folder: Path
    parts: Sequence[Part]
    sample_rate: int

    def __iter__(self) -> "Iterator[Tensor]":
        from ..audio.io import read_blocks  # loads torch

        for part in self.parts:
            first, end = part.span(round(part.file.num_samples * self.sample_rate / part.file.sample_rate))
            if part.stop == 1:  # a resampled length may be one more than the rounded one
                end = sys.maxsize
            position = 0
            with fetched(self.folder / part.file.path) as path:
                for block in read_blocks(path, self.sample_rate, PIECE_SECONDS):
                    piece = block[:, max(0, first - position) : max(0, min(end - position, block.shape[1]))]
                    if piece.shape[1]:
                        yield piece
                    position += block.shape[1]
                    if position >= end:
                        break
