"""Encode a folder into a cache: what `audiogen tokenize` does."""

from collections.abc import Sequence
from pathlib import Path

from ..data import EncodedCache, is_cache
from ..data.cache import holds_cache
from ..errors import CacheError, ConfigError
from ..utils.devices import choose_device
from ..utils.files import alone_in, check_is_no_file
from .defaults import frontend_settings, refuse_settings
from .plan import Flags, Plan, open_source, report_left_out


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
    _, rest = frontend_settings(overrides)
    refuse_settings(rest, taken=("data.held_out",))
    flags = Flags(frontend, overrides=overrides)
    draft = Plan.draft(flags)
    with alone_in(out):
        if holds_cache(out):
            raise CacheError(f"{out}: holds a cache already; choose another folder, or remove it")
        source = open_source(folder)
        plan = Plan.for_source(source, flags, draft)
        plan.frontend.to(choose_device(device))
        plan.fit(source)
        return report_left_out(EncodedCache.build(source, plan.frontend, out), source)
