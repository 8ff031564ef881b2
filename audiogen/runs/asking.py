"""Turn the labels that a user asks for into the conditions of a request, filling in the rest from training files."""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Labels, Part, described_value
from ..data.descriptors import DESCRIPTORS
from ..errors import ConfigError
from ..models.conditioning import Condition, Conditions, Text
from ..spec import Spec
from ..utils.text import fold, listed

log = logging.getLogger("audiogen")


def conditions_like(
    parts: Mapping[str, Condition], path: Path, row: Mapping[str, str], num_frames: int | None
) -> dict[str, Any]:
    """Return what to ask of the model for sounds like a recording: a value for each condition, None for "not given".

    Args:
        parts: the conditions of the model.
        path: the recording.
        row: its labels.
        num_frames: its length; None if frames have no fixed length.
    """
    found: dict[str, Any] = {}
    for name, condition in parts.items():
        if type(condition) in DESCRIPTORS:
            found[name] = path
        elif condition.stays_open:
            found[name] = num_frames
        else:
            found[name] = None
            with suppress(ConfigError):
                if name in row:
                    condition.parse(name, row[name])
                    found[name] = row[name]
    return found


@dataclass(frozen=True)
class Asked:
    """The conditions of each item of a request.

    Attributes:
        parts: the conditions of the model by name.
        conditions: values by name, (B, F, T or 1).
        words: for each item, its values in words by name, without those that are not given.
        durations: for each item, the seconds of the training files that have its labels, in an order drawn by its seed;
            first that of the file that its labels were completed from.
    """

    parts: Mapping[str, Condition]
    conditions: Conditions
    words: list[dict[str, str]]
    durations: list[list[float]]


def ask(
    parts: Mapping[str, Condition],
    asked: Mapping[str, Any] | None,
    seeds: Sequence[int],
    training: Sequence[Part],
    labels: Labels,
    spec: Spec,
) -> Asked:
    """Complete the given labels of each item with those of a random training file that has the given ones.

    The item's seed draws the file. So labels and their combinations are as frequent as in the folder. With a text that
    is the caption of no training file, labels that are not given stay so, since those of any file could contradict it.

    Args:
        parts: the conditions of the model.
        asked: values by name: one for all items, a list of one for each, or None for "not given". A melody or a
            loudness is an array (F, T), a wav (1, 1, N) at the run's rate, or the path of a sound file. The run's only
            text may be called `text`, whatever its own name.
        seeds: seeds of the items.
        training: the training files.
        labels: labels of the training files.
        spec: the front-end's spec.

    Raises:
        ConfigError: a name or a value is unknown.
        AudioReadError: a sound file can't be read.
    """
    texts, count = [name for name, condition in parts.items() if isinstance(condition, Text)], len(seeds)
    names = {fold(name): name for name in parts}
    if len(texts) == 1:
        names.setdefault("text", texts[0])
    asked = {names.get(fold(name), name): value for name, value in (asked or {}).items()}
    every = {name: value if isinstance(value, list | tuple) else [value] * count for name, value in asked.items()}
    for name, several in every.items():
        if name not in parts:
            raise ConfigError(f"{name}: the run has no such condition; it has {listed(tuple(parts)) or 'none'}")
        if len(several) != count:
            raise ConfigError(
                f"{name}: one value for each of {count} items is needed, or one for all, got {len(several)}"
            )
    for name in texts:
        if parts[name].config.encoder == "bytes" and (new := _new_words(name, every, training, labels)):
            _warn_once(f"{name}: no caption of the training files has these words, so they mean little: {listed(new)}")
    given = {name: _converted(parts[name], several, spec) for name, several in every.items()}
    items: list[dict[str, Tensor]] = []
    durations: list[list[float]] = []
    for i, seed in enumerate(seeds):
        values = {name: several[i] for name, several in given.items()}
        fitting = _fitting(values, parts, training, labels)
        unheard = not fitting and any(values.get(name) is not None for name in texts)
        fitting = fitting or training
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64)))
        part = fitting[int(rng.integers(len(fitting)))] if fitting else None
        row = {} if part is None else labels.files.get(part.file.sha256, {})
        for name, condition in parts.items():
            if not condition.stays_open and name not in values and not unheard:
                values[name] = _known(name, condition, row, rng)
        alike = _fitting(values, parts, training, labels) or fitting
        order = rng.permutation(len(alike)) if alike else []
        durations.append(([part.seconds] if part else []) + [alike[j].seconds for j in order])
        items.append({name: parts[name].parse(name, value) for name, value in values.items() if value is not None})
    words: list[dict[str, str]] = []
    for i, item in enumerate(items):
        said = {name: parts[name].describe(x) or _file(every.get(name), i) for name, x in item.items()}
        words.append({name: word for name, word in said.items() if word})
    return Asked(parts, stacked(items, parts), words, durations)


@lru_cache(64)
def _warn_once(line: str) -> None:
    """Log a warning once: a command asks several times for the same conditions."""
    log.warning("%s", line)


def _new_words(name: str, asked: Mapping[str, Sequence[Any]], training: Sequence[Part], labels: Labels) -> list[str]:
    """Return the words asked for that no caption of the training files has; none if no file has a caption."""
    wanted = dict.fromkeys(word for text in asked.get(name, ()) if text is not None for word in _words(str(text)))
    captions = (labels.files.get(part.file.sha256, {}).get(name, "") for part in training) if wanted else ()
    known = {word for caption in captions for word in _words(caption)}
    return [word for word in wanted if word not in known] if known else []


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", fold(text))


def _converted(condition: Condition, several: Sequence[Any], spec: Spec) -> list[Any]:
    """Replace recordings among the values of all items by their descriptors; compute each once."""
    found: dict[int, Any] = {}
    for value in several:
        if id(value) not in found:
            found[id(value)] = described_value(condition, value, spec)
    return [found[id(value)] for value in several]


def _file(several: Sequence[Any] | None, i: int) -> str | None:
    """Return the name of the sound file that is asked of item i; None if it is none."""
    return str(several[i]) if several is not None and isinstance(several[i], str | Path) else None


def _fitting(
    values: Mapping[str, Any], parts: Mapping[str, Condition], training: Sequence[Part], labels: Labels
) -> list[Part]:
    """Return the training files that have the labels asked for."""
    asked = {name: value for name, value in values.items() if value is not None and parts[name].one_word}
    wanted = {name: parts[name].parse(name, value).nan_to_num(-1) for name, value in asked.items()}

    def fits(part: Part) -> bool:
        row = labels.files.get(part.file.sha256, {})
        with suppress(ConfigError):  # of a value that was not learned
            return all(
                name in row and parts[name].parse(name, row[name]).nan_to_num(-1).equal(x) for name, x in wanted.items()
            )
        return False

    return [part for part in training if fits(part)]


def _known(name: str, condition: Condition, row: Mapping[str, str], rng: np.random.Generator) -> str | None:
    """Return a file's value; where no file is known, any value of a label; None where there is none."""
    if name in row:
        try:
            condition.parse(name, row[name])
            return row[name]
        except ConfigError:  # of a file whose value was not learned
            return None
    values = getattr(condition.config, "values", None)
    return values[int(rng.integers(len(values)))] if values and not row else None


def stacked(items: Sequence[Mapping[str, Tensor]], parts: Mapping[str, Condition]) -> Conditions:
    """Join the values (F, T) of items: (B, F, T), NaN after the end of a shorter item and where one is missing."""
    found = {}
    for name in parts:
        given = [item.get(name) for item in items]
        longest = max((x.shape[1] for x in given if x is not None), default=0)
        if not longest:
            continue
        joined = torch.full((len(items), parts[name].num_features, longest), float("nan"))
        for row, x in zip(joined, given, strict=True):
            if x is not None:
                row[:, : x.shape[1]] = x
        found[name] = joined
    return found
