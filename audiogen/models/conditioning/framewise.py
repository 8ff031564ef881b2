"""Conditions that are vectors: of each frame, or, as the timbre, of a whole recording."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .condition import MAX_EMBEDDINGS, MAX_FEATURES, MAX_VALUES, WAVES, Affine, Condition, framewise, span, waves_of


class Vectors(Condition):
    """Base class of conditions whose values are vectors that go through one linear layer as they are."""

    def __init__(self, config: Any, dim: int):
        super().__init__(config, dim)
        self.linear = Affine(self.num_features, dim)

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2))

    def parse(self, name: str, value: Any) -> Tensor:
        return framewise(name, value, self.num_features)


class Frames(Vectors):
    """Any vector for each frame."""

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            num_features: F, numbers for each frame; they should be about as large as 1.
        """

        num_features: int

        def __post_init__(self) -> None:
            if not 1 <= self.num_features <= MAX_FEATURES:
                raise ConfigError(f"num_features: must be from 1 to {MAX_FEATURES:,}, got {self.num_features}")

    def __init__(self, config: Config, dim: int):
        self.num_features = config.num_features
        super().__init__(config, dim)


class Codes(Condition):
    """Codes for each frame, such as those of an earlier stage: the sum of their embeddings."""

    @dataclass(frozen=True)
    class Config:
        """Settings.

        Attributes:
            num_codes: F, codes for each frame, each of which has its own embeddings.
            codebook_size: V.
        """

        num_codes: int
        codebook_size: int

        def __post_init__(self) -> None:
            for name, value, most in (
                ("num_codes", self.num_codes, MAX_FEATURES),
                ("codebook_size", self.codebook_size, MAX_VALUES),
            ):
                if not 1 <= value <= most:
                    raise ConfigError(f"{name}: must be from 1 to {most:,}, got {value:,}")
            if self.num_codes * self.codebook_size > MAX_EMBEDDINGS:
                raise ConfigError(f"num_codes, codebook_size: their product must be at most {MAX_EMBEDDINGS:,}")

    begins: Tensor

    def __init__(self, config: Config, dim: int):
        super().__init__(config, dim)
        self.num_features = config.num_codes
        self.table = nn.Parameter(torch.zeros(config.num_codes * config.codebook_size, dim))
        self.register_buffer("begins", config.codebook_size * torch.arange(config.num_codes), persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        return nn.functional.embedding(x.transpose(1, 2).long() + self.begins, self.table).sum(dim=2)

    def parse(self, name: str, value: Any) -> Tensor:
        x = framewise(name, value, self.num_features)
        given = x[~x.isnan()]
        if bool(((given != given.round()) | (given < 0) | (given >= self.config.codebook_size)).any()):
            raise ConfigError(f"{name}: codes are whole numbers from 0 to {self.config.codebook_size - 1}")
        return x


class Melody(Vectors):
    """The strength of each of 12 pitch classes, from 0 to 1: C, C sharp, ..., B.

    All zeros mean that there is no melody; NaN means that the melody is not given.
    """

    num_features = 12

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def parse(self, name: str, value: Any) -> Tensor:
        x = super().parse(name, value)
        if bool(((x < 0) | (x > 1)).any()):
            raise ConfigError(f"{name}: the strength of a pitch class is from 0 to 1, got {span(x)}")
        return x


class Loudness(Condition):
    """The level in dB relative to a full-scale sine; below LOW, all are the same."""

    num_features = 1
    LOW, HIGH = -80.0, 0.0

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, config: Any, dim: int):
        super().__init__(config, dim)
        self.linear = Affine(2 * WAVES, dim)

    def embed(self, x: Tensor) -> Tensor:
        return self.linear(waves_of(x.clamp(self.LOW, self.HIGH), self.LOW, self.HIGH))

    def parse(self, name: str, value: Any) -> Tensor:
        x = framewise(name, value, 1)
        given = x[~x.isnan()]
        if len(given) and (float(given.max()) > self.HIGH + 3 or float(given.min()) >= -1):  # not those of a wav
            raise ConfigError(
                f"{name}: levels are in dB below full scale, such as -20, got {span(x)}; a wav has the shape (1, 1, N)"
            )
        return x


class Timbre(Vectors):
    """How a recording sounds as a whole: see `audio.descriptors.timbre`."""

    num_features = 48

    @dataclass(frozen=True)
    class Config:
        """No settings."""


class Position(Condition):
    """The position of a frame in its file: frames since the beginning and until the end, each 0 at that end.

    With it, a model of short sounds can generate complete ones. Distances are encoded on scales that are powers of 4,
    so small ones are resolved most finely.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    scales: Tensor
    num_features = 2
    stays_open = True
    SCALES = tuple(4.0**power for power in range(6))  # frames: 1 to 1,024

    def __init__(self, config: Any, dim: int):
        super().__init__(config, dim)
        self.linear = Affine(2 * len(self.SCALES), dim)
        self.register_buffer("scales", torch.tensor(self.SCALES)[:, None], persistent=False)

    def embed(self, x: Tensor) -> Tensor:
        near = (-x[:, :, None] / self.scales).exp()  # (B, 2, scales, T), 1 at the edge, 0 far away
        return self.linear(near.flatten(1, 2).transpose(1, 2))

    def parse(self, name: str, value: Any) -> Tensor:
        """Return the positions in a file of `value` frames, or in files of these lengths one after another: (2, T)."""
        lengths = value if isinstance(value, tuple) else (value,)
        if not lengths or not all(isinstance(length, int) and length >= 1 for length in lengths):
            raise ConfigError(f"{name}: must be a whole number of frames, 1 or more, got {value!r}")
        return torch.cat([positions(length) for length in lengths], dim=1)


def positions(num_frames: int) -> Tensor:
    """Return the positions of a file's frames: (2, T) float32, frames since its beginning and to its end."""
    since = torch.arange(num_frames, dtype=torch.float32)
    return torch.stack([since, since.flip(0)])
