"""Join the caches of several corpora, so that a model can be trained on all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CacheError
from ..frontends import save_frontend
from ..utils.files import alone_in, atomic_path, sha256_file
from .cache import EncodedCache
from .cache_index import DATA_FILE, FRONTEND_FILES, INDEX_FILE, CachedFile, Record, is_cache
from .index import Rejected


def join_caches(caches: Sequence[EncodedCache], names: Sequence[str], out: Path) -> EncodedCache:
    """Join caches of one front-end in a new cache, unless it is there already. Codes are copied.

    Args:
        caches: the caches.
        names: their names, with which paths then begin; see `corpus_names`.
        out: folder of the new cache.

    Raises:
        CacheError: they were made by different front-ends.
        AudiogenError: the disk is full.
    """
    first = caches[0].record
    for cache in caches[1:]:
        if cache.record.fingerprint != first.fingerprint:
            raise CacheError(
                f"{cache.folder}: was made by another front-end than {caches[0].folder}; encode it again with "
                f"--frontend {caches[0].folder}"
            )
    files, rejected, pieces = [], [], []
    known: dict[str, str] = {}
    for cache, name in zip(caches, names, strict=True):
        rejected += [Rejected(f"{name}/{file.path}", file.reason) for file in cache.record.rejected]
        for i, file in enumerate(cache.files):
            path = f"{name}/{file.path}"
            copy = next((known[digest] for digest in file.entry.digests if digest in known), None)
            if copy is not None:  # which might be held out
                rejected.append(Rejected(path, f"has the same content as {copy}"))
                continue
            known |= dict.fromkeys(file.entry.digests, path)
            files.append(CachedFile(replace(file.entry, path=path), file.num_samples, file.num_frames))
            pieces.append((cache, i))
    if is_cache(out):
        try:
            made = EncodedCache.open(out)
            if made.files == files and made.record.fingerprint == first.fingerprint:
                return made
        except CacheError:
            pass
    with alone_in(out):
        (out / INDEX_FILE).unlink(missing_ok=True)
        with atomic_path(out / DATA_FILE) as temporary:
            with open(temporary, "wb") as data:
                for cache, i in pieces:
                    data.write(cache.data[cache.offsets[i] : cache.offsets[i + 1]].data)
            digest = sha256_file(temporary)
        for name in FRONTEND_FILES:
            (out / name).unlink(missing_ok=True)
        save_frontend(caches[0].frontend(), out)
        shape = [sum(file.num_frames for file in files), first.shape[1]]
        ignored = sum(cache.record.ignored for cache in caches)
        rejected.sort(key=lambda file: file.path)
        Record(first.fingerprint, first.dtype, shape, digest, files, rejected, ignored).write(out)
    return EncodedCache.open(out, verify=False)
