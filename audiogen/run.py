"""A run folder: what a training run is made from, and all that generating from it needs.

    runs/NAME/config.json  frontend.safetensors  model.safetensors  ...

Loading builds from config.json alone, strictly; nothing is unpickled, fetched or imported by name.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .backbones import BACKBONES
from .config import find, from_dict, part_from_dict, part_to_dict, to_dict, unknown_key
from .data import EncodedCache, FileEntry, Part, Sequences, Split, is_cache
from .engines import check_precision
from .errors import CacheError, ConfigError, DataError, RunError
from .files import atomic_path, atomic_write_json
from .frontends import FRONTENDS, Frontend, load_frontend, save_frontend
from .frontends.base import hash_tensors
from .model import SequenceModel
from .patterns import PATTERNS
from .sampling import Sampling
from .sound import choose_seeds, generate_sound, stream_sound
from .spec import Spec
from .training.config import DataConfig, TrainingConfig

log = logging.getLogger("audiogen")

FORMAT = 1


@dataclass(frozen=True)
class RunConfig:
    """config.json: a config of each part, the pattern by name, and how it is trained."""

    frontend: Any
    backbone: Any
    pattern: str
    data: DataConfig
    training: TrainingConfig

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "frontend": part_to_dict(self.frontend, FRONTENDS),
                "backbone": part_to_dict(self.backbone, BACKBONES), "pattern": {"kind": self.pattern},
                "data": to_dict(self.data), "training": to_dict(self.training)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "RunConfig":
        """Strict: a missing, unknown or ill-typed key is a ConfigError that names it."""
        groups = ("frontend", "backbone", "pattern", "data", "training")
        for key in values:
            if key not in ("format", *groups):
                raise unknown_key(key, groups)
        for key in groups:
            if not isinstance(values.get(key), dict):
                raise ConfigError(f"{key}: this group of settings is missing")
        for key in values["pattern"]:
            if key != "kind":
                raise unknown_key(f"pattern.{key}", ["pattern.kind"])
        pattern = values["pattern"].get("kind")
        find(pattern, PATTERNS, "pattern.kind")
        return RunConfig(part_from_dict(values["frontend"], FRONTENDS, "frontend"),
                         part_from_dict(values["backbone"], BACKBONES, "backbone"), pattern,
                         from_dict(DataConfig, values["data"], "data"),
                         from_dict(TrainingConfig, values["training"], "training"))


def build_model(config: RunConfig, spec: Spec) -> SequenceModel:
    """A new model for what the front-end makes; its weights follow torch's seed.

    Raises:
        ConfigError: parts that do not fit each other, or a backbone that can't be built as it is set.
    """
    kind = part_to_dict(config.backbone, BACKBONES)["kind"]
    try:
        return SequenceModel(spec, BACKBONES[kind](config.backbone), PATTERNS[config.pattern](spec.num_rows))
    except (ValueError, RuntimeError) as error:     # of torch: a fraction out of range, a size that no memory holds
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"backbone: this {kind} can't be built ({reason}); choose other settings") from error


def blank_model(config: RunConfig, spec: Spec) -> SequenceModel:
    """The same with weights of no value yet, for which no memory is touched, whatever size the config claims."""
    with _Uninitialised():
        return build_model(config, spec)


class _Uninitialised(TorchFunctionMode):
    """Skips what fills new weights. (A model on the meta device would do too, but importing that takes seconds.)"""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (Tensor.normal_, Tensor.uniform_) or getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@dataclass
class Run:
    """A trained run: `frontend` and `model` on one device in evaluation mode, `config`, its `folder`, and the `step` at
    which the weights stood."""

    folder: Path
    config: RunConfig
    frontend: Frontend
    model: SequenceModel
    step: int

    @property
    def sample_rate(self) -> int:
        return self.frontend.spec.sample_rate

    def split(self) -> Split:
        """Which files it was trained on and which were held out; of nothing if the run does not say."""
        return read_split(self.folder)

    def training_sequences(self) -> Sequences | None:
        """The training codes, or None if the cache that it was trained from is no longer there, or is another now."""
        cache = read_source(self.folder)
        if not is_cache(cache):
            log.warning("%s: the encoded cache that the run was trained from is gone, so that nothing is said of "
                        "counting; audiogen train --resume makes it again", cache)
            return None
        try:
            return Sequences(EncodedCache.open(cache, self.frontend), self.split().train)
        except (CacheError, DataError) as error:
            log.warning("the training codes can't be counted: %s", error)
            return None

    def generate(self, seconds: float = 4.0, num: int = 1, seed: int | None = None, prompt: Tensor | None = None,
                 sampling: Sampling = Sampling(), seeds: Sequence[int] | None = None) -> Tensor:
        """New sound from the model.

        Args:
            seconds: of new sound, beyond the prompt.
            num: items; item i uses seed + i, so that each can be made again by itself.
            seed: None draws fresh seeds, and logs them.
            prompt: (1, N) or (1, 1, N) wav at `sample_rate` to go on from.
            sampling: temperature and filters.
            seeds: one an item, in the place of `num` and `seed`.

        Returns:
            (num, 1, N) float32 in [-1, 1] on the model's device, beginning with the prompt as the front-end renders it.
            Its attribute `seeds` is the list of seeds used.
        """
        return generate_sound(self.frontend, self.model, seconds, choose_seeds(num, seed, seeds), prompt, sampling)

    def stream(self, seconds: float = 4.0, num: int = 1, seed: int | None = None, prompt: Tensor | None = None,
               sampling: Sampling = Sampling(), seeds: Sequence[int] | None = None) -> Iterator[Tensor]:
        """The same as it goes: chunks (num, 1, n), the prompt's sound first; side by side they are what `generate` with
        the same seeds gives, but for rounding.

        Raises:
            ConfigError: the front-end can't decode a stream, or at a variable rate not one of several items.
        """
        return stream_sound(self.frontend, self.model, seconds, choose_seeds(num, seed, seeds), prompt, sampling)


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
    if not isinstance(values, dict) or values.keys() != {"format", "frontend"}:         # what save_frontend leaves
        return True
    if not (folder / "split.json").exists():            # which comes first where a run is begun
        raise RunError(f"{folder}: holds a front-end that was saved there; choose another folder for the run, and give "
                       "this one as --frontend")
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
        raise RunError(f"{folder}: holds a front-end or a cache, not a run; give the folder that audiogen train wrote "
                       "(train takes this one: a front-end by --frontend, a cache in the place of a folder)")
    try:
        return RunConfig.from_dict(values)
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from error


def save_split(folder: Path, split: Split, cache: Path) -> None:
    """Writes split.json: the files of both sides, by content, and where their codes lie."""
    sides = {"train": split.train, "held_out": split.held_out}
    inside = cache.resolve().is_relative_to(folder.resolve())          # then it moves with the run
    place = cache.resolve().relative_to(folder.resolve()) if inside else cache.resolve()
    atomic_write_json(folder / "split.json", {"format": FORMAT, "note": split.note, "cache": place.as_posix(), **{
        name: [asdict(part) for part in parts] for name, parts in sides.items()}})


def read_split(folder: Path) -> Split:
    """What `save_split` wrote; empty if there is no such file.

    Raises:
        RunError: it is damaged.
    """
    values = _read_split_file(folder)
    if values is None:
        return Split([], [])
    try:
        sides = {name: [Part(FileEntry(**part["file"]), part["start"], part["stop"]) for part in values[name]]
                 for name in ("train", "held_out")}
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
        for path in [*place.glob(".*.tmp.*"), *place.glob(".tmp*")]:        # of files.atomic_path, and of safetensors
            path.unlink(missing_ok=True)


def load_run(folder: str | Path, device: str | torch.device = "cpu", precision: str = "fp32") -> Run:
    """A run from its folder alone, ready to generate.

    Args:
        precision: "fp32", "bf16" or "int8": to what an engine may round the weights while it generates, for speed.

    Raises:
        RunError: half-written, damaged, or of a newer format; names the file.
        ConfigError: the precision is unknown.
    """
    check_precision(precision)
    folder = Path(folder)
    config = read_config(folder)
    frontend = load_frontend(folder).to(device)
    model, step = read_weights(folder, config, frontend.spec)
    model.precision = precision
    return Run(folder, config, frontend, model.to(device).eval(), step)
