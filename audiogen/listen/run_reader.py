"""What a run folder has to show: its settings, its metrics, its samples. Only files are read; nothing is loaded."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..runs.config import FORMAT
from ..runs.event_log import read_metrics


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
    """Reads a run folder, finished or not; what is missing is left out.

    Raises:
        RunError: it is no run folder, or its config.json is damaged or of a newer format.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        version = config["format"]
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{path}: is no run folder, it has no config.json; give the folder that audiogen train wrote with --out"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: is damaged ({error}); restore it, or train the run anew") from error
    if not isinstance(version, int) or version > FORMAT:
        raise RunError(f"{file}: has format {version}, this audiogen reads up to {FORMAT}; upgrade audiogen")
    if "backbone" not in config:
        raise RunError(f"{path}: holds a front-end or a cache, not a run; give the folder that audiogen train wrote")
    try:
        events = [event for event in read_metrics(path) if isinstance(event, dict)]
    except (OSError, ValueError) as error:
        raise RunError(f"{path / 'metrics.jsonl'}: can't be read ({error}); remove it to go without") from error
    return RunFolder(path, config, events, [read_sample(wav) for wav in sorted((path / "samples").glob("*.wav"))])


def read_sample(wav: Path) -> Sample:
    """A WAV and its .json; one that is missing or damaged says nothing."""
    try:
        notes = json.loads(wav.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
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
