"""The event log of a run: metrics.jsonl, one event per line, which callbacks receive as well."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import RunError
from ..utils.files import atomic_write_text, cannot_write, open_regular
from ..utils.json_files import LISTS, parse_json
from .callbacks import Callback, choose_loggers


class Metrics:
    """Append events to folder/metrics.jsonl.

    Args:
        folder: the run folder.
        after: drop events of later steps and the final report, which a resumed run writes again; None starts a new
            file.
        callbacks: receive the events; None for the default logger.
        config: contents of the run's config.json, for the callbacks.

    Attributes:
        stop: whether a callback has asked to end training.
    """

    stop = False

    def __init__(
        self,
        folder: Path,
        after: int | None = None,
        callbacks: Sequence[Callback] | None = None,
        config: dict[str, Any] | None = None,
    ):
        self.path = folder / "metrics.jsonl"
        kept = (
            []
            if after is None
            else [
                event
                for event in read_metrics(folder)
                if event.get("event") != "final" and type(step := event.get("step", 0)) is int and step <= after
            ]
        )
        atomic_write_text(self.path, "".join(json.dumps(event) + "\n" for event in kept))
        self.callbacks = choose_loggers(None) if callbacks is None else callbacks
        for callback in self.callbacks:
            callback.on_start(folder, config or {}, after)

    def write(self, event: str, **values: Any) -> None:
        """Append an event.

        Args:
            event: kind of event, such as "train".
            values: JSON values; what is not finite is written as null.

        Raises:
            AudiogenError: the file can't be written.
        """
        # NaN and infinity are not valid JSON, and would make the line unreadable for others.
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps({"event": event, **values}) + "\n"
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise cannot_write(self.path, error, 0) from error
        for callback in self.callbacks:
            if callback.on_event({"event": event, **values}) is True:
                self.stop = True

    def evaluated(self, model: nn.Module, step: int) -> None:
        """Pass on an evaluated model to the callbacks, in evaluation mode."""
        training = model.training
        model.eval()
        for callback in self.callbacks:
            callback.on_evaluation(model, step)
        model.train(training)

    def audio(self, name: str, wav: Tensor, sample_rate: int, step: int) -> None:
        """Pass on a generated sound (C, N) to the callbacks."""
        for callback in self.callbacks:
            callback.on_audio(name, wav, sample_rate, step)

    def close(self) -> None:
        """Say to the callbacks that the run is over."""
        for callback in self.callbacks:
            callback.on_end()


class Discarded(Metrics):
    """Metrics that are not written, of a process that trains together with the one that writes them."""

    callbacks = ()

    def __init__(self):
        """Write nothing."""

    def write(self, event: str, **values: Any) -> None:
        """Do nothing."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the events of folder/metrics.jsonl, skipping lines that are not events, such as one cut off by a crash.

    Returns:
        The events; an empty list if there is no file.

    Raises:
        RunError: the file can't be read.
    """
    path, events = folder / "metrics.jsonl", []
    try:
        with open_regular(path) as file:
            lines = file.read(LISTS).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path}: can't be read ({error.strerror}); remove it to go without") from error
    for line in lines:
        with suppress(ValueError):
            event = parse_json(line)
            if isinstance(event, dict):
                events.append(event)
    return events


def seconds_of_training(folder: Path) -> float:
    """Return how long a run was trained; infinity if its log does not say.

    Raises:
        RunError: as in `read_metrics`.
    """
    found = [seconds for event in read_metrics(folder) if isinstance(seconds := event.get("seconds"), int | float)]
    return max(found, default=math.inf)
