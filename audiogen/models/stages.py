"""Stages: a model's frames conditioned on those of another front-end, which a model before it generates.

Both front-ends have a constant frame rate, so a frame is known to begin at a certain time. A frame of the later stage
is divided evenly into as few parts as needed to miss no frame of the earlier stage, and gets the frame in which each
part begins:

    earlier, 50 Hz    | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
    later, 20 Hz      |    0    |    1    |    2    |      3 parts: 0 0 1, 2 3 4 (rounded down: 2.5, 3.33, 4.17), ...

So what a frame of the later stage is conditioned on has begun when it ends, and nothing is known of what comes later.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..errors import ConfigError
from ..spec import Spec


@dataclass(frozen=True)
class Alignment:
    """Which frames of an earlier stage belong to each frame of a later one, in exact integers.

    Args:
        earlier: spec of the front-end whose codes or frames are the condition.
        later: spec of the front-end whose frames are conditioned.

    Raises:
        ConfigError: the frame rate of one of them varies.

    Example:
        >>> from audiogen import TokenSpec
        >>> alignment = Alignment(TokenSpec(16000, 320, 1, 100), TokenSpec(16000, 800, 4, 256))
        >>> alignment.frames(torch.arange(2))
        tensor([[0, 0, 1],
                [2, 3, 4]])
    """

    earlier: Spec
    later: Spec

    def __post_init__(self) -> None:
        if self.earlier.hop_length is None or self.later.hop_length is None:
            raise ConfigError("stages: need front-ends with a constant frame rate; choose others")

    @property
    def per_frame(self) -> int:
        """Frames of the earlier stage that a frame of the later one gets."""
        return max(1, math.ceil(self._ratio))

    @property
    def num_values(self) -> int:
        """Values that a frame of the later stage gets: codes, or features of frames."""
        return self.per_frame * self.earlier.num_channels

    @property
    def _ratio(self) -> Fraction:
        """Frames of the earlier stage in the time of one of the later stage."""
        assert self.earlier.hop_length is not None and self.later.hop_length is not None
        return Fraction(
            self.later.hop_length * self.earlier.sample_rate, self.later.sample_rate * self.earlier.hop_length
        )

    def frames(self, frames: Tensor) -> Tensor:
        """Return the frames of the earlier stage for frames (S,) int64 of the later one: (S, per_frame) int64."""
        step = self._ratio / self.per_frame
        parts = frames[:, None] * self.per_frame + torch.arange(self.per_frame, device=frames.device)
        return parts * step.numerator // step.denominator

    def num_needed(self, num_frames: int) -> int:
        """Return how many frames of the earlier stage the first `num_frames` of the later one need."""
        return int(self.frames(torch.tensor([num_frames - 1]))[0, -1]) + 1 if num_frames else 0

    def values(self, x: Tensor, frames: Tensor) -> Tensor:
        """Pick what belongs to frames of the later stage.

        Args:
            x: (..., C, T), codes or frames of the earlier stage.
            frames: (S, per_frame) int64, positions in x.

        Returns:
            (..., num_values, S) float32: C values of each of the `per_frame` frames, one frame after another.
        """
        picked = x[..., frames].float()  # (..., C, S, per_frame)
        return picked.movedim(-1, -3).flatten(-3, -2)


class Arriving:
    """Values (B, F, T) of a condition that an earlier stage generates while a later stage asks for them.

    Frames must be asked for in order; earlier ones are forgotten, so memory does not grow.

    Args:
        pieces: codes or frames (B, C, n) of the earlier stage, each drawn when it is needed.
        alignment: of the two stages.
        batch_size: B.
        num_frames: T of the later stage; beyond the last one, its values hold, as elsewhere.
    """

    def __init__(self, pieces: Iterator[Tensor], alignment: Alignment, batch_size: int, num_frames: int):
        self.batch_size, self.num_features, self.num_frames = batch_size, alignment.num_values, num_frames
        self._pieces, self._alignment = pieces, alignment
        self._kept, self._begin = torch.zeros(batch_size, alignment.earlier.num_channels, 0), 0  # frames [begin, ...)

    def __len__(self) -> int:
        return self.batch_size

    def at(self, frames: Tensor) -> Tensor:
        """Return the values at frames (S,) of the later stage: (B, F, S), NaN where they are forgotten."""
        wanted = self._alignment.frames(frames.clamp(max=self.num_frames - 1))  # (S, per_frame)
        first, last = (int(frame) for frame in wanted.aminmax())
        self._pull(last + 1)
        place, count = wanted - self._begin, self._kept.shape[2]
        if not count:
            return torch.full((self.batch_size, self.num_features, len(frames)), math.nan, device=frames.device)
        known = ((place >= 0) & (place < count)).all(dim=1)
        values = self._alignment.values(self._kept, place.clamp(0, count - 1)).masked_fill(~known, math.nan)
        forgotten = min(max(0, first - self._begin), count)
        self._kept, self._begin = self._kept[:, :, forgotten:], self._begin + forgotten
        return values

    def _pull(self, end: int) -> None:
        """Generate the frames before `end`, as far as there are any."""
        # The stage runs as it would by itself, whatever mode the later stage runs in.
        with torch.inference_mode(False), torch.no_grad():
            while self._begin + self._kept.shape[2] < end and (piece := next(self._pieces, None)) is not None:
                self._kept = torch.cat([self._kept.to(piece), piece], dim=2) if self._kept.shape[2] else piece
