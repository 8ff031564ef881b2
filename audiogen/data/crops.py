"""Training crops as a pure function of (seed, step)."""

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..models.batch import Batch
from ..models.conditioning import Conditions
from .cache import EncodedCache, as_tensor
from .conditions import FileConditions
from .sequences import Sequences
from .split import Part

#: Number of files that are drawn, of which the one that sounds most like the first file of a crop follows it. With
#: more, one word by one speaker would follow itself; with fewer, other speakers interrupt. (Of six speakers of digits,
#: 16 give the same speaker in 70 % and the same digit in 22 %, 32 in 81 and 29 %.)
CANDIDATES = 32
MOST_SOUNDS = 10_000  # files that may follow; their sound is kept in memory, about 10 MB


class Crops(Dataset):
    """Training batches (B, C, num_frames): batch `step` is a pure function of (seed, step) and the corpus.

    Resuming therefore needs one integer, and the number of loader processes does not matter.

    For each crop, a frame of the training side is drawn uniformly. If its part is at least as long as a crop, the crop
    is centred on the frame, but shifted to lie within the part:

        |................ part ................|
                 |..... crop .x...|
        |..x.. crop .....|

    If frames die away at the end of the part, a crop may go on with the beginning of another one: otherwise a model
    would learn that nothing follows silence, and its sound would end there.

    If the part is shorter, files are drawn uniformly among the short ones and joined, beginning at the start of the
    first, so that a model of short clips learns how they begin, and that another one follows:

        |. file .|... file ...|.. file ..|
        |........... crop .........|

    Every frame is thus seen about equally often: in long files between half and twice the average; in short ones, only
    frames cut off at the end of crops are rarer.

    A frame may be a stack of short frames (`FrameSpec.stack`). Then a crop begins at any of these, and of a file
    that another follows, fewer than a stack are cut off at the end. Otherwise a folder of minutes is seen in the same
    stacks again and again, and a model learns them by heart: it is far too sure of what comes next, and sounds dull.

    Where frames are conditioned on the codes of an earlier stage, files are joined that sound alike: what is said is
    given, and the crop before says in which voice. Some files follow more often than others then.

    Args:
        cache: the encoded corpus.
        parts: the training side of a split; nothing else is read.
        num_frames: length of a crop.
        batch_size: B.
        seed: any integer.
        known: conditions of the files.
        dropout: see `FileConditions.drop`.
        mixture: share of the crops that is drawn from each of several corpora, by name (see `corpus_names`): first the
            corpus of a crop is drawn, then a frame of it. Empty: frames of all corpora are drawn alike.

    Raises:
        DataError: no part has two frames, or none of a corpus.
        ValueError: num_frames or batch_size is below 1.
    """

    def __init__(
        self,
        cache: EncodedCache,
        parts: Sequence[Part],
        num_frames: int,
        batch_size: int,
        seed: int = 0,
        known: FileConditions | None = None,
        dropout: float = 0.0,
        mixture: Mapping[str, float] | None = None,
    ):
        if num_frames < 1 or batch_size < 1:
            raise ValueError(f"num_frames and batch_size must be 1 or more, got {num_frames} and {batch_size}")
        self.num_frames, self.batch_size, self.seed = num_frames, batch_size, seed % 2**64
        self.known, self.dropout = known, dropout
        self.sequences = Sequences(cache, parts)
        self.stack = cache.spec.stack
        self._alike = known is not None and known.follows_stage and not cache.spec.discrete
        self._sounds: dict[int, np.ndarray] = {}
        # Positions and lengths count short frames from here on.
        self._begin, self._lengths = self.stack * self.sequences.begin, self.stack * self.sequences.num_frames
        self._length = self.stack * num_frames
        if mixture:
            places = [self._places_of(name, cache) for name in mixture]
            self._corpora = [_Corpus(self._lengths, place, self._length, self.stack) for place in places]
            self._shares = np.cumsum(list(mixture.values()))
        else:
            self._corpora = [_Corpus(self._lengths, np.arange(len(self._lengths)), self._length, self.stack)]

    def _places_of(self, name: str, cache: EncodedCache) -> np.ndarray:
        """Return the places of the sequences that belong to a corpus."""
        places = np.flatnonzero([path.startswith(f"{name}/") for path in self.sequences.names])
        if not len(places):
            raise DataError(f"{cache.folder}: nothing of {name} can be trained on; leave it out, or add recordings")
        return places

    def batch(self, step: int) -> tuple[Batch, list[list[str]]]:
        """Return batch `step`: crops (B, C, num_frames), int64 codes or float32 frames, and the files in each crop."""
        # Philox (Salmon et al. 2011) is a hash of its key, so no sequence has to be run up to `step`.
        philox = np.random.Philox(key=np.array([self.seed, step], np.uint64))
        rng = np.random.Generator(philox)
        every = [self._pieces(corpus, frame, rng) for corpus, frame in self._draw(rng)]
        x = np.stack([np.concatenate([self._read(begin, length) for _, begin, length in pieces]) for pieces in every])
        x = x.reshape(len(x), self.num_frames, self.stack, -1).transpose(0, 3, 2, 1)  # (B, features, stack, T)
        files = [[self.sequences.names[part] for part, _, _ in pieces] for pieces in every]
        conditions = None if self.known is None else self._conditions(every, np.random.Generator(philox.jumped()))
        return Batch(as_tensor(x.reshape(len(x), -1, self.num_frames)), conditions), files

    def _read(self, begin: int, length: int) -> np.ndarray:
        """Read short frames [begin, begin + length) of the cache: (length, features)."""
        first, end = begin // self.stack, -(-(begin + length) // self.stack)
        frames = self.sequences.cache.data[first:end]
        short = frames.reshape(len(frames), -1, self.stack).transpose(0, 2, 1).reshape(len(frames) * self.stack, -1)
        return short[begin - first * self.stack :][:length]

    def _conditions(self, every: list[list[tuple[int, int, int]]], rng: np.random.Generator) -> Conditions:
        """Return the conditions of each crop, frame by frame, after dropout: (B, F, num_frames) each."""
        known, piece = self.known, self.sequences.piece
        assert known is not None
        items = [known.of_pieces([piece(*located) for located in self._in_frames(pieces)]) for pieces in every]
        values = {name: np.stack([item[name] for item in items]) for name in known.parts}
        known.drop(values, self.dropout, rng)
        return {name: torch.from_numpy(x) for name, x in values.items()}

    def _in_frames(self, pieces: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
        """Say in which frames of the cache the middles of a crop's frames lie: (part, first frame, number)."""
        middle, position = self.stack // 2, 0
        for part, begin, length in pieces:
            first, end = (-((middle - at) // self.stack) for at in (position, position + length))
            if end > first:
                yield part, (begin + first * self.stack + middle - position) // self.stack, end - first
            position += length

    def _draw(self, rng: np.random.Generator) -> list[tuple["_Corpus", int]]:
        """Draw a short frame for each crop: (its corpus, number of the frame in the corpus)."""
        if len(self._corpora) == 1:
            corpus = self._corpora[0]
            return [(corpus, int(frame)) for frame in rng.integers(corpus.ends[-1], size=self.batch_size)]
        drawn = []
        for first, second in rng.random((self.batch_size, 2)):
            place = np.searchsorted(self._shares, first * self._shares[-1], side="right")
            corpus = self._corpora[min(int(place), len(self._corpora) - 1)]
            drawn.append((corpus, int(second * int(corpus.ends[-1]))))
        return drawn

    def _pieces(self, corpus: "_Corpus", frame: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """Return the pieces of a crop: (part, first short frame in the cache, number of short frames)."""
        begin, lengths, num_frames = self._begin, self._lengths, self._length
        place = int(np.searchsorted(corpus.ends, frame, side="right"))
        part = int(corpus.parts[place])
        length = int(lengths[part])
        pieces, missing, pool = [], num_frames, corpus.short
        if length >= num_frames:
            centre = frame - int(corpus.ends[place]) + length
            start = max(0, centre - num_frames // 2)
            if start + num_frames <= length or not self._dies_away(part):
                return [(part, int(begin[part]) + min(start, length - num_frames), num_frames)]
            pieces, missing = [(part, int(begin[part]) + start, length - start)], start + num_frames - length
            pool = corpus.parts
        drawn: list[int] = pool[rng.integers(len(pool), size=corpus.most_joined)].tolist()
        joined: Iterable[int] = drawn
        if self._alike:
            joined = self._like(part, pool, rng) if pieces else chain(drawn[:1], self._like(drawn[0], pool, rng))
        for part in joined:
            length = min(int(lengths[part]) - (int(rng.integers(self.stack)) if self.stack > 1 else 0), missing)
            pieces.append((part, int(begin[part]), length))
            missing -= length
            if not missing:
                break
        return pieces

    def _dies_away(self, part: int) -> bool:
        """Return whether a part of at least num_frames frames ends far below its level, as a sound that is over.

        That is more than a deviation below the mean of its last num_frames frames. Always False for codes.
        """
        if self.sequences.cache.spec.discrete:
            return False
        end = int(self.sequences.begin[part]) + int(self.sequences.num_frames[part])
        level = self.sequences.cache.data[end - self.num_frames : end].mean(1)
        return bool(level[-2:].mean() < level.mean() - level.std())

    def _like(self, first: int, pool: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
        """Draw parts that sound like `first` from a pool, without end."""
        sound, pool = self._sound_of(first), pool[:: -(-len(pool) // MOST_SOUNDS)]
        while True:
            drawn = pool[rng.integers(len(pool), size=CANDIDATES)].tolist()
            others = [part for part in drawn if part != first] or [first]
            yield others[int(np.square(np.stack([self._sound(part) for part in others]) - sound).sum(1).argmin())]

    def _sound(self, part: int) -> np.ndarray:
        """Return `_sound_of` a part that may follow, and keep it."""
        if part not in self._sounds:
            self._sounds[part] = self._sound_of(part).astype(np.float16)
        return self._sounds[part]

    def _sound_of(self, part: int) -> np.ndarray:
        """Return mean and deviation (2 F,) of the frames that a part begins with: they tell voices and instruments."""
        begin, length = int(self.sequences.begin[part]), int(self.sequences.num_frames[part])
        frames = self.sequences.cache.data[begin : begin + min(length, self.num_frames)]
        return np.concatenate([frames.mean(0), frames.std(0)])

    def __getitem__(self, step: int) -> tuple[Batch, list[list[str]]]:
        return self.batch(step)

    def loader(self, numbers: Iterable[int], num_workers: int = 0) -> Iterator[tuple[Batch, list[list[str]]]]:
        """Iterate over the batches of these numbers.

        Args:
            numbers: of the batches; may be endless.
            num_workers: processes that prepare batches ahead; 0 prepares each batch on demand.
        """
        if num_workers == 0:
            return map(self.batch, numbers)
        # A separate generator, since DataLoader draws from it, and training must not be affected.
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=numbers,
                num_workers=num_workers,
                collate_fn=_as_it_is,
                generator=torch.Generator(),
                worker_init_fn=_leave_interrupts_alone,
            )
        )


class _Corpus:
    """Parts that crops are drawn from alike: their places, and where each ends if they are laid end to end."""

    def __init__(self, lengths: np.ndarray, parts: np.ndarray, num_frames: int, stack: int):
        self.parts, self.ends = parts, np.cumsum(lengths[parts])
        self.short = parts[lengths[parts] < num_frames]
        # Less than a stack may be cut off.
        shortest = int(lengths[self.short].min()) - stack + 1 if len(self.short) else num_frames
        self.most_joined = -(-num_frames // shortest)


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_interrupts_alone(worker: int) -> None:
    """Ignore signals, which may reach every process of a group: the training loop alone handles them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
