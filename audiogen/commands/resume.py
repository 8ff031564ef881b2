"""Resume a run: check that its files, front-end and settings are the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import from_dict, override, to_dict
from ..data import EncodedCache, Index, Split, long_enough
from ..errors import ConfigError, RunError
from ..frontends import FRONTENDS, Frontend, frontend_to_dict, load_frontend
from ..runs.config import RunConfig
from ..runs.folder import read_split

#: Settings that affect only how long a run continues or what memory it takes, and groups that affect only how sound is
#: drawn from it, and how processes train it together.
MAY_CHANGE = (
    "training.steps",
    "training.minutes",
    "training.patience",
    "backbone.recompute",
    "sampling",
    "distributed",
)


def same_source(source: Index | EncodedCache, front: Frontend, out: Path) -> EncodedCache:
    """Return the encoded source of a resumed run, and rebuild its cache if that is missing.

    Args:
        source: the folder or cache that the user gave.
        front: the run's front-end.
        out: the run folder.

    Raises:
        RunError: the source lacks files of the run, or was encoded by another front-end.
    """
    sides = read_split(out)
    split_files = {part.file.sha256 for part in (*sides.train, *sides.held_out)}
    index = source.index if isinstance(source, EncodedCache) else source
    if not split_files <= {file.sha256 for file in index.files}:
        raise other_files(index.folder, out)
    if isinstance(source, EncodedCache):
        if source.frontend().fingerprint() != front.fingerprint():
            raise RunError(
                f"{source.folder}: was encoded by another front-end than that of {out}; give the cache that "
                "the run was started with, or train again into another folder"
            )
        return source
    return EncodedCache.open_or_build(long_enough(source, front.spec), front, out / "cache")


def contents(sides: Split) -> list[list[tuple[str, float, float]]]:
    """Return the parts of each side as (content hash, start, stop), independent of file names."""
    return [[(part.file.sha256, part.start, part.stop) for part in side] for side in (sides.train, sides.held_out)]


def other_files(folder: Path, out: Path) -> RunError:
    """Return the RunError of a folder that does not hold the files of a run."""
    return RunError(
        f"{folder}: its files are not those that {out} was started with; restore them, or train again into another "
        "folder"
    )


def check_same_frontend(out: Path, front: Frontend, name: str | None, settings: dict[str, Any]) -> None:
    """Check that the front-end that was asked for is that of the run.

    Args:
        out: the run folder.
        front: the run's front-end.
        name: name or folder that was asked for; None for the run's own.
        settings: settings that were asked for.

    Raises:
        RunError: the folder holds another front-end.
        ConfigError: the name or a setting differs.
    """
    saved = frontend_to_dict(front)
    if name is not None and name not in FRONTENDS:
        if load_frontend(name, **settings).fingerprint() != front.fingerprint():
            raise RunError(
                f"{name}: is not the front-end that {out} was started with; leave out --frontend, or train "
                "into another folder"
            )
        return
    if name is not None and name != saved["kind"]:
        raise _begun_with(out, "frontend.kind", saved["kind"])
    asked = type(front).at_rate(settings, front.spec.sample_rate)
    values = to_dict(from_dict(type(front).Config, asked, "frontend"))
    for key in settings:
        if values[key] != saved[key]:
            raise _begun_with(out, f"frontend.{key}", saved[key])


def resumed_config(
    saved: RunConfig, out: Path, backbone: str | None, asked: dict[str, Any], overrides: Sequence[str]
) -> RunConfig:
    """Return the config of a resumed run, in which only its duration and its sampling may change.

    Args:
        saved: the run's config.
        out: the run folder.
        backbone: name that was asked for; None for the run's own.
        asked: fields of TrainingConfig that were asked for.
        overrides: "a.b=1" assignments.

    Raises:
        ConfigError: another setting differs; names it.
    """
    before = {"sampling": {}, "distributed": {}, **saved.to_dict()}
    after = override(before, [*overrides, *([] if backbone is None else [f"backbone.kind={backbone}"])])
    after["training"].update(asked)
    for group, values in before.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if after[group].get(key) != value and not {group, f"{group}.{key}"} & set(MAY_CHANGE):
                raise _begun_with(out, f"{group}.{key}", value)
    return RunConfig.from_dict(after)


def _begun_with(out: Path, key: str, value: Any) -> ConfigError:
    return ConfigError(
        f"{key}: {out} was started with {value!r}, and resuming can't change it; train into another "
        "folder, or leave it out"
    )
