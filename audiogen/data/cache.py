"""The encoded cache: the codes or frames of a folder, stored on disk, memory-mapped, and verified when opened.

    CACHE/data.bin                              (total frames, C), one file after another, little-endian
    CACHE/config.json, frontend.safetensors     the front-end, so that the folder can be decoded by itself
    CACHE/files.bin, files.txt                  the files as columns, if there are many (see columns.py)
    CACHE/index.json                            the position of each file, and checksums of all

Files are written in this order, after an older index.json is removed: a folder with an index.json is complete.
"""

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..audio.io import write_audio
from ..audio.limiter import Limiter, log_reductions
from ..errors import AudiogenError, CacheError
from ..frontends import Frontend, load_frontend, save_frontend
from ..spec import Spec
from ..utils.files import LOCK_FILE, alone_in, atomic_path, clear_leftovers
from .cache_index import (
    COLUMN_FILES,
    DATA_FILE,
    DESCRIPTORS_FOLDER,
    FRONTEND_FILES,
    INDEX_FILE,
    CachedFiles,
    Record,
    VerifiedData,
    check_data,
    damaged,
    is_cache,
    read_record,
)
from .fleet import encode_shards
from .index import Index, long_enough, scan
from .journal import JOURNAL_FILE
from .labels import LABELS_FILE
from .ray_fleet import encode_shards_on_ray
from .shards import SHARDS_FOLDER, Job, join_shards, plan_shards, remove_shards


class EncodedCache(Dataset[Tensor]):
    """A folder of sound files encoded by one front-end. Use `build`, `open` or `open_or_build` to get one.

    It is a torch Dataset of its files: item i is `codes(i)`; with `collate`, a DataLoader makes padded batches.

    Only the requested frames are read from disk. Loader processes can share a cache: pickling it copies the list of
    files, not the data.

    Attributes:
        folder: folder of the cache.
        record: contents of index.json.
        files: the encoded files, sorted by path.
        index: the same files as an Index; `split(cache.index)` equals the split of the folder that was encoded.
        num_frames: (files,) int64, T of each file.
        offsets: (files + 1,); file i is frames [offsets[i], offsets[i + 1]) of `data`.

    Example:
        >>> for i in range(3):
        ...     write_audio(f"sounds/{i}.wav", torch.rand(1, 8000) - 0.5, 8000)
        >>> cache = EncodedCache.build("sounds", load_frontend("mulaw", sample_rate=8000), "cache", progress=False)
        >>> len(cache), cache.codes(0).shape
        (3, torch.Size([1, 8000]))
        >>> len(EncodedCache.open("cache"))
        3
    """

    def __init__(self, folder: Path, record: Record):
        self.folder, self.record = folder, record
        self.files, self.offsets = record.files, record.offsets
        self.num_frames = record.num_frames
        self.index = Index(folder, record.entries, record.rejected, record.ignored)

    @classmethod
    def open(
        cls, folder: str | Path, frontend: Frontend | None = None, index: Index | None = None, verify: bool = True
    ) -> "EncodedCache":
        """Open a cache and verify all of its data; that of a large one (format 2) is verified when it is first read.

        Args:
            folder: folder of the cache.
            frontend: if given, the cache must have been made by it: equal in kind, settings and weights.
            index: if given, the cache must hold exactly the content of these files, apart from those too short for it.
            verify: verify the data of a small one; False where another process has done so.

        Raises:
            CacheError: missing, incomplete, damaged, of a newer format, or made by another front-end or from other
                files.
        """
        folder = Path(folder)
        cache = cls(folder, read_record(folder, verify))
        made_by = cache.record.fingerprint
        try:
            if cache.frontend().fingerprint() != made_by:
                raise ValueError(f"{' and '.join(FRONTEND_FILES)} do not belong to the front-end that made it")
            if verify and not cache.record.blocks:
                check_data(cache.data, cache.spec)
        except (AudiogenError, ValueError) as error:
            raise damaged(folder, str(error)) from error
        if frontend is not None and frontend.fingerprint() != made_by:
            raise CacheError(
                f"{folder}: was made by another front-end (kind, settings or weights differ); "
                "use that one, or encode again"
            )
        if index is not None and _hashes(long_enough(index, cache.spec)) != sorted(cache.hashes()):
            raise CacheError(f"{folder}: was made from other files than those now in {index.folder}; encode again")
        return cache

    @classmethod
    def build(
        cls,
        source: Index | str | Path,
        frontend: Frontend,
        out: str | Path,
        progress: bool = True,
        workers: int | None = None,
        ray: str | None = None,
    ) -> "EncodedCache":
        """Encode a folder, on the front-end's device.

        Files that can't be read or encoded, or have fewer than two frames, are skipped and reported in
        `cache.index.rejected`. A previous cache at `out` stays valid until this one is complete. An interrupted build
        leaves no usable cache; the next one with the same files and front-end continues it. The cache does not depend
        on the number of processes. Memory does not grow with the length of a file.

        Args:
            source: the folder, or its Index from `scan`.
            frontend: a fitted front-end.
            out: a new or empty folder, or a cache to replace.
            progress: show a progress bar on a terminal.
            workers: number of processes; None for one per core, or per GPU, where that saves time.
            ray: encode on the Ray cluster at this address; see `encode_shards_on_ray`.

        Raises:
            DataError: there is nothing to encode.
            CacheError: `out` holds something else.
            NotFittedError: the front-end must be fitted first.
            ConfigError: there is no Ray, or no cluster at this address.
            AudiogenError: the disk is full (names the path and the number of bytes), or processes end again and again.
        """
        out = Path(out)
        frontend.check_fitted()
        index = long_enough(source if isinstance(source, Index) else scan(source, progress=progress), frontend.spec)
        index.require_files()
        _make_room(out)
        job, planned = Job(index.folder, out / SHARDS_FOLDER, frontend), plan_shards(index, frontend)
        try:
            if ray is None:
                shards = encode_shards(job, planned, workers, progress)
            else:
                shards = encode_shards_on_ray(job, planned, ray, progress)
        finally:
            with suppress(OSError):  # it holds what is done
                job.out.rmdir()
        files = [file for shard in shards for file in shard.files]
        rejected = [*index.rejected, *(file for shard in shards for file in shard.rejected)]
        kept = Index(index.folder, [file.entry for file in files], sorted(rejected, key=lambda file: file.path))
        if not files:
            remove_shards(out)
        kept.require_files()
        with atomic_path(out / DATA_FILE) as temporary:
            with open(temporary, "wb") as data:
                digest = join_shards(job.out, shards, data)
            (out / INDEX_FILE).unlink(missing_ok=True)
            num_frames, dtype = sum(file.num_frames for file in files), frontend.spec.storage_dtype
            num_rows = temporary.stat().st_size // (num_frames * np.dtype(dtype).itemsize)
            record = Record(
                frontend.fingerprint(), dtype, [num_frames, num_rows], digest, files, kept.rejected, index.ignored
            )
        for name in FRONTEND_FILES:
            (out / name).unlink(missing_ok=True)
        save_frontend(frontend, out)
        record.write(out)
        remove_shards(out)
        return cls(out, record)

    @classmethod
    def open_or_build(cls, index: Index, frontend: Frontend, out: str | Path, progress: bool = True) -> "EncodedCache":
        """Open the cache at `out` if this front-end made it from these files, else build it anew.

        Args:
            index: the files to encode.
            frontend: a fitted front-end.
            out: folder of the cache.
            progress: show a progress bar on a terminal.

        Raises:
            CacheError, DataError, NotFittedError, AudiogenError: as in `build`.
        """
        if is_cache(out):
            try:
                cache = cls.open(out, frontend, index)
                remove_shards(Path(out))
                return cache
            except CacheError:
                pass
        with alone_in(out):
            return cls.build(index, frontend, out, progress)

    def __repr__(self) -> str:
        return f"EncodedCache({str(self.folder)!r}: {len(self):,} files, {int(self.offsets[-1]):,} frames, {self.spec})"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        return self.codes(range(len(self))[i])  # an IndexError ends the iteration

    @property
    def spec(self) -> Spec:
        """The front-end's spec."""
        return self.frontend().spec

    def frontend(self) -> Frontend:
        """Return the front-end that made the cache, always the same object: `decode` runs on its device."""
        return self._frontend

    @cached_property
    def _frontend(self) -> Frontend:
        return load_frontend(self.folder)

    @cached_property
    def data(self) -> np.ndarray | VerifiedData:
        """The stored data (total frames, C), uint8 to uint32 or float32, memory-mapped."""
        stored = np.memmap(self.folder / DATA_FILE, self.record.dtype, "r", shape=tuple(self.record.shape))
        stored = stored.view(np.ndarray)  # slicing a memmap costs ten times as much
        return VerifiedData(stored, self.record, self.spec, self.folder) if self.record.blocks else stored

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("data", "_frontend")}

    def codes(self, i: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Return frames [start, stop) of file i: codes (K, T) int64, or frames (F, T) float32."""
        start, stop, _ = slice(start, stop).indices(int(self.num_frames[i]))
        return as_tensor(self.data[self.offsets[i] + start : self.offsets[i] + stop].T)

    def hashes(self) -> list[str]:
        """Return the SHA-256 of each sound file."""
        if isinstance(self.files, CachedFiles):
            text = self.files.entries.hashes.tobytes().hex()
            return [text[i : i + 64] for i in range(0, len(text), 64)]
        return [file.sha256 for file in self.files]

    def sha256(self, i: int) -> str:
        """Return the SHA-256 of sound file i."""
        if isinstance(self.files, CachedFiles):
            return self.files.entries.hashes[i].tobytes().hex()
        return self.files[i].sha256

    @torch.no_grad()
    def decode(self, i: int, limiter: Limiter | None = None) -> Tensor:
        """Decode file i to a wav (1, num_samples) float32 on the CPU, at spec.sample_rate; see `Frontend.decode`."""
        frontend, x = self.frontend(), self.codes(i)[None]  # (1, C, T)
        wav = frontend.decode(x.to(frontend.device, frontend.dtype if x.is_floating_point() else x.dtype), limiter)
        return wav[0, :, : self.files[i].num_samples].float().cpu()

    def write_wavs(self, out: str | Path, progress: bool = True) -> list[Path]:
        """Decode every file to a WAV below `out`: a/b.wav as a/b.wav, a/b.flac as a/b.flac.wav.

        Returns:
            The paths written, in the order of `files`.
        """
        written: dict[Path, None] = {}
        reductions: list[float] = []
        for i, file in enumerate(tqdm(self.files, unit="file", desc="decoding", disable=None if progress else True)):
            path = Path(out, file.path if file.path.lower().endswith(".wav") else f"{file.path}.wav")
            while path in written:  # a.flac and a.flac.wav
                path = path.with_name(f"{path.name}.wav")
            limiter = self.frontend().limiter()
            write_audio(path, self.decode(i, limiter), self.spec.sample_rate)
            reductions += [] if limiter is None else limiter.reductions
            written[path] = None
        log_reductions(reductions)
        return list(written)


def holds_cache(folder: str | Path) -> bool:
    """Return whether a folder holds a complete cache."""
    return all(Path(folder, name).exists() for name in (DATA_FILE, INDEX_FILE))


def as_tensor(stored: np.ndarray) -> Tensor:
    """Copy stored data to a tensor of the same shape: codes as int64, frames as float32."""
    return torch.from_numpy(stored.astype(np.int64 if stored.dtype.kind == "u" else np.float32, order="C"))


def _hashes(index: Index) -> list[str]:
    return sorted(file.sha256 for file in index.files)


def _make_room(out: Path) -> None:
    """Refuse a folder that holds anything but a cache, and remove what an interrupted build left."""
    if out.exists() and not out.is_dir():
        raise CacheError(f"{out}: is a file; give a folder for the cache")
    clear_leftovers(out)
    there = {path.name for path in out.iterdir()} - {LOCK_FILE} if out.exists() else set()
    there -= {SHARDS_FOLDER, JOURNAL_FILE}
    strangers = there - {INDEX_FILE, DATA_FILE, LABELS_FILE, DESCRIPTORS_FOLDER, *COLUMN_FILES, *FRONTEND_FILES}
    # config.json and weights alone are a saved front-end, not a cache.
    if strangers or there and DATA_FILE not in there:
        named = ", ".join(sorted(strangers or there)[:3])
        raise CacheError(f"{out}: already holds other files ({named}); give a new folder for the cache")
