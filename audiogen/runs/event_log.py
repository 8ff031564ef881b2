"""The event log of a run: metrics.jsonl, one event per line; also TensorBoard, if it is installed."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import RunError
from ..utils.files import atomic_write_text, cannot_write, open_regular
from ..utils.json_files import LISTS, parse_json


class Metrics:
    """Append events to folder/metrics.jsonl.

    Args:
        folder: the run folder.
        after: drop events of later steps and the final report, which a resumed run writes again; None starts a new
            file.
    """

    def __init__(self, folder: Path, after: int | None = None):
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
        self._board = _tensorboard(folder / "tensorboard", after)

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
        if self._board and "step" in values:
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, values["step"])

    def audio(self, name: str, wav: Tensor, sample_rate: int, step: int) -> None:
        """Add a wav (1, N) to TensorBoard."""
        if self._board:
            self._board.add_audio(name, wav, step, sample_rate=sample_rate)

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        if self._board:
            self._board.close()


class Discarded(Metrics):
    """Metrics that are not written, of a process that trains together with the one that writes them."""

    def __init__(self):
        self._board = None

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


def _tensorboard(folder: Path, after: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=None if after is None else after + 1)


def seconds_of_training(folder: Path) -> float:
    """Return how long a run was trained; infinity if its log does not say.

    Raises:
        RunError: as in `read_metrics`.
    """
    found = [seconds for event in read_metrics(folder) if isinstance(seconds := event.get("seconds"), int | float)]
    return max(found, default=math.inf)
