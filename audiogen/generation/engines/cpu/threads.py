"""Share the items of a batch among threads, while that is faster."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


class Threads:
    """Run blocks of steps in one thread, or in several, each with a part of the items: whichever is faster now.

    Several threads read the weights several times, and wait for cores on which other programs run. So the seconds per
    step of the newest blocks decide, beside those of a block that is run in the other way now and then.

    Args:
        items: number of items in the batch.
        together: items that a kernel computes together. Each part but the last has a multiple of this number, so that
            results are the same to the bit, however many threads there are.
    """

    #: Blocks before the other way is tried for the first time, and after each trial.
    FIRST, PATIENCE = 3, 64

    def __init__(self, items: int, together: int):
        self.items = items
        count = max(1, min(torch.get_num_threads(), items // together))
        ends = [items * i // count // together * together for i in range(count)] + [items]
        self.parts = [slice(begin, end) for begin, end in zip(ends, ends[1:], strict=False)]
        self.pool = ThreadPoolExecutor(count) if count > 1 else None
        self.shared, self.left = False, self.FIRST
        self.recent: deque[float] = deque(maxlen=3)  # seconds per step of the newest blocks
        self.other: float | None = None  # of the newest trial of the other way

    def run(self, work: Callable[[slice], None], steps: int) -> None:
        """Call `work` with slices that together are all items, and wait until all is done."""
        if self.pool is None:
            return work(slice(0, self.items))
        trial = self.left <= 0
        began = time.perf_counter()
        if self.shared != trial:
            list(self.pool.map(work, self.parts))
        else:
            work(slice(0, self.items))
        self._note((time.perf_counter() - began) / max(steps, 1), trial)

    def _note(self, took: float, trial: bool) -> None:
        """Choose how the next block runs from the seconds per step of this one."""
        if not trial:
            self.recent.append(took)
            slower = self.other is not None and len(self.recent) == 3 and min(self.recent) > self.other
            self.left = 0 if slower else self.left - 1
            return
        usual = min(self.recent)
        self.other = max(took, usual)
        if took < usual:
            self.shared = not self.shared
            self.recent.clear()
            self.recent.append(took)
        self.left = self.PATIENCE
