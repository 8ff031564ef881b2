"""Read settings, metrics and samples from a run folder, without loading the model."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..runs.event_log import read_metrics
from ..runs.folder import holds_run, read_settings, read_stages
from ..utils.json_files import read_json


@dataclass(frozen=True)
class Sample:
    """A WAV in samples/ with the contents of its .json; kind is "" without a .json."""

    path: Path
    kind: str = ""
    source: str | None = None
    seed: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    prompt_seconds: float | None = None
    step: int | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    varied: str | None = None
    heard: dict[str, Any] = field(default_factory=dict)
    meaning: str | None = None


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run folder.

    Attributes:
        path: the folder.
        config: contents of config.json.
        events: contents of metrics.jsonl, in order.
        samples: samples, ordered by name.
    """

    path: Path
    config: dict[str, Any]
    events: list[dict[str, Any]]
    samples: list[Sample]

    def last(self, event: str) -> dict[str, Any]:
        """Return the last event of a kind, empty if there is none."""
        return next((e for e in reversed(self.events) if e.get("event") == event), {})

    def curve(self, event: str) -> tuple[list[float], list[float]]:
        """Return (steps, losses) of a kind of event."""
        points = [(number(e.get("step")), number(e.get("loss"))) for e in self.events if e.get("event") == event]
        whole = [(x, y) for x, y in points if x is not None and y is not None]
        return [x for x, _ in whole], [y for _, y in whole]

    def kind(self, part: str) -> str:
        """Return the kind of a part ("frontend", "backbone" or "pattern")."""
        values = self.config.get(part)
        return str(values.get("kind", "?")) if isinstance(values, dict) else "?"


def stage_folders(path: Path) -> list[Path]:
    """Return the folders of a run's stages, as far as they have been started; of a run without stages, its own.

    Raises:
        RunError: it is not a run folder, or its config.json is damaged or of a newer format.
    """
    return [path / name for name in read_stages(path) if holds_run(path / name)] or [path]


def read_folder(path: Path) -> RunFolder:
    """Read a run folder, finished or not.

    Raises:
        RunError: it is not a run folder, or its config.json or metrics.jsonl is damaged or of a newer format.
    """
    samples = [read_sample(wav) for wav in sorted((path / "samples").glob("*.wav"))]
    return RunFolder(path, read_settings(path), read_metrics(path), samples)


def read_sample(wav: Path) -> Sample:
    """Read the .json of a WAV; ignore it if it is missing or damaged."""
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
        of_type("conditions", dict) or {},
        of_type("varied", str),
        of_type("heard", dict) or {},
        of_type("meaning", str),
    )


def number(value: Any) -> float | None:
    """Return the value if it is a finite number, else None."""
    # math.isfinite raises for integers too large for a float.
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return value if good else None
