"""Checkpoints: safetensors for tensors, JSON for scalars, a manifest with SHA-256 over both.

    checkpoints/step-N/   model.safetensors  optimizer.safetensors  [average.safetensors]  state.json  manifest.json

A checkpoint is written under another name, flushed and renamed, so that one either is there whole or is not there.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import AudiogenError, RunError
from ..utils.files import sha256_file, sync_file, sync_folder

#: Checkpoints that stay: the newest, and the one before it should the newest be damaged by the disk.
KEEP = 2


@dataclass
class Checkpoint:
    """What resuming needs. `tensors` holds flat dicts of tensors by name, `state` JSON values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes folder/step-N, then removes all but the newest `KEEP`.

    Raises:
        AudiogenError: it could not be written; names the path and the bytes. Older checkpoints stay.
    """
    target = folder / f"step-{checkpoint.step}"
    if target.exists() and _sound(target):  # the same step holds the same state
        return target
    temporary = folder / f".step-{checkpoint.step}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        temporary.mkdir()
        for name, tensors in checkpoint.tensors.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=2))
        files = sorted(path.name for path in temporary.iterdir())
        manifest = {"format": 1, "sha256": {name: sha256_file(temporary / name) for name in files}}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for path in temporary.iterdir():
            sync_file(path)
        sync_folder(temporary)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        # safetensors tells of the disk in words alone.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space" in str(error)
        size = sum(path.stat().st_size for path in temporary.glob("*")) if temporary.exists() else 0
        shutil.rmtree(temporary, ignore_errors=True)
        raise AudiogenError(
            f"{target}: the checkpoint can't be written ({'the disk is full' if full else error}, "
            f"{size} bytes written); older checkpoints are untouched: free some room and go on with "
            "--resume"
        ) from error
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders that were written to the end, oldest first."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The newest checkpoint under `folder` whose manifest holds; an older one if the newest is damaged.

    Raises:
        RunError: there is none, or none is sound; names the file.
    """
    trouble = f"{folder}: there is no checkpoint to resume from; train without --resume into another folder"
    for path in reversed(list_checkpoints(folder)):
        try:
            return _load(path, device)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            trouble = f"{path}: the checkpoint is damaged ({error}) and no older one is sound; start anew elsewhere"
    raise RunError(trouble)


def _sound(path: Path) -> bool:
    try:
        _check(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False
    return True


def _check(path: Path) -> list[str]:
    """The names of the checkpoint's files, once each has been found to match the manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    if manifest["format"] > 1:
        raise RunError(f"{path}: was written by a newer audiogen (format {manifest['format']}); upgrade to resume it")
    for name, wanted in manifest["sha256"].items():
        if sha256_file(path / name) != wanted:
            raise ValueError(f"{name} does not match its SHA-256")
    return list(manifest["sha256"])


def _load(path: Path, device: torch.device | str) -> Checkpoint:
    names = _check(path)
    state = json.loads((path / "state.json").read_text())
    tensors = {
        Path(name).stem: load_file(path / name, device=str(device)) for name in names if name.endswith(".safetensors")
    }
    return Checkpoint(state.pop("step"), tensors, state)


def _clear_leftovers(folder: Path) -> None:
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as a flat dict, "0.exp_avg" being of the first parameter."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave.

    Raises:
        ValueError: they are of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    for index, parameter in enumerate(parameters):
        shapes = {name: value.shape for name, value in state.get(index, {}).items()}
        if shapes != {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
            raise ValueError(f"the optimizer's state of parameter {index} has the shapes {shapes}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
