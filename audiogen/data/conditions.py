"""Choose the conditions that a run learns from labels, and give their values for each crop."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ..config import part_from_dict
from ..errors import ConfigError
from ..models.conditioning import CONDITIONS, Condition, Conditions, Label, Position, positions
from ..utils.text import fold
from .descriptors import StoredDescriptor, is_descriptor
from .labels import Column, Labels, describe_labels
from .sequences import Piece
from .split import Split
from .stages import StageFrames

#: Files of at most this many seconds are complete sounds; the condition `position` lets a model learn where they end.
ONE_SHOT_SECONDS = 4.0
NONE, POSITION = "none", "position"


def choose_conditions(labels: Labels, sides: Split, asked: Sequence[str] | None = None) -> dict[str, Any]:
    """Choose the conditions of a run: the config of each by its name.

    Args:
        labels: the labels of the files.
        sides: the split; values that no training file has are not learned.
        asked: names given by the user, of labels or descriptors; ["none"] for none. By default all labels that can be
            learned, and `position` if half of the files are short sounds.

    Raises:
        ConfigError: a name is unknown, or can't be learned.
    """
    columns = {column.name: column for column in describe_labels(labels, sides)}
    if asked is None:
        found = {name: _config(column) for name, column in columns.items() if column.settings is not None}
        seconds = sorted(part.seconds for part in sides.train)
        if seconds[len(seconds) // 2] <= ONE_SHOT_SECONDS:
            found.setdefault(POSITION, Position.Config())
        return found
    if list(asked) == [NONE]:
        return {}
    found = {}
    for name in asked:
        if (name == POSITION or is_descriptor(name)) and name not in columns:
            found[name] = CONDITIONS[name].Config()
            continue
        if name not in columns:
            there = ", ".join(columns) or "none; write a metadata.csv (see audiogen doctor), or give --label-pattern"
            raise ConfigError(f"--condition: the files have no label {name!r}; found: {there}")
        column = columns[name]
        config = _config(column)
        if config is None and len(column.counts) > 1:  # the user named it, so learn it even if its values are rare
            in_train = {fold(text) for text in labels.column(name, sides.train)}
            values = tuple(value for value in column.counts if fold(value) in in_train)
            config = Label.Config(values) if len(values) > 1 else None
        if config is None:
            raise ConfigError(f"--condition: nothing can be learned from {name}: {column.reason}")
        found[name] = config
    return found


def _config(column: Column) -> Any:
    return None if column.settings is None else part_from_dict(column.settings, CONDITIONS, column.name)


class FileConditions:
    """The values of a run's conditions for its files.

    Args:
        configs: config of each condition by name.
        labels: the labels of the files.
        framewise: the descriptors of the files, for each condition that is one, and the codes of an earlier stage.
    """

    def __init__(
        self,
        configs: Mapping[str, Any],
        labels: Labels,
        framewise: Mapping[str, StoredDescriptor | StageFrames] = MappingProxyType({}),
    ):
        kinds = {part.Config: part for part in CONDITIONS.values()}
        self.parts: dict[str, Condition] = {name: kinds[type(config)](config, 1) for name, config in configs.items()}
        self.labels, self.framewise = labels, dict(framewise)
        self._constant: dict[str, dict[str, np.ndarray]] = {}

    @property
    def follows_stage(self) -> bool:
        """Whether the codes of an earlier stage are among the conditions."""
        return any(isinstance(stored, StageFrames) for stored in self.framewise.values())

    def of_file(self, sha256: str) -> dict[str, np.ndarray]:
        """Return the value (F, 1) of each constant condition; NaN if the file has none, or one that was not learned."""
        if sha256 not in self._constant:
            self._constant[sha256] = self._parse(self.labels.files.get(sha256, {}))
        return self._constant[sha256]

    def _parse(self, row: Mapping[str, str]) -> dict[str, np.ndarray]:
        found = {}
        for name, part in self.parts.items():
            if not isinstance(part, Position) and name not in self.framewise:
                found[name] = np.full((part.num_features, 1), np.nan, np.float32)
                if name in row:
                    with suppress(ConfigError):
                        found[name] = part.parse(name, row[name]).numpy()
        return found

    def of_item(self, piece: Piece) -> Conditions:
        """Return the conditions of a piece of a file, (1, F, 1 or T) each; evaluation uses these."""
        found = {**self.of_file(piece.sha256), **self._described(piece)}
        return {name: torch.from_numpy(found[name])[None] for name in self.parts if name in found}

    def of_pieces(self, pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
        """Return the conditions of a crop that consists of pieces of files, (F, T) each."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.parts}
        for piece in pieces:
            constant, described = self.of_file(piece.sha256), self._described(piece)
            for name, columns in found.items():
                if name in constant:
                    columns.append(constant[name].repeat(piece.length, axis=1))
                elif name in described:
                    columns.append(described[name])
                else:
                    end = piece.first + piece.length
                    columns.append(positions(piece.num_frames)[:, piece.first : end].numpy())
        return {name: np.concatenate(columns, axis=1) for name, columns in found.items()}

    def _described(self, piece: Piece) -> dict[str, np.ndarray]:
        sha256, _, first, length = piece
        return {name: stored.frames(sha256, first, length) for name, stored in self.framewise.items()}

    def drop(self, values: dict[str, np.ndarray], probability: float, rng: np.random.Generator) -> None:
        """Set conditions (B, F, T) to NaN, in place: all conditions of some items, and single ones of others.

        Args:
            values: conditions by name.
            probability: probability of dropping all conditions of an item, and of dropping each single one.
            rng: source of random numbers.
        """
        B = len(next(iter(values.values())))
        every = rng.random(B) < probability
        for name, x in values.items():
            each = 0.5 if self.parts[name].stays_open else probability
            x[every | (rng.random(B) < each)] = math.nan
