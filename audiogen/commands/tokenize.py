"""Encode a folder into a cache: `audiogen tokenize`."""

from collections.abc import Sequence
from pathlib import Path

from ..data import EncodedCache, Index, is_cache
from ..data.cache import holds_cache
from ..data.journal import JOURNAL_FILE
from ..data.ray_fleet import check_cluster
from ..data.shards import remove_shards
from ..errors import CacheError, ConfigError
from ..utils.devices import choose_device
from ..utils.files import alone_in, check_is_no_file
from ..utils.remote import as_folder, is_remote
from .conditions import labels_of
from .defaults import frontend_settings, refuse_settings
from .plan import Flags, Plan, open_source, report_left_out


def tokenize(
    folder: str | Path,
    out: str | Path,
    frontend: str | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    label_pattern: str | None = None,
    workers: int | None = None,
    ray: str | None = None,
) -> EncodedCache:
    """Encode a folder into the cache `out`, which `train` accepts instead of the folder.

    A learned front-end is fitted to the files that `train` would not hold out. If the command was interrupted, the same
    one continues. The cache does not depend on the number of processes.

    Args:
        folder: folder of sound files, or its URL in an object store, such as s3://bucket/folder; each file is then
            fetched while it is read. Labels beside the sounds are not read there, other than those of metadata.csv.
        out: folder of the cache, new or empty.
        frontend: name of a front-end, or a folder that holds one; None for the default.
        device: "auto", "cpu" or "cuda".
        overrides: "a.b=1" assignments of the front-end and of data.held_out; others are refused.
        label_pattern: pattern over file names, whose labels are kept in the cache; see `find_labels`.
        workers: number of processes; None for one per core, or per GPU, where that saves time.
        ray: encode on the Ray cluster at this address, "HOST:PORT"; "auto" for the one that runs on this machine, or
            else a new one here. All its machines must see `folder` and `out` under the same paths.

    Raises:
        DataError: the folder has too little sound.
        ConfigError: the folder is a cache, a setting is wrong, or there is no such cluster.
        CacheError: `out` holds a cache or other files.

    Example:
        >>> for i in range(2):
        ...     write_audio(f"sounds/{i}.wav", torch.rand(1, 8000) - 0.5, 8000)
        >>> len(tokenize("sounds", "cache", frontend="mulaw"))
        2
    """
    if is_remote(as_folder(out)):
        raise ConfigError(f"{out}: is a URL; caches are mapped into memory, so give a folder on a disk")
    check_is_no_file(out)
    if ray is not None:
        check_cluster(ray)  # before the folder is scanned
    if is_cache(folder):
        raise ConfigError(f"{folder}: is encoded already; give a folder of sound files")
    _, rest = frontend_settings(overrides)
    refuse_settings(rest, taken=("data.held_out",))
    flags = Flags(frontend, overrides=overrides)
    draft = Plan.draft(flags)
    with alone_in(out):
        if holds_cache(out):
            remove_shards(Path(out))  # a command that was killed at its very end leaves them
            raise CacheError(f"{out}: holds a cache already; choose another folder, or remove it")
        source = open_source(folder, out=Path(out))
        assert isinstance(source, Index)  # caches were refused above
        labels, plan = labels_of(source, label_pattern), Plan.for_source(source, flags, draft)
        plan.frontend.to(choose_device(device))
        plan.fit(source)
        cache = report_left_out(EncodedCache.build(source, plan.frontend, out, workers=workers, ray=ray), source)
        if labels.files:
            labels.save(cache.folder)
        Path(out, JOURNAL_FILE).unlink(missing_ok=True)
        return cache
