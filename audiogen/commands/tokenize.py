"""Encode a folder into a cache: what `audiogen tokenize` does."""

from collections.abc import Sequence
from pathlib import Path

from ..data import EncodedCache, is_cache
from ..data.cache import holds_cache
from ..errors import CacheError, ConfigError
from ..frontends import frontend_to_dict
from ..utils.devices import choose_device
from ..utils.files import alone_in, check_is_no_file
from .defaults import BACKBONE, default_config, frontend_settings, refuse_settings
from .source import check_settings, fit_new, frontend_of, open_source, tell_left_out


def tokenize(
    folder: str | Path,
    out: str | Path,
    frontend: str | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> EncodedCache:
    """Encodes a folder into the cache `out`, which `train` takes in its place. A learned front-end is fitted on the
    files that `train` would not hold out.

    Args:
        overrides: of the front-end alone, besides data.held_out: nothing else would be remembered.
    """
    check_is_no_file(out)
    if is_cache(folder):
        raise ConfigError(f"{folder}: is encoded already; give a folder of sound files")
    settings, rest = frontend_settings(overrides)
    refuse_settings(rest, taken=("data.held_out",))
    check_settings(frontend, settings, BACKBONE, rest, {})
    with alone_in(out):
        if holds_cache(out):
            raise CacheError(f"{out}: holds a cache already; choose another folder, or remove it")
        source = open_source(Path(folder), strict=False)
        front = frontend_of(source, frontend, settings).to(choose_device(device))
        config = default_config(frontend_to_dict(front), front.spec, BACKBONE, rest)
        fit_new(front, source, config)
        return tell_left_out(EncodedCache.build(source, front, out), source)
