"""Patterns: an integer table of the frame at each (codebook row, step); -1 is a hole.

With K = 3 rows and frames 0 1 2 (Copet et al. 2023, MusicGen, section 2.2):

    parallel  0 1 2      delay  0 1 2 . .      flatten  0 . . 1 . . 2 . .
              0 1 2             . 0 1 2 .               . 0 . . 1 . . 2 .
              0 1 2             . . 0 1 2               . . 0 . . 1 . . 2
"""

import torch
from torch import Tensor


class Pattern:
    """Lay out K rows of T frames over S steps, and invert it: row k of frame t is at step offsets[k] + stride * t.

    Depends on the number of rows alone. Any window of steps can be laid out without computing the others.

    Attributes:
        num_rows: K.
        span: steps from a frame's first row to its last, inclusive.
    """

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.span = int(self.offsets().max()) + 1

    @property
    def stride(self) -> int:
        """Steps from one frame to the next."""
        return 1

    def offsets(self, device: torch.device | None = None) -> Tensor:
        """Return the steps (K,) int64 of the rows of frame 0; the smallest is 0."""
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
            start: first step of the window.
            stop: end of the window, exclusive; S by default.
            device: device of the table.
        """
        steps = torch.arange(start, self.num_steps(num_frames) if stop is None else stop, device=device)
        steps = steps - self.offsets(device)[:, None]  # (K, S), counted from frame 0 of each row
        index = steps.div(self.stride, rounding_mode="floor")
        return index.masked_fill((steps % self.stride != 0) | (index < 0) | (index >= num_frames), -1)

    def newest_frame(self, start: int, stop: int, device: torch.device | None = None) -> Tensor:
        """Return the frame that began last, for each of the steps [start, stop): (stop - start,) int64."""
        return torch.arange(start, stop, device=device).div(self.stride, rounding_mode="floor")

    def step_index(self, start: int, stop: int, device: torch.device | None = None) -> Tensor:
        """Return the inverse table (K, stop - start) int64: the step of each row of frames [start, stop)."""
        return self.offsets(device)[:, None] + self.stride * torch.arange(start, stop, device=device)

    def apply(self, x: Tensor, hole: float, start: int = 0, stop: int | None = None) -> Tensor:
        """Lay out frames: (B, C, T) -> (B, C, S).

        Args:
            x: (B, C, T); C is K, or K is 1.
            hole: value written where the pattern has no frame.
            start: first step to lay out.
            stop: end of the steps to lay out, exclusive; S by default.
        """
        index = self.frame_index(x.shape[2], start, stop, x.device)
        if not x.shape[2]:
            return x.new_full((*x.shape[:2], index.shape[1]), hole)
        picked = x.gather(2, index.clamp(min=0).expand(*x.shape[:2], -1))
        return picked.masked_fill(index < 0, hole)

    def invert(self, seq: Tensor, num_frames: int) -> Tensor:
        """Recover the frames that `apply` laid out: (B, K, S) -> (B, K, T)."""
        steps = self.step_index(0, num_frames, seq.device)
        return seq.gather(2, steps.expand(*seq.shape[:2], -1))


class Parallel(Pattern):
    """Put all rows of a frame at one step: the fastest, but the rows of a frame are drawn independently."""

    def offsets(self, device: torch.device | None = None) -> Tensor:
        return torch.zeros(self.num_rows, dtype=torch.int64, device=device)


class Delay(Pattern):
    """Delay row k by k steps, so that it depends on the rows above it in the same frame; K - 1 extra steps in all."""

    def offsets(self, device: torch.device | None = None) -> Tensor:
        return torch.arange(self.num_rows, device=device)


class Flatten(Pattern):
    """Put one row at each step: every code depends on all before it, at K times as many steps."""

    @property
    def stride(self) -> int:
        return self.num_rows

    def offsets(self, device: torch.device | None = None) -> Tensor:
        return torch.arange(self.num_rows, device=device)


PATTERNS: dict[str, type[Pattern]] = {"parallel": Parallel, "delay": Delay, "flatten": Flatten}
