"""Patterns: one integer table that says which frame stands at (codebook row, step); -1 is a hole.

With K = 3 rows and frames 0 1 2 (Copet et al. 2023, MusicGen, section 2.2):

    parallel  0 1 2      delay  0 1 2 . .      flatten  0 . . 1 . . 2 . .
              0 1 2             . 0 1 2 .               . 0 . . 1 . . 2 .
              0 1 2             . . 0 1 2               . . 0 . . 1 . . 2
"""

import torch
from torch import Tensor


class Pattern:
    """Lay K rows of T frames out over S steps, and back: row k of frame t stands at step offsets[k] + stride * t.

    Made from the number of rows, nothing else. Any window of the steps can be laid out without those around it.

    Attributes:
        span: steps from a frame's first row to its last, both included.
    """

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.span = int(self.offsets().max()) + 1

    @property
    def stride(self) -> int:
        """Steps from one frame to the next."""
        return 1

    def offsets(self, device: torch.device | None = None) -> Tensor:
        """Return the steps (K,) int64 at which the rows of frame 0 stand; the first of them is 0."""
        raise NotImplementedError

    def num_steps(self, num_frames: int) -> int:
        """Return S for T = num_frames."""
        return self.stride * (num_frames - 1) + self.span if num_frames else 0

    def num_whole_frames(self, num_steps: int) -> int:
        """Return how many frames have all their rows within the first `num_steps` steps."""
        return max(0, (num_steps - self.span) // self.stride + 1)

    def frame_index(
        self, num_frames: int, start: int = 0, stop: int | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Return the table (K, stop - start) int64: the frame at each row and step, -1 for a hole.

        Args:
            num_frames: T.
            start, stop: the window of steps; all S of them by default.
            device: of the table.
        """
        steps = torch.arange(start, self.num_steps(num_frames) if stop is None else stop, device=device)
        steps = steps - self.offsets(device)[:, None]  # (K, S), since frame 0 stood in this row
        index = steps.div(self.stride, rounding_mode="floor")
        return index.masked_fill((steps % self.stride != 0) | (index < 0) | (index >= num_frames), -1)

    def step_index(self, start: int, stop: int, device: torch.device | None = None) -> Tensor:
        """Return the table read backwards, (K, stop - start) int64: the step of each row of frames [start, stop)."""
        return self.offsets(device)[:, None] + self.stride * torch.arange(start, stop, device=device)

    def apply(self, x: Tensor, hole: float, start: int = 0, stop: int | None = None) -> Tensor:
        """Lay out (B, C, T) -> (B, C, S), or a window of its steps, with `hole` in the holes; C is K, or K is 1."""
        index = self.frame_index(x.shape[2], start, stop, x.device)
        if not x.shape[2]:
            return x.new_full((*x.shape[:2], index.shape[1]), hole)
        picked = x.gather(2, index.clamp(min=0).expand(*x.shape[:2], -1))
        return picked.masked_fill(index < 0, hole)

    def invert(self, seq: Tensor, num_frames: int) -> Tensor:
        """Take out of (B, K, S) what `apply` laid out, without the holes: (B, K, T)."""
        steps = self.step_index(0, num_frames, seq.device)
        return seq.gather(2, steps.expand(*seq.shape[:2], -1))


class Parallel(Pattern):
    """All rows of a frame at one step: the fastest, and blind to what the rows of one frame say of each other."""

    def offsets(self, device: torch.device | None = None) -> Tensor:
        return torch.zeros(self.num_rows, dtype=torch.int64, device=device)


class Delay(Pattern):
    """Row k comes k steps later, so that it sees the rows above it of its own frame, for K - 1 steps more in all."""

    def offsets(self, device: torch.device | None = None) -> Tensor:
        return torch.arange(self.num_rows, device=device)


class Flatten(Pattern):
    """One row at a step: every code sees all before it, at K times the steps."""

    @property
    def stride(self) -> int:
        return self.num_rows

    def offsets(self, device: torch.device | None = None) -> Tensor:
        return torch.arange(self.num_rows, device=device)


PATTERNS: dict[str, type[Pattern]] = {"parallel": Parallel, "delay": Delay, "flatten": Flatten}
