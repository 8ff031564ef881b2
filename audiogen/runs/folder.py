"""The files of a run folder."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import from_dict
from ..data import Part, Split
from ..errors import AudiogenError, ConfigError, RunError
from ..frontends import (
    CONFIG_FILE,
    NEWEST_FORMAT,
    REMEDY,
    Frontend,
    read_config_file,
    require_same_settings,
    save_frontend,
)
from ..models.sequence_model import SequenceModel
from ..spec import Spec
from ..utils.files import atomic_write_json, check_holds_config
from ..utils.json_files import LISTS, damaged, read_format
from ..utils.tensors import read_tensors, write_tensors
from .build import blank_model
from .config import FORMAT, RunConfig, check_name

log = logging.getLogger("audiogen")

#: The latest result of `audiogen evaluate`.
REPORT_FILE = "report.json"
#: The groups of config.json that the weights depend on; conditions only if there are any.
SETTINGS = ("frontend", "backbone", "pattern", "conditions")


def start_run(folder: Path, config: RunConfig, frontend: Frontend) -> None:
    """Create a run folder. The full config.json is written last: a folder that has it can be trained and resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    save_frontend(frontend, folder)
    atomic_write_json(folder / "config.json", config.to_dict())


def write_stages(folder: Path, names: Sequence[str]) -> None:
    """Write the config.json of a run with stages: format 2, whose only setting is their names in order."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(folder / CONFIG_FILE, {"format": NEWEST_FORMAT, "stages": list(names)})


def read_stages(folder: Path) -> list[str]:
    """Return the names of a run's stages, each of which is a run in the folder of its name; none for other runs.

    Raises:
        RunError: config.json is missing, damaged or of a newer format.
    """
    check_holds_config(folder)
    path = folder / CONFIG_FILE
    values = read_format(path, NEWEST_FORMAT, RunError, REMEDY)
    names = values.get("stages", [])
    try:
        if not isinstance(names, list) or (names or "stages" in values) and len(names) < 2:
            raise ConfigError("stages: a list of two names or more is needed")
        if "stages" in values and (extra := sorted(values.keys() - {"format", "stages"})):
            raise ConfigError(f"{extra[0]}: unknown setting; those of a stage are in its own folder")
        for name in names:
            check_name(name, "stages")
        if len(set(names)) < len(names):
            raise ConfigError("stages: two have the same name")
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from error
    return names


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run, or a config.json that must not be overwritten.

    Raises:
        RunError: the folder holds a saved front-end.
    """
    if not (folder / "config.json").exists():
        return False
    try:
        values = read_config_file(folder)
    except RunError:
        return True
    if values.keys() != {"format", "frontend"}:  # what save_frontend writes
        return True
    if not (folder / "split.json").exists():  # which a new run writes first
        raise RunError(
            f"{folder}: holds a saved front-end; choose another folder for the run, and give this one as --frontend"
        )
    return False


def require_no_run(folder: Path) -> None:
    """Check that a folder holds no run.

    Raises:
        RunError: it does.
    """
    if holds_run(folder):
        raise RunError(f"{folder}: holds a run already; continue it with --resume, or choose another --out")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the config.json of a run without checking its settings.

    Raises:
        RunError: it is missing, damaged, of a newer format, or belongs to a front-end alone.
    """
    values = read_config_file(folder)
    if "backbone" not in values:
        raise RunError(
            f"{folder}: holds a front-end or a cache, not a run; give a folder that audiogen train wrote "
            "(train accepts this one: a front-end as --frontend, a cache as the folder of sound)"
        )
    return values


def read_config(folder: Path) -> RunConfig:
    """Read and check the config of a run folder.

    Raises:
        RunError: as in `read_settings`, or a setting is invalid.
    """
    try:
        return RunConfig.from_dict(read_settings(folder))
    except ConfigError as error:
        raise RunError(f"{Path(folder) / 'config.json'}: {error}") from error


def require_own_folders(folder: Path) -> None:
    """Refuse a run whose subfolders are links, since training would delete old files where they lead.

    Raises:
        RunError: one is a link.
    """
    for name in ("checkpoints", "samples", "cache", "tensorboard", "wandb"):
        if (folder / name).is_symlink():
            raise RunError(
                f"{folder / name}: is a link, and training would delete files where it leads; replace it by the folder "
                "itself"
            )


def save_split(folder: Path, split: Split, cache: Path) -> None:
    """Write split.json: the files of both sides with their hashes, and the folder of the cache."""
    sides = {"train": split.train, "held_out": split.held_out}
    inside = cache.resolve().is_relative_to(folder.resolve())  # a relative path stays valid if the run is moved
    place = cache.resolve().relative_to(folder.resolve()) if inside else cache.resolve()
    atomic_write_json(
        folder / "split.json",
        {
            "format": FORMAT,
            "note": split.note,
            "cache": place.as_posix(),
            **{name: [asdict(part) for part in parts] for name, parts in sides.items()},
        },
    )


def read_split(folder: Path) -> Split:
    """Read split.json; return an empty split if there is none.

    Raises:
        RunError: it is damaged.
    """
    values = _read_split_file(folder)
    if values is None:
        return Split([], [])
    try:
        sides = {name: [from_dict(Part, part) for part in values[name]] for name in ("train", "held_out")}
        for part in (*sides["train"], *sides["held_out"]):
            if not 0 <= part.start < part.stop <= 1 or min(part.file.sample_rate, part.file.num_samples) < 1:
                raise ValueError(f"{part.file.path!r} has no such part")
        return Split(**sides, note=str(values["note"]))
    except (LookupError, TypeError, ValueError, ConfigError) as error:
        raise damaged(folder / "split.json", error, RunError, REMEDY) from error


def read_source(folder: Path) -> Path:
    """Return the folder of the cache that the run was trained on, by default its own."""
    place = (_read_split_file(folder) or {}).get("cache", "cache")
    return folder / place if isinstance(place, str) and "\0" not in place else folder / "cache"


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write report.json: the result of `audiogen evaluate`, for the model card.

    Where that is not possible, as in a folder of somebody else's, log a warning: the result itself is not lost.
    """
    try:
        atomic_write_json(folder / REPORT_FILE, {"format": FORMAT, **_finite(report)})
    except (AudiogenError, OSError) as error:
        log.warning("%s: can't be written, so the model card will not have this result (%s)", REPORT_FILE, error)


def read_report(folder: Path) -> dict[str, Any] | None:
    """Read report.json; return None if there is none.

    Raises:
        RunError: it is damaged.
    """
    try:
        return read_format(folder / REPORT_FILE, FORMAT, RunError, "remove it; audiogen evaluate writes it again")
    except FileNotFoundError:
        return None


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which are not JSON, by None."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_split_file(folder: Path) -> dict[str, Any] | None:
    try:
        return read_format(folder / "split.json", FORMAT, RunError, REMEDY, LISTS)
    except FileNotFoundError:
        return None


def save_weights(folder: Path, config: RunConfig, model: SequenceModel, step: int, loss: float) -> None:
    """Write model.safetensors with the step, the held-out loss and the settings of these weights."""
    settings = {name: values for name, values in config.to_dict().items() if name in SETTINGS}
    write_tensors(folder / "model.safetensors", model.state_dict(), step=step, loss=loss, config=settings)


def read_weights(folder: Path, config: RunConfig, spec: Spec) -> tuple[SequenceModel, int]:
    """Read the model and its step from model.safetensors.

    Shapes are compared before memory is allocated for what the config claims.

    Raises:
        RunError: missing, damaged, or of another model than the config's.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise RunError(f"{path}: is not there yet, since no evaluation was reached; continue training with --resume")
    try:
        model = blank_model(config, spec)
    except ConfigError as error:
        raise RunError(f"{folder / 'config.json'}: {error}") from error
    absent = {f"head.{name}": value for name, value in model.head.absent_in_format_1().items()}
    tensors, about = read_tensors(path, RunError, REMEDY, model.state_dict(), absent)
    now, step = config.to_dict(), about.get("step")
    try:
        # Older versions did not save the settings. Settings added since get their defaults on both sides.
        was = RunConfig.from_dict({**now, **about.get("config", {})}).to_dict()
        settings = [name for name in SETTINGS if name in now]
        require_same_settings({name: was[name] for name in settings}, {name: now[name] for name in settings})
        model.load_state_dict(tensors)
    except (ConfigError, RunError, RuntimeError, TypeError) as error:
        raise RunError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    if type(step) is not int or step < 0:
        raise damaged(path, "it states no step", RunError, REMEDY)
    return model, step
