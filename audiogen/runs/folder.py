"""The files of a run folder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data import FileEntry, Part, Split
from ..errors import ConfigError, RunError
from ..frontends import Frontend, save_frontend
from ..frontends.base import hash_tensors
from ..models.sequence_model import SequenceModel
from ..spec import Spec
from ..utils.files import atomic_path, atomic_write_json
from .build import blank_model
from .config import FORMAT, RunConfig


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
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    if not isinstance(values, dict) or values.keys() != {"format", "frontend"}:  # what save_frontend leaves
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


def read_config(folder: Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        RunError: there is none, it is damaged, or of a newer format.
    """
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format"]
    except FileNotFoundError:
        raise RunError(f"{folder}: is no run folder, it has no config.json; train one with audiogen train") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path}: is damaged ({error}); restore it, or train the run anew") from error
    if not isinstance(version, int) or version > FORMAT:
        raise RunError(f"{path}: has format {version}, this audiogen reads up to {FORMAT}; upgrade audiogen")
    if "frontend" in values and "backbone" not in values:
        raise RunError(
            f"{folder}: holds a front-end or a cache, not a run; give the folder that audiogen train wrote "
            "(train takes this one: a front-end by --frontend, a cache in the place of a folder)"
        )
    try:
        return RunConfig.from_dict(values)
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from error


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
        sides = {
            name: [Part(FileEntry(**part["file"]), part["start"], part["stop"]) for part in values[name]]
            for name in ("train", "held_out")
        }
        return Split(**sides, note=values["note"])
    except (LookupError, TypeError) as error:
        raise _damaged_split(folder, error) from error


def read_source(folder: Path) -> Path:
    """Where the codes lay that the run was trained from; its own cache unless it says otherwise."""
    values = _read_split_file(folder)
    place = values.get("cache", "cache") if isinstance(values, dict) else "cache"
    return folder / place if isinstance(place, str) else folder / "cache"


def _read_split_file(folder: Path) -> Any:
    try:
        return json.loads((folder / "split.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged_split(folder, error) from error


def _damaged_split(folder: Path, error: Exception) -> RunError:
    return RunError(f"{folder / 'split.json'}: is damaged ({error}); restore it, or train the run anew")


def save_weights(folder: Path, model: SequenceModel, step: int, loss: float) -> None:
    """Writes model.safetensors, with the step and the held-out loss it was kept for, and a sum to check it by."""
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    about = {"format": FORMAT, "step": step, "loss": loss, "sha256": hash_tensors(tensors)}
    # Under one name: safetensors writes several in any order, and the same weights would make another file.
    with atomic_path(folder / "model.safetensors") as path:
        save_file(tensors, path, metadata={"audiogen": json.dumps(about)})


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
    try:
        wanted = {name: list(x.shape) for name, x in model.state_dict().items()}
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["audiogen"])
            there = {name: file.get_slice(name).get_shape() for name in file.keys()}
            for name in sorted(wanted.keys() | there.keys()):
                if wanted.get(name) != there.get(name):
                    raise ValueError(f"{name} is {there.get(name, 'missing')}, not {wanted.get(name, 'known')}")
            tensors = {name: file.get_tensor(name) for name in there}
        if about["sha256"] != hash_tensors(tensors):
            raise ValueError("its content does not match its checksum")
        if not all(bool(x.isfinite().all()) for x in tensors.values()):
            raise ValueError("it holds NaN or infinity")
        model.load_state_dict(tensors)
        return model, int(about["step"])
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path}: is damaged or of another model ({reason}); restore it or train anew") from error


def clear_leftovers(folder: Path) -> None:
    """Removes the temporary files that a killed process left behind, half-written as they are."""
    for place in (folder, folder / "samples"):
        for path in [*place.glob(".*.tmp.*"), *place.glob(".tmp*")]:  # of files.atomic_path, and of safetensors
            path.unlink(missing_ok=True)
