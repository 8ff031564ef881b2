"""Which files are trained on and which are held out: by rank of content hash, never by crop."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..audio.io import read_blocks
from ..errors import DataError
from .index import FileEntry, Index

#: What either side of a file that is cut must at least hold (seconds).
SHORTEST_PIECE = 0.1
#: The longest gap (seconds) in a file that is cut for a model that hears back without bound.
UNBOUNDED_GAP = 10.0
#: Minutes to train on below which a person is told that they are few.
LITTLE = 3.0
#: Long files are handed to `Frontend.fit` in pieces of so many seconds, so that an hour takes no more memory.
PIECE_SECONDS = 60.0


@dataclass(frozen=True)
class Part:
    """A file, or a piece of it from the fraction `start` up to the fraction `stop`."""

    file: FileEntry
    start: float = 0.0
    stop: float = 1.0

    @property
    def seconds(self) -> float:
        return (self.stop - self.start) * self.file.duration

    def span(self, length: int) -> tuple[int, int]:
        """[first, end) among the file's `length` frames or samples, rounded inwards."""
        return math.ceil(self.start * length), math.floor(self.stop * length)


@dataclass(frozen=True)
class Split:
    """Two sides that share no content; both are sorted by content hash, so that file names decide nothing.

    `note` is empty, or what a person must be told about the split.
    """

    train: list[Part]
    held_out: list[Part]
    note: str = ""

    @property
    def summary(self) -> str:
        """One line: "2430 files (17.7 min) to train on, 270 (2.0 min) held out"."""
        train, held_out = (sum(part.seconds for part in side) / 60 for side in (self.train, self.held_out))
        little = (
            "that is little, which a model may soon know by heart; ten minutes or more are better"
            if train < LITTLE
            else ""
        )
        notes = "".join(f"; {note}" for note in (self.note, little) if note)
        return (
            f"{len(self.train)} files ({train:.1f} min) to train on, {len(self.held_out)} ({held_out:.1f} min) "
            f"held out{notes}"
        )


def split(index: Index, held_out: float = 0.1, gap_seconds: float = 0.0) -> Split:
    """Holds out the files whose hashes come first.

    The content alone decides: neither names, nor order, nor the folder. A file that is added moves at most one other
    across. The fraction counts files, since each is judged by itself; where lengths differ widely, the fraction of
    seconds may be another one, and `Split.summary` states it.

    Of one file only, the last `held_out` of it is held out, with a gap before it, and `note` says so.

    Args:
        held_out: fraction of the files, above 0 and below 1; at least one file is on either side.
        gap_seconds: how far a model hears back: its receptive field. No gap is long enough for an infinite one, so it
            gets one as long as what is held out, at most `UNBOUNDED_GAP`, and the note says so.

    Raises:
        DataError: no files, or one that is too short to be cut.
    """
    index.require_files()
    files = sorted(index.files, key=lambda file: file.sha256)
    if len(files) == 1:
        return _cut(index, files[0], held_out, gap_seconds)
    count = min(max(1, round(held_out * len(files))), len(files) - 1)
    return Split([Part(file) for file in files[count:]], [Part(file) for file in files[:count]])


def _cut(index: Index, file: FileEntry, held_out: float, gap_seconds: float) -> Split:
    """0 ........ training ........ | gap | held out | 1"""
    start, unbounded = 1 - held_out, ""
    if math.isinf(gap_seconds):
        gap_seconds = min(UNBOUNDED_GAP, held_out * file.duration)
        unbounded = ", though this model hears back without bound"
    stop = start - gap_seconds / file.duration
    if min(stop, held_out) * file.duration < SHORTEST_PIECE:
        needed = max(SHORTEST_PIECE / held_out, (SHORTEST_PIECE + gap_seconds) / start)
        raise DataError(
            f"{index.folder}: one file only ({file.path}, {file.duration:.4g} s) is too little to hold "
            f"anything out; two files or more would do, or one of {needed:.4g} s or more"
        )
    note = (
        f"one file only: its last {held_out:.0%} ({held_out * file.duration:.4g} s) is held out, after a gap of "
        f"{gap_seconds:.4g} s{unbounded}"
    )
    return Split([Part(file, 0.0, stop)], [Part(file, start, 1.0)], note)


def training_wavs(index: Index, parts: Sequence[Part], sample_rate: int) -> Iterable[Tensor]:
    """The sound of parts, for `Frontend.fit`: a re-iterable of (1, N) float32 at `sample_rate`.

    A part longer than a minute comes in pieces of a minute. Nothing outside of a part is heard, but for the few
    milliseconds that a resampling filter reaches over its ends.

    Args:
        index: whose folder holds the files.
        parts: usually `Split.train`.
        sample_rate: Hz.
    """
    return _Wavs(index.folder, parts, sample_rate)


@dataclass(frozen=True)
class _Wavs:
    folder: Path
    parts: Sequence[Part]
    sample_rate: int

    def __iter__(self) -> Iterator[Tensor]:
        for part in self.parts:
            first, end = part.span(round(part.file.num_samples * self.sample_rate / part.file.sample_rate))
            if part.stop == 1:  # a resampled length may be one more than the rounded one
                end = sys.maxsize
            position = 0
            for block in read_blocks(self.folder / part.file.path, self.sample_rate, PIECE_SECONDS):
                piece = block[:, max(0, first - position) : max(0, min(end - position, block.shape[1]))]
                if piece.shape[1]:
                    yield piece
                position += block.shape[1]
                if position >= end:
                    break
