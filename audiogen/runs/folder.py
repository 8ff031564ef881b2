"""The files of a run folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import from_dict
from ..data import Part, Split
from ..errors import ConfigError, RunError
from ..frontends import REMEDY, Frontend, read_config_file, require_same_settings, save_frontend
from ..models.sequence_model import SequenceModel
from ..spec import Spec
from ..utils.files import atomic_write_json
from ..utils.json_files import LISTS, damaged, read_format
from ..utils.tensors import read_tensors, write_tensors
from .build import blank_model
from .config import FORMAT, RunConfig

#: The groups of config.json that the weights are made for; conditions where there are some.
SETTINGS = ("frontend", "backbone", "pattern", "conditions")


def start_run(folder: Path, config: RunConfig, frontend: Frontend) -> None:
    """Makes a run folder. The whole config.json comes last: a folder that has it can train, resume and generate."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    save_frontend(frontend, folder)
    atomic_write_json(folder / "config.json", config.to_dict())


def holds_run(folder: Path) -> bool:
    """Whether `start_run` came to its end here, or something else wrote a config.json that must not be lost.

    Raises:
        RunError: a front-end was saved here by itself.
    """
    if not (folder / "config.json").exists():
        return False
    try:
        values = read_config_file(folder)
    except RunError:
        return True
    if values.keys() != {"format", "frontend"}:  # what save_frontend leaves
        return True
    if not (folder / "split.json").exists():  # which comes first where a run is begun
        raise RunError(
            f"{folder}: holds a front-end that was saved there; choose another folder for the run, and give "
            "this one as --frontend"
        )
    return False


def require_no_run(folder: Path) -> None:
    """Where a run is to begin, none may be.

    Raises:
        RunError: there is one.
    """
    if holds_run(folder):
        raise RunError(f"{folder}: holds a run already; go on with it by --resume, or choose another --out")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read config.json of a run as it is, its settings not checked.

    Raises:
        RunError: there is none, it is damaged, of a newer format, or that of a front-end alone.
    """
    values = read_config_file(folder)
    if "backbone" not in values:
        raise RunError(
            f"{folder}: holds a front-end or a cache, not a run; give the folder that audiogen train wrote "
            "(train takes this one: a front-end by --frontend, a cache in the place of a folder)"
        )
    return values


def read_config(folder: Path) -> RunConfig:
    """Read the config of a run folder.

    Raises:
        RunError: as `read_settings`, or a setting does not fit.
    """
    try:
        return RunConfig.from_dict(read_settings(folder))
    except ConfigError as error:
        raise RunError(f"{Path(folder) / 'config.json'}: {error}") from error


def require_own_folders(folder: Path) -> None:
    """Refuse a run whose folders are links: training deletes old files in them, and must not do so elsewhere.

    Raises:
        RunError: one is a link.
    """
    for name in ("checkpoints", "samples", "cache", "tensorboard"):
        if (folder / name).is_symlink():
            raise RunError(
                f"{folder / name}: is a link, and training would delete files where it leads; put the folder itself "
                "in its place"
            )


def save_split(folder: Path, split: Split, cache: Path) -> None:
    """Writes split.json: the files of both sides, by content, and where their codes lie."""
    sides = {"train": split.train, "held_out": split.held_out}
    inside = cache.resolve().is_relative_to(folder.resolve())  # then it moves with the run
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
    """What `save_split` wrote; empty if there is no such file.

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
    """Where the codes lay that the run was trained from; its own cache unless it says otherwise."""
    place = (_read_split_file(folder) or {}).get("cache", "cache")
    return folder / place if isinstance(place, str) and "\0" not in place else folder / "cache"


def _read_split_file(folder: Path) -> dict[str, Any] | None:
    try:
        return read_format(folder / "split.json", FORMAT, RunError, REMEDY, LISTS)
    except FileNotFoundError:
        return None


def save_weights(folder: Path, config: RunConfig, model: SequenceModel, step: int, loss: float) -> None:
    """Write model.safetensors, with the step and the held-out loss it was kept for, and the settings it is made for."""
    settings = {name: values for name, values in config.to_dict().items() if name in SETTINGS}
    write_tensors(folder / "model.safetensors", model.state_dict(), step=step, loss=loss, config=settings)


def read_weights(folder: Path, config: RunConfig, spec: Spec) -> tuple[SequenceModel, int]:
    """The model as model.safetensors has it, and the step that it was kept at.

    Shapes are compared before any memory is touched for what the config promises.

    Raises:
        RunError: missing, damaged, or of another model than the config's.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise RunError(f"{path}: is not there yet, since no evaluation was reached; go on training with --resume")
    try:
        model = blank_model(config, spec)
    except ConfigError as error:
        raise RunError(f"{folder / 'config.json'}: {error}") from error
    absent = {f"head.{name}": value for name, value in model.head.absent_in_format_1().items()}
    tensors, about = read_tensors(path, RunError, REMEDY, model.state_dict(), absent)
    now, step = config.to_dict(), about.get("step")
    try:
        # Runs of older versions say nothing of it. Settings that came later have their defaults on both sides.
        was = RunConfig.from_dict({**now, **about.get("config", {})}).to_dict()
        settings = [name for name in SETTINGS if name in now]
        require_same_settings({name: was[name] for name in settings}, {name: now[name] for name in settings})
        model.load_state_dict(tensors)
    except (ConfigError, RunError, RuntimeError, TypeError) as error:
        raise RunError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    if type(step) is not int or step < 0:
        raise damaged(path, "it states no step", RunError, REMEDY)
    return model, step
