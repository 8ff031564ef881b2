"""The encoded cache: a folder of sound as codes or frames on disk, mapped into memory and checked on opening.

    CACHE/data.bin                              (total frames, C), one file after the other, little-endian
    CACHE/config.json, frontend.safetensors     the front-end, so that the folder alone can decode
    CACHE/index.json                            what lies where, and the sums that data.bin is checked against

They are written in this order, an older index.json being removed first: a folder that has one was finished.
"""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..audio.io import read_blocks, write_audio
from ..errors import AudiogenError, AudioReadError, CacheError, printable
from ..frontends import Frontend, load_frontend, save_frontend
from ..spec import Spec
from ..utils.files import LOCK_FILE, alone_in, atomic_path, clear_leftovers, sha256_file
from .cache_index import DATA_FILE, INDEX_FILE, CachedFile, Record, check_data, damaged, read_record
from .index import FileEntry, Index, Rejected, long_enough, scan

FRONTEND_FILES = ("config.json", "frontend.safetensors")


class EncodedCache:
    """A folder of sound as one front-end encodes it. Made by `build`, `open` or `open_or_build`.

    Only what is asked for is read from disk. Loader processes can share one: what is pickled is its list of files.

    Attributes:
        folder: of the cache.
        files: CachedFile of each, by path.
        index: the same as an Index, so that `split(cache.index)` is what it was for the folder that was encoded.
        offsets: (files + 1,): frames [offsets[i], offsets[i + 1]) of `data` are file i.
    """

    def __init__(self, folder: Path, record: Record):
        self.folder, self.record = folder, record
        self.files, self.offsets = record.files, record.offsets
        self.index = Index(folder, [file.entry for file in self.files], record.rejected, record.ignored)

    @classmethod
    def open(cls, folder: str | Path, frontend: Frontend | None = None, index: Index | None = None) -> "EncodedCache":
        """Opens a cache after checking every byte of it.

        Args:
            frontend: the one that must have made it: equal in kind, settings and weights.
            index: the files that it must hold, by content; those that are too short count for nothing.

        Raises:
            CacheError: not there, half-written, damaged, of a newer format, or made by or from something else.
        """
        folder = Path(folder)
        cache = cls(folder, read_record(folder))
        made_by = cache.record.fingerprint
        try:
            if cache.frontend().fingerprint() != made_by:
                raise ValueError(f"{' and '.join(FRONTEND_FILES)} are not of the front-end that made it")
            check_data(cache.data, cache.spec)
        except (AudiogenError, ValueError) as error:
            raise damaged(folder, str(error)) from error
        if frontend is not None and frontend.fingerprint() != made_by:
            raise CacheError(
                f"{folder}: was made by another front-end (kind, settings or weights differ); "
                "use that one, or encode again"
            )
        if index is not None and _hashes(long_enough(index, cache.spec)) != _hashes(cache.index):
            raise CacheError(f"{folder}: was made from other files than those now in {index.folder}; encode again")
        return cache

    @classmethod
    def build(
        cls, source: Index | str | Path, frontend: Frontend, out: str | Path, progress: bool = True
    ) -> "EncodedCache":
        """Encodes a folder file by file, on the front-end's device.

        Files that can't be read are left out and reported (`cache.index.rejected`), as are those under two frames. A
        cache that stood at `out` before stays good until this one is finished; an interrupted build leaves nothing
        that counts. Memory does not grow with the length of a file.

        Args:
            source: the folder, or what `scan` said of it.
            frontend: fitted.
            out: a new or empty folder, or a cache that is to be replaced.
            progress: show a bar, if the output is a terminal.

        Raises:
            DataError: there is nothing to encode.
            CacheError: `out` holds something else.
            NotFittedError: the front-end must be fitted first.
            AudiogenError: the disk is full; names path and bytes.
        """
        out = Path(out)
        frontend.check_fitted()
        index = long_enough(source if isinstance(source, Index) else scan(source, progress=progress), frontend.spec)
        index.require_files()
        _make_room(out)
        files, rejected = [], list(index.rejected)
        with atomic_path(out / DATA_FILE) as temporary:
            with open(temporary, "wb") as data:
                for entry in tqdm(index.files, unit="file", desc="encoding", disable=None if progress else True):
                    begin = data.tell()
                    found = _encode(frontend, index.folder / entry.path, entry, data)
                    if isinstance(found, CachedFile):
                        files.append(found)
                    else:
                        rejected.append(found)
                        data.seek(begin)
                        data.truncate()
            kept = Index(index.folder, [file.entry for file in files], sorted(rejected, key=lambda file: file.path))
            kept.require_files()
            (out / INDEX_FILE).unlink(missing_ok=True)
            num_frames, dtype = sum(file.num_frames for file in files), frontend.spec.storage_dtype
            num_rows = temporary.stat().st_size // (num_frames * np.dtype(dtype).itemsize)
            record = Record(
                frontend.fingerprint(),
                dtype,
                [num_frames, num_rows],
                sha256_file(temporary),
                files,
                kept.rejected,
                index.ignored,
            )
        for name in FRONTEND_FILES:
            (out / name).unlink(missing_ok=True)
        save_frontend(frontend, out)
        record.write(out)
        return cls(out, record)

    @classmethod
    def open_or_build(cls, index: Index, frontend: Frontend, out: str | Path, progress: bool = True) -> "EncodedCache":
        """The cache at `out` if this front-end made it from these files, else a new one in its place."""
        if is_cache(out):
            try:
                return cls.open(out, frontend, index)
            except CacheError:
                pass
        with alone_in(out):
            return cls.build(index, frontend, out, progress)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def spec(self) -> Spec:
        return self.frontend().spec

    def frontend(self) -> Frontend:
        """The front-end that made it, the same object each time: moving it moves where `decode` works."""
        return self._frontend

    @cached_property
    def _frontend(self) -> Frontend:
        return load_frontend(self.folder)

    @cached_property
    def data(self) -> np.ndarray:
        """(total frames, C) as stored, uint8 to uint32 or float32, mapped into memory."""
        stored = np.memmap(self.folder / DATA_FILE, self.record.dtype, "r", shape=tuple(self.record.shape))
        return stored.view(np.ndarray)  # slicing a memmap costs ten times as much

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("data", "_frontend")}

    def codes(self, i: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Frames [start, stop) of file i: codes (K, T) int64, or frames (F, T) float32."""
        start, stop, _ = slice(start, stop).indices(self.files[i].num_frames)
        return as_tensor(self.data[self.offsets[i] + start : self.offsets[i] + stop].T)

    @torch.no_grad()
    def decode(self, i: int) -> Tensor:
        """File i as sound again: (1, num_samples) float32 on the CPU, at spec.sample_rate."""
        frontend, x = self.frontend(), self.codes(i)[None]  # (1, C, T)
        wav = frontend.decode(x.to(frontend.device, frontend.dtype if x.is_floating_point() else x.dtype))
        return wav[0, :, : self.files[i].num_samples].float().cpu()

    def write_wavs(self, out: str | Path, progress: bool = True) -> list[Path]:
        """Decode every file to a WAV below `out`, a/b.wav as a/b.wav and a/b.flac as a/b.flac.wav.

        Returns:
            What was written, in the order of `files`.
        """
        written: dict[Path, None] = {}
        for i, file in enumerate(tqdm(self.files, unit="file", desc="decoding", disable=None if progress else True)):
            path = Path(out, file.path if file.path.lower().endswith(".wav") else f"{file.path}.wav")
            while path in written:  # a.flac and a.flac.wav
                path = path.with_name(f"{path.name}.wav")
            write_audio(path, self.decode(i), self.spec.sample_rate)
            written[path] = None
        return list(written)


def is_cache(folder: str | Path) -> bool:
    """Whether a folder is an encoded cache (whole or damaged) rather than one of sound files."""
    return all(os.path.isfile(Path(folder, name)) for name in (DATA_FILE, *FRONTEND_FILES))


def holds_cache(folder: str | Path) -> bool:
    """Whether a build came to its end in a folder."""
    return all(Path(folder, name).exists() for name in (DATA_FILE, INDEX_FILE))


def as_tensor(stored: np.ndarray) -> Tensor:
    """A copy of what is stored: codes as int64, frames as float32."""
    return torch.from_numpy(stored.astype(np.int64 if stored.dtype.kind == "u" else np.float32, order="C"))


def _hashes(index: Index) -> list[str]:
    return sorted(file.sha256 for file in index.files)


@torch.no_grad()
def _encode(frontend: Frontend, path: Path, entry: FileEntry, data: BinaryIO) -> CachedFile | Rejected:
    """Appends the frames of one file, (T, C), to `data`."""
    dtype, num_samples, num_frames = frontend.spec.storage_dtype, 0, 0
    try:
        changed = sha256_file(path) != entry.sha256
    except OSError as error:
        return Rejected(entry.path, f"can't be read ({error.strerror})")
    if changed:
        return Rejected(entry.path, "has changed since the folder was scanned")
    try:

        def chunks() -> Iterator[Tensor]:
            nonlocal num_samples
            for wav in read_blocks(path, frontend.spec.sample_rate):
                num_samples += wav.shape[1]
                yield wav[None].to(frontend.device, frontend.dtype)

        for x in frontend.encode_stream(chunks()):  # (1, C, t)
            data.write(np.ascontiguousarray(x[0].T.cpu().numpy(), dtype))
            num_frames += x.shape[2]
    except AudioReadError as error:
        return Rejected(entry.path, str(error).removeprefix(printable(f"{path}: ")))
    # Where the rate varies, how many there are says nothing of the length, and `long_enough` could not know it.
    if num_frames < 2 and frontend.spec.hop_length is not None:
        return Rejected(entry.path, f"too short: {num_frames} frames of the front-end, and two are needed")
    return CachedFile(entry, num_samples, num_frames)


def _make_room(out: Path) -> None:
    """Refuse a place that holds anything but a cache, and clear away what an interrupted build left."""
    if out.exists() and not out.is_dir():
        raise CacheError(f"{out}: is a file; give a folder for the cache")
    clear_leftovers(out)
    there = {path.name for path in out.iterdir()} - {LOCK_FILE} if out.exists() else set()
    strangers = there - {INDEX_FILE, DATA_FILE, *FRONTEND_FILES}
    # config.json and weights alone are a front-end that someone fitted and saved.
    if strangers or there and DATA_FILE not in there:
        named = ", ".join(sorted(strangers or there)[:3])
        raise CacheError(f"{out}: already holds other files ({named}); give a new folder for the cache")
