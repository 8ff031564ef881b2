"""The registry of front-ends; load and save them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import find, from_dict, part_from_dict, part_to_dict, to_dict
from ..errors import ConfigError, RunError
from ..utils.files import atomic_write_json, check_holds_config
from ..utils.json_files import damaged, read_format
from ..utils.tensors import read_tensors, write_tensors
from .base import Frontend
from .bpe.frontend import BASES, BPE
from .codec import Codec
from .encodec.frontend import EnCodec
from .mel.mel import Mel
from .mel.melvq import MelVQ
from .mulaw import MuLaw
from .pcm import PCM
from .semantic.frontend import Semantic

__all__ = [
    "BPE",
    "FRONTENDS",
    "PCM",
    "Codec",
    "EnCodec",
    "Frontend",
    "Mel",
    "MelVQ",
    "MuLaw",
    "Semantic",
    "frontend_from_dict",
    "frontend_to_dict",
    "load_frontend",
    "read_config_file",
    "save_frontend",
]

FRONTENDS: dict[str, type[Frontend]] = {
    "mulaw": MuLaw,
    "pcm": PCM,
    "mel": Mel,
    "melvq": MelVQ,
    "encodec": EnCodec,
    "codec": Codec,
    "bpe": BPE,
    "semantic": Semantic,
}

# BPE can wrap every front-end that can encode to one row of codes.
BASES.update((kind, part) for kind, part in FRONTENDS.items() if part not in (BPE, EnCodec, Mel))

FORMAT = 1  # written to config.json
NEWEST_FORMAT = 2  # that of a run with stages, which has no front-end of its own
CONFIG_FILE, WEIGHTS_FILE = "config.json", "frontend.safetensors"
REMEDY = "restore it, or train anew"


def load_frontend(name_or_folder: str | Path, **settings: Any) -> Frontend:
    """Load a front-end by name, or from a folder where one was saved (such as a run or a cache), in eval mode.

    Example:
        >>> load_frontend("mulaw", sample_rate=8000).spec
        TokenSpec(sample_rate=8000, hop_length=1, num_codebooks=1, codebook_size=256)

    Args:
        name_or_folder: a key of FRONTENDS, or a folder with config.json and frontend.safetensors.
        **settings: fields of its Config. For a folder they replace saved settings, if the weights allow it.

    Raises:
        ConfigError: an unknown name or setting (the message suggests the nearest), or a setting that the saved weights
            do not allow.
        RunError: the folder is missing, incomplete, damaged or of a newer format.
        DownloadError: published weights can't be downloaded (encodec).
    """
    if isinstance(name_or_folder, str) and name_or_folder in FRONTENDS:
        part = FRONTENDS[name_or_folder]
        frontend = part(from_dict(part.Config, settings, "frontend"))
        frontend.load_pretrained()
        return frontend.eval()
    folder = Path(name_or_folder)
    if not folder.exists() and str(name_or_folder) == folder.name:  # a single word is most likely a misspelt name
        find(str(name_or_folder), FRONTENDS, "frontend")
    frontend = _load_folder(folder)
    return _adjusted(frontend, settings) if settings else frontend


def save_frontend(frontend: Frontend, folder: str | Path) -> None:
    """Save a front-end to a folder: frontend.safetensors, and config.json unless there is one.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_frontend(load_frontend("mulaw", bits=10), folder)
        ...     load_frontend(folder).spec.codebook_size
        1024

    Args:
        frontend: a front-end with weights.
        folder: created if needed; may be a run or cache folder of the same front-end.

    Raises:
        NotFittedError: it has not been fitted.
        RunError: the folder's config.json describes another front-end.
        AudiogenError: the disk is full; names path and bytes.
    """
    frontend.check_fitted()
    folder, values = Path(folder), frontend_to_dict(frontend)
    known = (folder / CONFIG_FILE).exists()
    if known and _meant(read_config_file(folder)["frontend"]) != values:
        raise RunError(f"{folder / CONFIG_FILE}: names another front-end; save to another folder")
    write_tensors(folder / WEIGHTS_FILE, frontend.state_dict(), frontend=values)
    if not known:  # written last: a folder with config.json is complete
        atomic_write_json(folder / CONFIG_FILE, {"format": FORMAT, "frontend": values})


def read_config_file(folder: str | Path) -> dict[str, Any]:
    """Read the config.json of a run, a cache or a saved front-end: a dict with "format" and "frontend".

    Raises:
        RunError: it is missing, damaged, of a newer format, or that of a run with stages.
    """
    path = Path(folder) / CONFIG_FILE
    check_holds_config(folder)
    values = read_format(path, NEWEST_FORMAT, RunError, REMEDY)
    if isinstance(names := values.get("stages"), list) and names:
        raise RunError(
            f"{folder}: holds several stages; give the folder of one, such as {Path(folder, str(names[-1]))}"
        )
    if not isinstance(values.get("frontend"), dict):
        raise damaged(path, "frontend: this group of settings is missing", RunError, REMEDY)
    return values


def frontend_to_dict(frontend: Frontend) -> dict[str, Any]:
    """Return the config of a front-end as JSON values: {"kind": "mulaw", "sample_rate": 16000, "bits": 8}."""
    return part_to_dict(frontend.config, FRONTENDS)


def frontend_from_dict(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Frontend:
    """Build a front-end, in eval mode, from the values of `frontend_to_dict` and a state dict.

    Raises:
        ConfigError: a setting is unknown or invalid.
        RunError: the tensors do not fit the settings.
    """
    return _with_weights(_blank(values), tensors)


def _load_folder(folder: Path) -> Frontend:
    values, path = read_config_file(folder)["frontend"], folder / WEIGHTS_FILE
    try:
        frontend = _blank(values)
    except ConfigError as error:
        raise RunError(f"{folder / CONFIG_FILE}: {error}") from error
    if not path.exists():
        raise RunError(f"{path}: is missing, so the folder is incomplete or was copied only in part; {REMEDY}")
    tensors, about = read_tensors(path, RunError, REMEDY, frontend.state_dict())
    try:
        if unknown := about.keys() - {"format", "sha256", "frontend"}:
            raise RunError(f"its metadata has the unknown key {sorted(unknown)[0]!r}; {REMEDY}")
        if "sha256" in about and about.get("format") != 1:
            raise RunError(f"its metadata names no format that is known; {REMEDY}")
        require_same_settings({"frontend": _meant(about.get("frontend", values))}, {"frontend": _meant(values)})
        return _with_weights(frontend, tensors)
    except (ConfigError, RunError) as error:
        raise RunError(f"{path}: {error}") from error


def require_same_settings(weights: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Check that weights were made for the settings of config.json, both as JSON values.

    Raises:
        RunError: they were not; names the first setting that differs.
    """
    was, now = _flat(weights), _flat(config)
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            raise RunError(f"is for {name}={was.get(name)!r}, but config.json has {now.get(name)!r}; {REMEDY}")


def _meant(values: Mapping[str, Any]) -> dict[str, Any]:
    """Complete saved values with the defaults of settings added since."""
    return part_to_dict(part_from_dict(values, FRONTENDS, "frontend"), FRONTENDS)


def _blank(values: Mapping[str, Any]) -> Frontend:
    config = part_from_dict(values, FRONTENDS, "frontend")
    return FRONTENDS[values["kind"]](config)


def _with_weights(frontend: Frontend, tensors: Mapping[str, Tensor]) -> Frontend:
    try:
        frontend.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunError(f"the weights do not fit the front-end as configured: {reason}") from error
    return frontend.eval()


def _adjusted(frontend: Frontend, settings: Mapping[str, Any]) -> Frontend:
    """Copy a front-end with other settings; where a leading dimension shrinks (num_codebooks), keep its first part."""
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
            raise ConfigError(f"{wanted}: is more than the saved weights have; ask for at most that")
    result.load_state_dict(kept, strict=True)
    return result.eval()


def _laid_over(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace some nested values: {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}} -> {"a": {"b": 3, "c": 2}}."""
    result = {**values, **settings}
    for name, value in settings.items():
        old = values.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("kind") in (None, old.get("kind")):
            result[name] = _laid_over(old, value)
    return result


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested dicts: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in values.items():
        flat |= (
            {f"{name}.{key}": inner for key, inner in _flat(value).items()}
            if isinstance(value, Mapping)
            else {name: value}
        )
    return flat
