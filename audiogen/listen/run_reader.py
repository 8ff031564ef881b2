"""What a run folder has to show: its settings, its metrics, its samples. Only files are read; nothing is loaded."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..runs.event_log import read_metrics
from ..runs.folder import read_settings
from ..utils.json_files import read_json


@dataclass(frozen=True)
class Sample:
    """A WAV of samples/ with what its .json says; None where nothing is said, kind "" where there is no .json."""

    path: Path
    kind: str = ""
    source: str | None = None
    seed: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    prompt_seconds: float | None = None
    step: int | None = None


@dataclass(frozen=True)
class RunFolder:
    """One run as it lies on disk.

    Attributes:
        config: config.json.
        events: metrics.jsonl, in order.
        samples: in the order of their names.
    """

    path: Path
    config: dict[str, Any]
    events: list[dict[str, Any]]
    samples: list[Sample]

    def last(self, event: str) -> dict[str, Any]:
        """The last event of a kind, empty if there is none."""
        return next((e for e in reversed(self.events) if e.get("event") == event), {})

    def curve(self, event: str) -> tuple[list[float], list[float]]:
        """(steps, losses) of an event."""
        points = [(number(e.get("step")), number(e.get("loss"))) for e in self.events if e.get("event") == event]
        whole = [(x, y) for x, y in points if x is not None and y is not None]
        return [x for x, _ in whole], [y for _, y in whole]

    def kind(self, part: str) -> str:
        """The kind of the front-end, backbone or pattern."""
        values = self.config.get(part)
        return str(values.get("kind", "?")) if isinstance(values, dict) else "?"


def read_folder(path: Path) -> RunFolder:
    """Read a run folder, finished or not; what is missing is left out.

    Raises:
        RunError: it is no run folder, or its config.json or metrics.jsonl is damaged or of a newer format.
    """
    samples = [read_sample(wav) for wav in sorted((path / "samples").glob("*.wav"))]
    return RunFolder(path, read_settings(path), read_metrics(path), samples)


def read_sample(wav: Path) -> Sample:
    """A WAV and its .json; one that is missing or damaged says nothing."""
    try:
        notes = read_json(wav.with_suffix(".json"), RunError, "remove it")
    except (FileNotFoundError, RunError):
        return Sample(wav)
    if not isinstance(notes, dict):
        return Sample(wav)

    def of_type(key: str, kind: type) -> Any:
        return notes[key] if isinstance(notes.get(key), kind) and not isinstance(notes[key], bool) else None

    return Sample(
        wav,
        of_type("kind", str) or "",
        of_type("source", str),
        of_type("seed", int),
        of_type("sampling", dict) or {},
        of_type("prompt", str),
        number(notes.get("prompt_seconds")),
        of_type("step", int),
    )


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    # Compared, not asked by math.isfinite: an integer may be too large for a float.
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return value if good else None
