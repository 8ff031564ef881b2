"""Conditions of a single value: a label, a number, a pitch."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, nearest
from ...utils.pitch import HIGHEST, LOWEST, midi_pitch
from ...utils.text import fold, listed
from .condition import MAX_OCTAVES, MAX_VALUES, WAVES, Affine, Condition, waves_of


class Label(Condition):
    """One of a fixed set of values, such as the name of an instrument."""

    num_features = 1
    one_word = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            values: the values, spelled as at their first occurrence. Case and outer spaces make no difference.
        """

        values: tuple[str, ...]

        def __post_init__(self) -> None:
            if not 0 < len(self.values) <= MAX_VALUES:
                raise ConfigError(f"values: must be from 1 to {MAX_VALUES:,} values, got {len(self.values):,}")
            if len({fold(value) for value in self.values}) < len(self.values):
                raise ConfigError("values: two values differ only in case or outer spaces")

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        self.table = nn.Parameter(torch.zeros(len(config.values), dim))
        self._places = {fold(value): place for place, value in enumerate(config.values)}

    def embed(self, x: Tensor) -> Tensor:
        return nn.functional.embedding(x[:, 0].long(), self.table)

    def parse(self, name: str, value: Any) -> Tensor:
        place = self._places.get(fold(str(value)))
        if place is None:
            meant = nearest(str(value), self.config.values)
            raise ConfigError(f"{name}: there is no {str(value)!r}{meant}; choose one of {listed(self.config.values)}")
        return torch.tensor([[float(place)]])

    def describe(self, x: Tensor) -> str | None:
        return None if x.isnan().any() else self.config.values[int(x[0, 0])]


class Number(Condition):
    """A number, such as a tempo, encoded by sines and cosines (see `waves_of`)."""

    num_features = 1
    one_word = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            low, high: the range of values in the training files.
            gap: the typical difference between neighbouring values; waves as fine as this are added, so that a pitch
                of 60 is told from one of 61. 0 adds none.
        """

        low: float
        high: float
        gap: float = 0.0

        def __post_init__(self) -> None:
            if not self.low <= self.high:
                raise ConfigError(f"low: must be at most high ({self.high:g}), got {self.low:g}")
            if not 0 <= self.gap < math.inf:
                raise ConfigError(f"gap: must be 0 or more, got {self.gap:g}")

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        steps = (config.high - config.low) / config.gap if config.gap else 0.0  # of a gap each, in the range
        self.octaves = min(MAX_OCTAVES, int(math.log2(max(1.0, steps / WAVES))))
        self.linear = Affine(2 * (WAVES + self.octaves), dim)

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(waves_of(x, self.config.low, self.config.high, self.octaves))

    def parse(self, name: str, value: Any) -> Tensor:
        low, high = self.config.low, self.config.high
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise ConfigError(f"{name}: must be a number from {low:g} to {high:g}; got {value!r}")
        return torch.tensor([[number]])

    def describe(self, x: Tensor) -> str | None:
        return None if x.isnan().any() else f"{float(x[0, 0]):g}"


class Pitch(Condition):
    """The pitch of a note: a vector for each MIDI number, and waves over the range, which pitches share.

    Between two MIDI numbers, their vectors are interpolated. All runs have the same vectors, whatever the range of
    their recordings, so those of the base model are taken over.
    """

    num_features = 1
    one_word = True

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            low, high: the range of values in the training files, MIDI numbers.
        """

        low: float = LOWEST
        high: float = HIGHEST

        def __post_init__(self) -> None:
            if not LOWEST <= self.low <= self.high <= HIGHEST:
                raise ConfigError(f"low, high: must be MIDI numbers in order, got {self.low:g} and {self.high:g}")

    semitones: Tensor

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        count = HIGHEST - LOWEST + 1
        self.linear = Affine(count + 2 * WAVES, dim)
        self.register_buffer("semitones", torch.arange(LOWEST, LOWEST + count)[:, None], persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        near = (1 - (x - self.semitones).abs()).clamp_min(0)  # (B, 128, T)
        return self.linear(torch.cat([near.transpose(1, 2), waves_of(x, LOWEST, HIGHEST)], dim=2))

    def parse(self, name: str, value: Any) -> Tensor:
        low, high, pitch = self.config.low, self.config.high, midi_pitch(str(value))
        if not low <= pitch <= high:
            raise ConfigError(f"{name}: must be a pitch from {low:g} to {high:g}, such as {low:g} or C4; got {value!r}")
        return torch.tensor([[pitch]])

    def describe(self, x: Tensor) -> str | None:
        return None if x.isnan().any() else f"{float(x[0, 0]):g}"

    @classmethod
    def has_same_weights(cls, config: Any, other: Any) -> bool:
        return isinstance(config, cls.Config) and isinstance(other, cls.Config)
