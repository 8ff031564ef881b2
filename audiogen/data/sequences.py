"""The codes of selected parts of a corpus, such as its held-out side."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..errors import DataError
from .cache import EncodedCache, as_tensor
from .columns import Parts, Paths
from .index import Part

#: Frames to which a long sequence may be cut.
LEAST_FRAMES = 512


class Piece(NamedTuple):
    """Frames of a file.

    Attributes:
        sha256: of the file.
        num_frames: of the whole file.
        first: first frame of the piece.
        length: frames of the piece.
    """

    sha256: str
    num_frames: int
    first: int
    length: int


class Sequences:
    """A re-iterable of one sequence (C, T) per part, T >= 2, read from the cache on demand.

    Args:
        cache: a cache of the parts' files, which are matched by content.
        parts: one side of a Split.

    Attributes:
        names: path of each sequence's file, as given by the parts.
        begin: (len,) int64, position of each sequence in cache.data.
        num_frames: (len,) int64, T of each sequence.
        left_out: paths of parts that have fewer than two frames, or whose file the cache left out.

    Raises:
        DataError: no part has two frames.
    """

    def __init__(self, cache: EncodedCache, parts: Sequence[Part]):
        self.cache = cache
        if isinstance(parts, Parts) and parts.entries is cache.index.files:
            long = cache.num_frames[parts.places] >= 2
            places = parts.places[long]
            self.names, self.left_out = Paths(parts.entries, places), Paths(parts.entries, parts.places[~long])
            self._places, self.begin, self.num_frames = places, cache.offsets[places], cache.num_frames[places]
        else:
            self._find(cache, parts)
        if not len(self.names):
            raise DataError(
                f"{cache.folder}: none of the {len(parts)} parts has two frames of the front-end; "
                "add recordings, or longer ones"
            )

    def _find(self, cache: EncodedCache, parts: Sequence[Part]) -> None:
        """Find the parts in a cache, by content."""
        place = {sha256: i for i, sha256 in enumerate(cache.hashes())}
        self.names, self.left_out, self._places = [], [], []
        begin, num_frames = [], []
        for part in parts:
            i = place.get(part.file.sha256)
            first, end = (0, 0) if i is None else _span(cache, i, part)
            if end - first < 2:
                self.left_out.append(part.file.path)
                continue
            self.names.append(part.file.path)
            self._places.append(i)
            begin.append(cache.offsets[i] + first)
            num_frames.append(end - first)
        self.begin, self.num_frames = np.array(begin, np.int64), np.array(num_frames, np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Tensor:
        begin = self.begin[i]  # an IndexError ends the iteration
        return as_tensor(self.cache.data[begin : begin + self.num_frames[i]].T)

    def limited(self, most: int) -> "Sequences":
        """Return a random choice of the sequences, of about `most` frames in all; long ones are cut to have several."""
        if self.num_frames.sum() <= most:
            return self
        length = np.minimum(self.num_frames, max(most // len(self), LEAST_FRAMES))
        order = sorted(range(len(self)), key=lambda i: self.cache.sha256(int(self._places[i])))
        kept = sorted(order[: int(np.searchsorted(np.cumsum(length[order]), most)) + 1])
        some = copy.copy(self)
        some.names, some._places = [self.names[i] for i in kept], [self._places[i] for i in kept]
        some.begin, some.num_frames = self.begin[kept], length[kept]
        return some

    def piece(self, i: int, begin: int | None = None, length: int | None = None) -> Piece:
        """Locate sequence i in its file, or `length` frames of it that begin at frame `begin` of cache.data."""
        place = int(self._places[i])
        offset = int(self.cache.offsets[place])
        begin = int(self.begin[i]) if begin is None else begin
        length = int(self.num_frames[i]) if length is None else length
        return Piece(self.cache.sha256(place), int(self.cache.num_frames[place]), begin - offset, length)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


def _span(cache: EncodedCache, i: int, part: Part) -> tuple[int, int]:
    """Return the frames [first, end) of a part of file i, rounded inwards."""
    if part.stop - part.start == 1 or cache.spec.hop_length is not None:
        return part.span(int(cache.num_frames[i]))
    # Fractions refer to time: with a variable rate, half of the codes is not half of the sound.
    lengths = cache.frontend().frame_lengths(cache.codes(i)[None])[0].cpu().numpy()
    ends = lengths.cumsum()
    first = np.searchsorted(ends - lengths, part.start * ends[-1], side="left")
    return int(first), int(np.searchsorted(ends, part.stop * ends[-1], side="right"))
