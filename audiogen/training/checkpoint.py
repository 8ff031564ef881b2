"""Checkpoints: safetensors for tensors, JSON for scalars, and a manifest with the SHA-256 of each file.

    checkpoints/step-N/   model.safetensors  optimizer.safetensors  [average.safetensors]  state.json  manifest.json

A checkpoint is written under a temporary name, flushed and renamed, so it exists completely or not at all.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RunError
from ..utils.files import atomic_folder, remove, sha256_file
from ..utils.json_files import damaged, read_format, read_json
from ..utils.tensors import read_tensors, tensor_bytes

FORMAT = 1
REMEDY = "restore it, or train again into another folder"
#: Number of checkpoints to keep: the newest, and the previous one in case the disk damages the newest.
KEEP = 2


class _Damaged(RunError):
    """A checkpoint is damaged; an older one may replace it."""


@dataclass
class Checkpoint:
    """Everything that resuming needs.

    Attributes:
        step: optimizer steps done.
        tensors: flat dicts of tensors by name, one per file.
        state: JSON values.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write folder/step-N, then remove all but the newest `KEEP` checkpoints. Return the path.

    Raises:
        AudiogenError: writing failed; names the path and the bytes. Older checkpoints stay.
    """
    target = folder / f"step-{checkpoint.step}"
    if target.exists() and _is_intact(target):  # the same step has the same state
        return target
    with atomic_folder(target) as temporary:
        for name, tensors in checkpoint.tensors.items():
            (temporary / f"{name}.safetensors").write_bytes(tensor_bytes(tensors))
        state = json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=2)
        (temporary / "state.json").write_text(state, encoding="utf-8")
        files = sorted(path.name for path in temporary.iterdir())
        manifest = {"format": FORMAT, "sha256": {name: sha256_file(temporary / name) for name in files}}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for old in list_checkpoints(folder)[:-KEEP]:
        remove(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load the newest checkpoint that matches its manifest.

    Args:
        folder: folder of the checkpoints.
        device: device to load the tensors to.

    Raises:
        RunError: there is none, or all are damaged; names the file.
    """
    trouble = RunError(f"{folder}: there is no checkpoint to resume from; train without --resume into another folder")
    for path in reversed(list_checkpoints(folder)):
        try:
            return _load(path, device)
        except (OSError, _Damaged) as error:
            trouble = RunError(f"{error}; no older checkpoint is intact")
    raise trouble


def _is_intact(path: Path) -> bool:
    try:
        _check(path)
    except (OSError, _Damaged):
        return False
    return True


def _check(path: Path) -> list[str]:
    """Check each file of a checkpoint against the manifest, and return their names."""
    manifest = path / "manifest.json"
    sums = read_format(manifest, FORMAT, _Damaged, REMEDY, newer=RunError).get("sha256")
    if not isinstance(sums, dict) or any(Path(name).name != name for name in sums):
        raise damaged(manifest, "it lists no files", _Damaged, REMEDY)
    for name, wanted in sums.items():
        if sha256_file(path / name) != wanted:
            raise damaged(path / name, "it does not match its SHA-256", _Damaged, REMEDY)
    return list(sums)


def _load(path: Path, device: torch.device | str) -> Checkpoint:
    names = _check(path)
    state = read_json(path / "state.json", _Damaged, REMEDY)
    if not isinstance(state, dict) or type(step := state.pop("step", None)) is not int:
        raise damaged(path / "state.json", "it states no step", _Damaged, REMEDY)
    tensors = {}
    for name in names:
        if name.endswith(".safetensors"):
            found, _ = read_tensors(path / name, _Damaged, REMEDY, with_sum=False)
            tensors[Path(name).stem] = {key: tensor.to(device) for key, tensor in found.items()}
    return Checkpoint(step, tensors, state)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as a flat dict; for example, "0.exp_avg" belongs to the first parameter."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned.

    Raises:
        ValueError: the shapes do not match the optimizer's parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    for index, parameter in enumerate(parameters):
        shapes = {name: value.shape for name, value in state.get(index, {}).items()}
        if shapes != {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
            raise ValueError(f"the optimizer state of parameter {index} has shapes {shapes}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
