"""Checkpoints: safetensors for tensors, JSON for scalars, and a manifest with the SHA-256 of each file.

    checkpoints/step-N/   model.safetensors  optimizer.safetensors  [average.safetensors]  state.json  manifest.json

Where each process holds a share of the weights, it writes a file of its own, with some of the rows of each tensor:

    checkpoints/step-N/   model-0-of-4.safetensors  model-1-of-4.safetensors  ...  state.json  manifest.json

Any number of processes can read either form. A checkpoint is written under a temporary name, flushed and renamed, so it
exists completely or not at all.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..distributed import World
from ..errors import RunError
from ..utils.files import atomic_folder, atomic_write_bytes, remove, sha256_file
from ..utils.json_files import damaged, read_format, read_json
from ..utils.tensors import ABOUT, read_tensors, tensor_bytes

FORMAT = 1
REMEDY = "restore it, or train again into another folder"
#: Number of checkpoints to keep: the newest, and the previous one in case the disk damages the newest.
KEEP = 2
#: Names of files with a share of the rows.
SHARE = re.compile(r"(.+)-\d+-of-\d+")


class _Damaged(RunError):
    """A checkpoint is damaged; an older one may replace it."""


@dataclass(frozen=True)
class Rows:
    """The rows [start, stop) of a tensor that has `of` of them."""

    start: int
    stop: int
    of: int


#: Rows by the names of a file and of a tensor in it; tensors that are not named are whole.
Layout = Mapping[str, Mapping[str, Rows]]


@dataclass
class Checkpoint:
    """Everything that resuming needs.

    Attributes:
        step: optimizer steps done.
        tensors: flat dicts of tensors by name, one per file.
        state: JSON values.
        layout: the rows that the tensors are; those that are not named are whole.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    layout: Layout = field(default_factory=dict)


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
        _complete(temporary, checkpoint)
    _remove_old(folder)
    return target


def save_shares(folder: Path, checkpoint: Checkpoint, world: World, num_shares: int) -> None:
    """Write folder/step-N, as `save_checkpoint`, each of the first ranks the rows that it has.

    Args:
        folder: folder of the checkpoints.
        checkpoint: what this rank has of it; whole tensors are those of the first rank.
        world: the ranks, all of which call this.
        num_shares: how many of the ranks hold all rows.

    Raises:
        AudiogenError: as in `save_checkpoint`.
    """
    target, temporary = folder / f"step-{checkpoint.step}", folder / f".step-{checkpoint.step}.tmp"

    def begin() -> None:
        remove(temporary)
        temporary.mkdir(parents=True)

    def finish() -> None:
        with atomic_folder(target) as complete:
            complete.rmdir()
            temporary.rename(complete)
            _complete(complete, checkpoint)
        _remove_old(folder)

    there = world.first and target.exists() and _is_intact(target)
    if world.gather(torch.tensor([there]))[0]:  # the same step has the same state
        return
    world.first_does(begin)
    if world.rank < num_shares:
        for name, tensors in checkpoint.tensors.items():
            rows = checkpoint.layout.get(name, {})
            own = {key: x for key, x in tensors.items() if (len(x) if key in rows else world.first)}
            about = {key: [rows[key].start, rows[key].of] for key in own if key in rows}
            path = temporary / f"{name}-{world.rank}-of-{num_shares}.safetensors"
            atomic_write_bytes(path, tensor_bytes(own, rows=about))
    world.meet()
    world.first_does(finish)


def _complete(temporary: Path, checkpoint: Checkpoint) -> None:
    """Add the state and the manifest to the files with tensors."""
    state = json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=2)
    (temporary / "state.json").write_text(state, encoding="utf-8")
    files = sorted(path.name for path in temporary.iterdir())
    manifest = {"format": FORMAT, "sha256": {name: sha256_file(temporary / name) for name in files}}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _remove_old(folder: Path) -> None:
    for old in list_checkpoints(folder)[:-KEEP]:
        remove(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_checkpoint(
    folder: Path, device: torch.device | str = "cpu", layout: Layout = MappingProxyType({})
) -> Checkpoint:
    """Load the newest checkpoint that matches its manifest.

    Args:
        folder: folder of the checkpoints.
        device: device to load the tensors to.
        layout: the rows to load; all of them of tensors that are not named.

    Raises:
        RunError: there is none, or all are damaged; names the file.
    """
    trouble = RunError(f"{folder}: there is no checkpoint to resume from; train without --resume into another folder")
    for path in reversed(list_checkpoints(folder)):
        try:
            return _load(path, device, layout)
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


def _load(path: Path, device: torch.device | str, layout: Layout) -> Checkpoint:
    names = _check(path)
    state = read_json(path / "state.json", _Damaged, REMEDY)
    if not isinstance(state, dict) or type(step := state.pop("step", None)) is not int:
        raise damaged(path / "state.json", "it states no step", _Damaged, REMEDY)
    files: dict[str, list[Path]] = {}
    for file in sorted(path / name for name in names if name.endswith(".safetensors")):
        share = SHARE.fullmatch(file.stem)
        files.setdefault(share[1] if share else file.stem, []).append(file)
    tensors = {}
    for name, some in files.items():
        found = _read(some, layout.get(name, {}))
        tensors[name] = {key: tensor.to(device) for key, tensor in found.items()}
    return Checkpoint(step, tensors, state, layout)


def _read(files: list[Path], layout: Mapping[str, Rows]) -> dict[str, Tensor]:
    """Read the tensors of one file, or of those that hold shares of them; of some only the rows in `layout`."""
    if not layout and not SHARE.fullmatch(files[0].stem):
        found, _ = read_tensors(files[0], _Damaged, REMEDY, with_sum=False)
        return found
    pieces: dict[str, list[tuple[int, Tensor]]] = {}  # by the first of their rows
    for path in files:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}")).get("rows", {})
            for key in file.keys():
                piece = file.get_slice(key)
                rows, start = layout.get(key), about[key][0] if key in about else 0
                if rows is None:
                    pieces.setdefault(key, []).append((start, file.get_tensor(key)))
                else:
                    first, last = (min(max(row - start, 0), piece.get_shape()[0]) for row in (rows.start, rows.stop))
                    pieces.setdefault(key, []).append((start, piece[first:last]))
    joined = {}
    for key, some in pieces.items():
        found = [x for _, x in sorted(some, key=lambda piece: piece[0])]
        joined[key] = torch.cat(found) if len(found) > 1 else found[0].clone()
    return joined


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
