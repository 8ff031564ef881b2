"""From what a user names to what a run is made of: a folder or a cache, its front-end, its split, its codes."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import from_dict
from ..data import EncodedCache, Index, Split, fit_to, frontend_for, is_cache, long_enough, scan, split
from ..errors import ConfigError
from ..frontends import FRONTENDS, Frontend, frontend_to_dict, load_frontend
from ..runs.build import blank_model
from ..runs.config import RunConfig
from .defaults import FRONTEND, default_config

log = logging.getLogger("audiogen")


def open_source(folder: Path, strict: bool) -> Index | EncodedCache:
    if is_cache(folder):
        return EncodedCache.open(folder)
    index = scan(folder, strict)
    for file in index.rejected:
        log.warning("left out: %s: %s", file.path, file.reason)
    index.require_files()
    return index


def frontend_of(source: Index | EncodedCache, name: str | None, settings: dict[str, Any]) -> Frontend:
    """The front-end that the user names, at the folder's own rate if it has one to choose."""
    if isinstance(source, EncodedCache):
        if name is not None or settings:
            raise ConfigError(
                f"{source.folder}: was encoded by a front-end of its own; leave out --frontend and "
                "--set frontend...., or give the folder of sound files"
            )
        return source.frontend()
    return frontend_for(source, name or FRONTEND, settings)


def num_codes(source: Index | EncodedCache, front: Frontend) -> float:
    """About how many codes a source holds; infinity where only encoding it will tell."""
    index = source.index if isinstance(source, EncodedCache) else source
    return index.seconds * (front.spec.frame_rate or math.inf) * front.spec.num_rows


def check_settings(
    frontend: str | None, settings: dict[str, Any], backbone: str, rest: Sequence[str], asked: dict[str, Any]
) -> None:
    """Raises what is wrong with the settings, before a folder is read through for minutes."""
    frontend = frontend or FRONTEND
    if frontend in FRONTENDS:
        part = FRONTENDS[frontend]
        front = part(from_dict(part.Config, part.at_rate(settings, part.highest_default_rate), "frontend"))
    else:
        front = load_frontend(frontend, **settings)
    blank_model(default_config(frontend_to_dict(front), front.spec, backbone, rest, asked), front.spec)


def encoded(source: Index | EncodedCache, front: Frontend, config: RunConfig, out: Path) -> EncodedCache:
    if isinstance(source, EncodedCache):
        return source
    fit_new(front, source, config)
    return tell_left_out(EncodedCache.open_or_build(long_enough(source, front.spec), front, out / "cache"), source)


def tell_left_out(cache: EncodedCache, source: Index) -> EncodedCache:
    """The cache, after a line for each file that only the front-end could not use."""
    known = {file.path for file in source.rejected}
    for file in cache.index.rejected:
        if file.path not in known:
            log.warning("left out: %s: %s", file.path, file.reason)
    return cache


def fit_new(front: Frontend, index: Index, config: RunConfig) -> None:
    """Fits a learned front-end that is not fitted yet, on the training files alone."""
    if not front.fitted:
        log.info("fitting the front-end to the training files")
        index = long_enough(index, front.spec)
        fit_to(front, index, split_for(index, config, front))


def split_for(index: Index, config: RunConfig, front: Frontend) -> Split:
    """By content; where one file is cut, the gap is what the model hears back at most."""
    frames_per_second = front.spec.sample_rate / front.longest_frame
    return split(index, config.data.held_out, blank_model(config, front.spec).receptive_frames / frames_per_second)
