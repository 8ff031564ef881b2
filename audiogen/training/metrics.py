"""metrics.jsonl, a line per event, and TensorBoard beside it where that is installed."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import atomic_write_text


class Metrics:
    """Appends events to folder/metrics.jsonl.

    Args:
        folder: the run folder.
        after: lines of later steps are dropped, since a resumed run makes them again; None starts a new file.
    """

    def __init__(self, folder: Path, after: int | None = None):
        self.path = folder / "metrics.jsonl"
        kept = [] if after is None else [e for e in read_metrics(folder) if e.get("step", 0) <= after]
        atomic_write_text(self.path, "".join(json.dumps(event) + "\n" for event in kept))
        self._board = _tensorboard(folder / "tensorboard", after)

    def write(self, event: str, **values: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")
        if self._board and "step" in values:
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, values["step"])

    def audio(self, name: str, wav: Tensor, sample_rate: int, step: int) -> None:
        """(1, N) for TensorBoard's audio tab."""
        if self._board:
            self._board.add_audio(name, wav, step, sample_rate=sample_rate)

    def close(self) -> None:
        if self._board:
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The events of folder/metrics.jsonl; a last line that was cut off by a crash is left out."""
    events = []
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def _tensorboard(folder: Path, after: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=None if after is None else after + 1)
