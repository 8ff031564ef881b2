"""Patterns: one integer table that says which frame stands at (codebook row, step); -1 is a hole.

With K = 3 rows and frames 0 1 2 (Copet et al. 2023, MusicGen, section 2.2):

    parallel  0 1 2      delay  0 1 2 . .      flatten  0 . . 1 . . 2 . .
              0 1 2             . 0 1 2 .               . 0 . . 1 . . 2 .
              0 1 2             . . 0 1 2               . . 0 . . 1 . . 2
"""

import torch
from torch import Tensor


class Pattern:
    """Lays K rows of T frames out over S steps, and back. Made from the number of rows, nothing else."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows

    def num_steps(self, num_frames: int) -> int:
        """S for T = num_frames."""
        raise NotImplementedError

    def frame_index(self, num_steps: int) -> Tensor:
        """The table (K, S) int64: the frame at each row and step, -1 for a hole."""
        raise NotImplementedError

    def apply(self, x: Tensor, hole: float) -> tuple[Tensor, Tensor]:
        """(B, K, T) -> (B, K, S) with `hole` in the holes, and the table (K, S)."""
        index = self.frame_index(self.num_steps(x.shape[2])).to(x.device)
        picked = x.gather(2, index.clamp(min=0).expand(x.shape[0], x.shape[1], -1))
        return picked.masked_fill(index < 0, hole), index

    def invert(self, seq: Tensor, num_frames: int) -> Tensor:
        """(B, K, S) -> (B, K, T): what `apply` laid out, without the holes."""
        steps = self.step_index(num_frames).to(seq.device)
        return seq.gather(2, steps.expand(seq.shape[0], seq.shape[1], -1))

    def step_index(self, num_frames: int) -> Tensor:
        """The table read backwards, (K, T) int64: the step at which each row's frame stands."""
        index = self.frame_index(self.num_steps(num_frames))
        rows, steps = torch.nonzero(index >= 0, as_tuple=True)
        table = torch.empty(self.num_rows, num_frames, dtype=torch.long)
        table[rows, index[rows, steps]] = steps
        return table


class Parallel(Pattern):
    """All rows of a frame at one step: the fastest, and blind to what the rows of one frame say of each other."""

    def num_steps(self, num_frames: int) -> int:
        return num_frames

    def frame_index(self, num_steps: int) -> Tensor:
        return torch.arange(num_steps).expand(self.num_rows, -1)


class Delay(Pattern):
    """Row k comes k steps later, so that it sees the rows above it of its own frame, for K - 1 steps more in all."""

    def num_steps(self, num_frames: int) -> int:
        return num_frames + self.num_rows - 1 if num_frames else 0

    def frame_index(self, num_steps: int) -> Tensor:
        index = torch.arange(num_steps) - torch.arange(self.num_rows)[:, None]  # (K, S)
        return index.masked_fill(index >= num_steps - self.num_rows + 1, -1).clamp(min=-1)


class Flatten(Pattern):
    """One row at a step: every code sees all before it, at K times the steps."""

    def num_steps(self, num_frames: int) -> int:
        return num_frames * self.num_rows

    def frame_index(self, num_steps: int) -> Tensor:
        steps, rows = torch.arange(num_steps), torch.arange(self.num_rows)[:, None]
        return torch.where(steps % self.num_rows == rows, steps // self.num_rows, -1)


PATTERNS: dict[str, type[Pattern]] = {"parallel": Parallel, "delay": Delay, "flatten": Flatten}
