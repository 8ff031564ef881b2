"""The front-ends by name, and how they are saved and loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ..config import find, from_dict, part_from_dict, part_to_dict, to_dict
from ..errors import ConfigError, RunError
from ..utils.files import atomic_path, atomic_write_json
from .base import Frontend, hash_tensors
from .bpe.frontend import BPE
from .codec import Codec
from .encodec.frontend import EnCodec
from .mel.mel import Mel
from .mel.melvq import MelVQ
from .mulaw import MuLaw

__all__ = [
    "BPE",
    "FRONTENDS",
    "Codec",
    "EnCodec",
    "Frontend",
    "Mel",
    "MelVQ",
    "MuLaw",
    "frontend_from_dict",
    "frontend_to_dict",
    "load_frontend",
    "save_frontend",
]

FRONTENDS: dict[str, type[Frontend]] = {
    "mulaw": MuLaw,
    "mel": Mel,
    "melvq": MelVQ,
    "encodec": EnCodec,
    "codec": Codec,
    "bpe": BPE,
}

FORMAT = 1  # of the folders written here
CONFIG_FILE, WEIGHTS_FILE = "config.json", "frontend.safetensors"


def load_frontend(name_or_folder: str | Path, **settings: Any) -> Frontend:
    """A front-end by its name and settings, or from a folder where one was saved (a run, a cache), in eval mode.

    Example:
        >>> load_frontend("mulaw", sample_rate=8000).spec
        TokenSpec(sample_rate=8000, hop_length=1, num_codebooks=1, codebook_size=256)

    Args:
        name_or_folder: a key of FRONTENDS, or a folder with config.json and frontend.safetensors.
        settings: fields of its Config. For a folder they replace the saved ones, as far as its weights allow.

    Raises:
        ConfigError: an unknown name or setting (the nearest is named), or one that the saved weights do not allow.
        RunError: the folder is not there, half-written, damaged or of a newer format.
    """
    if isinstance(name_or_folder, str) and name_or_folder in FRONTENDS:
        part = FRONTENDS[name_or_folder]
        frontend = part(from_dict(part.Config, settings, "frontend"))
        frontend.load_pretrained()
        return frontend.eval()
    folder = Path(name_or_folder)
    if not folder.exists() and str(name_or_folder) == folder.name:  # one word: meant as a name, most likely
        find(str(name_or_folder), FRONTENDS, "frontend")
    frontend = _load_folder(folder)
    return _adjusted(frontend, settings) if settings else frontend


def save_frontend(frontend: Frontend, folder: str | Path) -> None:
    """Writes frontend.safetensors, and config.json where there is none, so that `load_frontend(folder)` gives it back.

    Raises:
        NotFittedError: it has nothing to save yet.
        RunError: the folder's config.json speaks of another front-end.
    """
    frontend.check_fitted()
    config_path, weights_path = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
    values = frontend_to_dict(frontend)
    known = config_path.exists()
    if known and _read_config(config_path) != values:
        raise RunError(f"{config_path}: speaks of another front-end: save to another folder")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in frontend.state_dict().items()}
    with atomic_path(weights_path) as path:
        safetensors.torch.save_file(tensors, path, {"sha256": hash_tensors(tensors)})
    if not known:  # last, so that a folder that has it is complete
        atomic_write_json(config_path, {"format": FORMAT, "frontend": values})


def frontend_to_dict(frontend: Frontend) -> dict[str, Any]:
    """Its config as JSON values: {"kind": "mulaw", "sample_rate": 16000, "bits": 8}."""
    return part_to_dict(frontend.config, FRONTENDS)


def frontend_from_dict(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Frontend:
    """The front-end of which `frontend_to_dict` and the state dict are given, in eval mode.

    Raises:
        ConfigError: a key does not fit.
        RunError: the tensors are not those of this front-end.
    """
    config = part_from_dict(values, FRONTENDS, "frontend")
    try:
        frontend = FRONTENDS[values["kind"]](config)
        frontend.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunError(f"the weights do not fit front-end {values['kind']!r} as configured: {reason}") from error
    return frontend.eval()


def _load_folder(folder: Path) -> Frontend:
    config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    values, tensors = _read_config(config_path), _read_tensors(weights_path)
    try:
        return frontend_from_dict(values, tensors)
    except ConfigError as error:
        raise RunError(f"{config_path}: {error}") from error
    except RunError as error:
        raise RunError(f"{weights_path}: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    """The front-end's part of a config.json."""
    if not path.is_file():
        raise RunError(
            f"{path}: not there, so this folder holds no front-end: name a run, a cache, or one of "
            f"{', '.join(FRONTENDS)}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({error}): restore it or train again") from error
    if not isinstance(values, dict) or type(values.get("format")) is not int:
        raise RunError(f"{path}: has no format number: it was not written by audiogen, or is damaged")
    if values["format"] > FORMAT:
        raise RunError(f"{path}: of format {values['format']}, this version reads up to {FORMAT}: update audiogen")
    if not isinstance(values.get("frontend"), dict):
        raise RunError(f"{path}: speaks of no front-end: half-written, or damaged")
    return values["frontend"]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise RunError(
            f"{path}: not there, the folder is half-written or was copied in part: copy all of it again, or train again"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: damaged ({error}): restore it or train again") from error
    if digest != hash_tensors(tensors):
        raise RunError(f"{path}: damaged (its content does not match its checksum): restore it or train again")
    return tensors


def _adjusted(frontend: Frontend, settings: Mapping[str, Any]) -> Frontend:
    """A copy with other settings; of leading dimensions that shrink (num_codebooks), the first part is kept."""
    config = from_dict(type(frontend).Config, _laid_over(to_dict(frontend.config), settings), "frontend")
    saved, values = _flat(to_dict(frontend.config)), _flat(to_dict(config))
    changed = [name for name in values if values[name] != saved.get(name)]
    for name in changed:
        if frontend.learned and name not in frontend.reconfigurable:
            allowed = ", ".join(sorted(frontend.reconfigurable)) or "nothing"
            raise ConfigError(
                f"frontend.{name}: the saved weights are for {saved.get(name)!r}, not {values[name]!r}; "
                f"only {allowed} can be changed: leave it out, or fit anew"
            )
    result = type(frontend)(config)
    weights = frontend.state_dict()
    kept = {}
    for name, tensor in result.state_dict().items():
        kept[name] = weights[name][: tensor.shape[0]] if tensor.ndim else weights[name]
        if kept[name].shape != tensor.shape:
            wanted = ", ".join(f"frontend.{name}={values[name]} (of {saved[name]})" for name in changed)
            raise ConfigError(f"{wanted}: the saved weights do not reach as far: ask for at most what was saved")
    result.load_state_dict(kept, strict=True)
    return result.eval()


def _laid_over(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with some replaced: {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}} -> {"a": {"b": 3, "c": 2}}."""
    result = {**values, **settings}
    for name, value in settings.items():
        old = values.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, old.get("kind")):
            result[name] = _laid_over(old, value)
    return result


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in values.items():
        flat |= (
            {f"{name}.{key}": inner for key, inner in _flat(value).items()}
            if isinstance(value, Mapping)
            else {name: value}
        )
    return flat
