"""Choose the conditions that a run learns from labels, and give their values for each crop."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..config import part_from_dict
from ..errors import ConfigError
from ..models.conditioning import CONDITIONS, Condition, Conditions, Label, Position, positions
from ..utils.text import fold
from .labels import Column, Labels, describe_labels
from .split import Split

#: Files of at most this many seconds are complete sounds; the condition `position` lets a model learn where they end.
ONE_SHOT_SECONDS = 4.0
NONE, POSITION = "none", "position"


def choose_conditions(labels: Labels, sides: Split, asked: Sequence[str] | None = None) -> dict[str, Any]:
    """Choose the conditions of a run: the config of each by its name.

    Args:
        labels: the labels of the files.
        sides: the split; values that no training file has are not learned.
        asked: names given by the user; ["none"] for none. By default all labels that can be learned, and `position` if
            the files are short sounds.

    Raises:
        ConfigError: a name is unknown, or can't be learned.
    """
    columns = {column.name: column for column in describe_labels(labels, sides)}
    if asked is None:
        found = {name: _config(column) for name, column in columns.items() if column.settings is not None}
        seconds = sorted(part.seconds for part in sides.train)
        if found and seconds[len(seconds) // 2] <= ONE_SHOT_SECONDS:
            found.setdefault(POSITION, Position.Config())
        return found
    if list(asked) == [NONE]:
        return {}
    found = {}
    for name in asked:
        if name == POSITION and name not in columns:
            found[name] = Position.Config()
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
    """

    def __init__(self, configs: Mapping[str, Any], labels: Labels):
        kinds = {part.Config: part for part in CONDITIONS.values()}
        self.parts: dict[str, Condition] = {name: kinds[type(config)](config, 1) for name, config in configs.items()}
        self.labels = labels
        self._constant: dict[str, dict[str, float]] = {}

    def of_file(self, sha256: str) -> dict[str, float]:
        """Return the value of each constant condition: NaN if the file has none, or one that was not learned."""
        if sha256 not in self._constant:
            self._constant[sha256] = self._parse(self.labels.files.get(sha256, {}))
        return self._constant[sha256]

    def _parse(self, row: Mapping[str, str]) -> dict[str, float]:
        found = {}
        for name, part in self.parts.items():
            if not isinstance(part, Position):
                try:
                    found[name] = float(part.parse(name, row[name])) if name in row else math.nan
                except ConfigError:
                    found[name] = math.nan
        return found

    def of_item(self, sha256: str) -> Conditions:
        """Return the constant conditions of a file, (1, 1, 1) each; evaluation uses these."""
        return {name: torch.full((1, 1, 1), value) for name, value in self.of_file(sha256).items()}

    def of_pieces(self, pieces: Sequence[tuple[str, int, int, int]]) -> dict[str, np.ndarray]:
        """Return the conditions of a crop that consists of pieces of files, (F, T) each.

        Args:
            pieces: for each piece the SHA-256 of its file, the number of frames of the file, and the first frame and
                the number of frames of the piece.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.parts}
        for sha256, num_frames, first, length in pieces:
            constant = self.of_file(sha256)
            for name, columns in found.items():
                if name in constant:
                    columns.append(np.full((1, length), constant[name], np.float32))
                else:
                    columns.append(positions(num_frames)[:, first : first + length].numpy())
        return {name: np.concatenate(columns, axis=1) for name, columns in found.items()}

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
