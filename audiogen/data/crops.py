"""Training crops as a pure function of (seed, step)."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..models.batch import Batch
from .cache import EncodedCache, as_tensor
from .sequences import Sequences
from .split import Part


class Crops(Dataset):
    """Batches (B, C, num_frames) for training: batch `step` depends on nothing but (seed, step) and the corpus.

    Hence resuming needs one integer, and the number of loader processes changes nothing.

    A frame of the training side is drawn, each with the same chance. If its part is as long as a crop or longer, the
    crop is centred on it, but moved inwards where it would stick out:

        |................ part ................|
                 |..... crop .x...|
        |..x.. crop .....|

    If it is shorter, files are drawn among those that are shorter, each with the same chance, and joined from the
    first one's beginning, so that a model of short clips learns how they begin, and that another one follows:

        |. file .|... file ...|.. file ..|
        |........... crop .........|

    So every frame is heard nearly as often as any other: from half the average to twice that in long files; in short
    ones only what the ends of crops cut off is rarer.

    Args:
        cache: the encoded corpus.
        parts: the training side of a split; nothing outside of them is ever read.
        num_frames: length of a crop.
        batch_size: B.
        seed: a whole number.

    Raises:
        DataError: no part has two frames; `sequences.left_out` names those that have not.
    """

    def __init__(self, cache: EncodedCache, parts: Sequence[Part], num_frames: int, batch_size: int, seed: int = 0):
        if num_frames < 1 or batch_size < 1:
            raise ValueError(f"num_frames and batch_size must be 1 or more, got {num_frames} and {batch_size}")
        self.num_frames, self.batch_size, self.seed = num_frames, batch_size, seed % 2**64
        self.sequences = Sequences(cache, parts)
        lengths = self.sequences.num_frames
        self._ends = np.cumsum(lengths)  # of the parts, as if laid end to end
        self._short = np.flatnonzero(lengths < num_frames)
        shortest = int(lengths[self._short].min()) if len(self._short) else num_frames
        self._most_joined = -(-num_frames // shortest)

    def batch(self, step: int) -> tuple[Batch, list[list[str]]]:
        """-> crops (B, C, num_frames), int64 codes or float32 frames, and for each the paths of the files in it."""
        # Philox (Salmon et al. 2011) is a hash of its key, so there is no sequence to be run through up to `step`.
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, step], np.uint64)))
        data, names = self.sequences.cache.data, self.sequences.names
        x = np.empty((self.batch_size, self.num_frames, data.shape[1]), data.dtype)
        files = []
        for crop, frame in zip(x, rng.integers(self._ends[-1], size=self.batch_size), strict=True):
            pieces, position = self._pieces(int(frame), rng), 0
            for _, begin, length in pieces:
                crop[position : position + length] = data[begin : begin + length]
                position += length
            files.append([names[part] for part, _, _ in pieces])
        return Batch(as_tensor(x.transpose(0, 2, 1))), files

    def _pieces(self, frame: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """(part, first frame in the cache, number of frames) of what a crop is made of."""
        begin, lengths, num_frames = self.sequences.begin, self.sequences.num_frames, self.num_frames
        part = int(np.searchsorted(self._ends, frame, side="right"))
        length = int(lengths[part])
        if length >= num_frames:
            centre = frame - int(self._ends[part]) + length
            start = min(max(0, centre - num_frames // 2), length - num_frames)
            return [(part, int(begin[part]) + start, num_frames)]
        joined = self._short[rng.integers(len(self._short), size=self._most_joined)]
        pieces, missing = [], num_frames
        for part in joined:
            length = min(int(lengths[part]), missing)
            pieces.append((int(part), int(begin[part]), length))
            missing -= length
            if not missing:
                break
        return pieces

    def __getitem__(self, step: int) -> tuple[Batch, list[list[str]]]:
        return self.batch(step)

    def loader(
        self, start: int = 0, stop: int | None = None, num_workers: int = 0
    ) -> Iterator[tuple[Batch, list[list[str]]]]:
        """The batches of steps [start, stop), without end if `stop` is None.

        Args:
            num_workers: processes that prepare batches ahead; 0 prepares each when it is asked for.
        """
        steps: Iterable[int] = count(start) if stop is None else range(start, stop)
        if num_workers == 0:
            return map(self.batch, steps)
        # A generator of its own: DataLoader draws from the one it has, and training's must not notice.
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=steps,
                num_workers=num_workers,
                collate_fn=_as_it_is,
                generator=torch.Generator(),
                worker_init_fn=_leave_interrupts_alone,
            )
        )


def _as_it_is(batch: tuple[Batch, list[list[str]]]) -> tuple[Batch, list[list[str]]]:
    return batch


def _leave_interrupts_alone(worker: int) -> None:
    """Signals may reach every process of a group; the training loop alone decides what follows from them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
