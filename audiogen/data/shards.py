"""Encode a folder in shards: pieces of work that any process can do, with the same bytes whoever does it.

    CACHE/.shards/000012-<16 hex digits>.bin     frames (T, C) of consecutive files, one after another, little-endian
    CACHE/.shards/000012-<16 hex digits>.json    the length of each file, and the SHA-256 of the .bin; written last

The name follows from the contents of the files and from the front-end, so a shard whose .json exists is done: after a
kill, the same command goes on from there. Both files appear by renaming, and doing a shard twice changes nothing.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..audio.io import read_blocks
from ..errors import AudiogenError, AudioReadError, printable
from ..frontends import Frontend
from ..utils.files import atomic_path, atomic_write_json, clear_leftovers, sha256_file
from ..utils.json_files import LISTS, read_format
from ..utils.remote import fetched
from .cache_index import CachedFile
from .index import FileEntry, Index, Rejected

SHARDS_FOLDER = ".shards"
FORMAT = 1
#: A folder is divided into about this many shards, of this many seconds of sound at least and at most: enough of them
#: to share the work out equally, and each so long that writing it costs little.
NUM_SHARDS, SHORTEST, LONGEST = 64, 120.0, 3600.0
BLOCK_BYTES = 2**20
_FILE_NAME = re.compile(r"\d{6,}-[0-9a-f]{16}\.(bin|json)")


@dataclass(frozen=True)
class Job:
    """What a process needs to encode any shard of a folder.

    Attributes:
        folder: folder of the sound files, which may be a RemotePath.
        out: folder of the shards.
        frontend: fitted front-end, on the device to use.
    """

    folder: Path
    out: Path
    frontend: Frontend


@dataclass(frozen=True)
class Shard:
    """Consecutive files of an index. Its name follows from their contents and the front-end."""

    name: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class EncodedShard:
    """What became of a shard.

    Attributes:
        shard: the shard.
        sha256: of its .bin.
        files: the files that it holds, in order.
        rejected: the files that were left out, in order.
    """

    shard: Shard
    sha256: str
    files: list[CachedFile]
    rejected: list[Rejected]


def plan_shards(index: Index, frontend: Frontend) -> list[Shard]:
    """Divide an index into shards. The plan follows from the files and the front-end alone."""
    # Another type of device or dtype rounds in another way.
    made_by = [FORMAT, frontend.fingerprint(), frontend.device.type, str(frontend.dtype)]
    seconds = min(max(index.seconds / NUM_SHARDS, SHORTEST), LONGEST)
    shards, files, length = [], [], 0.0
    for place, file in enumerate(index.files):
        files.append(file)
        length += file.duration
        if length >= seconds or place == len(index.files) - 1:
            contents = json.dumps([made_by, [[file.path, file.sha256] for file in files]])
            digest = hashlib.sha256(contents.encode()).hexdigest()
            shards.append(Shard(f"{len(shards):06d}-{digest[:16]}", tuple(files)))
            files, length = [], 0.0
    return shards


def encode_shard(
    job: Job, shard: Shard, skip: Mapping[int, str] | None = None, begin: Callable[[int], None] = lambda place: None
) -> EncodedShard:
    """Encode the files of a shard and write it, unless that has been done.

    Files that can't be read or encoded are left out. On a CPU a single thread computes, since the number of threads
    may change the last bit of a sum.

    Args:
        job: what to encode with.
        shard: the files.
        skip: files to leave out, as {place in the shard: reason}.
        begin: called with the place of each file before it is read.

    Raises:
        AudiogenError: the disk or the memory is full.
    """
    if (done := read_shard(job.out, shard)) is not None:
        return done
    lengths, rejected, frontend = [], [], job.frontend
    with atomic_path(job.out / f"{shard.name}.bin") as temporary, _one_thread(frontend.device):
        with open(temporary, "wb") as data:
            for place, entry in enumerate(shard.files):
                begin(place)
                start = data.tell()
                reason = (skip or {}).get(place)
                if reason is None:
                    with fetched(job.folder / entry.path) as path:
                        found = _encode(frontend, path, entry, data)
                else:
                    found = reason
                if isinstance(found, str):
                    rejected.append([place, found])
                    data.seek(start)
                    data.truncate()
                else:
                    lengths.append([place, *found])
        digest = sha256_file(temporary)
    values = {"format": FORMAT, "sha256": digest, "files": lengths, "rejected": rejected}
    atomic_write_json(job.out / f"{shard.name}.json", values)
    return _from_json(shard, values)


def read_shard(folder: Path, shard: Shard) -> EncodedShard | None:
    """Read what became of a shard; None if it is not done."""
    try:
        values = read_format(folder / f"{shard.name}.json", FORMAT, AudiogenError, "", LISTS)
        return _from_json(shard, values) if (folder / f"{shard.name}.bin").is_file() else None
    except (FileNotFoundError, AudiogenError, TypeError, ValueError, LookupError):
        return None  # it is written anew


def join_shards(folder: Path, shards: Sequence[EncodedShard], data: BinaryIO) -> str:
    """Append the frames of all shards to `data`, and return their SHA-256.

    Raises:
        AudiogenError: a shard is damaged; it is then removed.
    """
    whole = hashlib.sha256()
    for done in shards:
        path, own = folder / f"{done.shard.name}.bin", hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                data.write(block)
                whole.update(block)
                own.update(block)
        if own.hexdigest() != done.sha256:
            path.with_suffix(".json").unlink(missing_ok=True)
            raise AudiogenError(
                f"{path}: has changed since it was written; check the disk, and run the same command again: only this "
                "part is then encoded anew"
            )
    return whole.hexdigest()


def remove_shards(cache: Path) -> None:
    """Remove the shards in the folder of a cache."""
    folder = cache / SHARDS_FOLDER
    with suppress(OSError):  # not there, not empty, or a link
        if not folder.is_symlink():
            clear_leftovers(folder)
            for path in folder.iterdir():
                if _FILE_NAME.fullmatch(path.name):
                    path.unlink()
            folder.rmdir()


def _from_json(shard: Shard, values: dict) -> EncodedShard:
    return EncodedShard(
        shard,
        str(values["sha256"]),
        [CachedFile(shard.files[place], samples, frames) for place, samples, frames in values["files"]],
        [Rejected(shard.files[place].path, reason) for place, reason in values["rejected"]],
    )


@torch.no_grad()
def _encode(frontend: Frontend, path: Path, entry: FileEntry, data: BinaryIO) -> tuple[int, int] | str:
    """Encode a file and append its frames (T, C) to `data`.

    Returns:
        Numbers of samples and frames; or the reason why the file is left out.
    """
    try:
        changed = sha256_file(path) != entry.sha256
    except OSError as error:
        return f"can't be read ({error.strerror})"
    if changed:
        return "has changed since the folder was scanned"
    dtype, num_samples, num_frames = frontend.spec.storage_dtype, 0, 0

    def chunks() -> Iterator[Tensor]:
        nonlocal num_samples
        for wav in read_blocks(path, frontend.spec.sample_rate):
            num_samples += wav.shape[1]
            yield wav[None].to(frontend.device, frontend.dtype)

    try:
        for x in frontend.encode_stream(chunks()):  # (1, C, t)
            data.write(np.ascontiguousarray(x[0].T.cpu().numpy(), dtype).data)
            num_frames += x.shape[2]
    except AudioReadError as error:
        return str(error).removeprefix(printable(f"{path}: "))
    except (AudiogenError, OSError):  # such as a full disk
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        what = " ".join(str(error).split())[:200]
        raise AudiogenError(f"{path}: not enough memory to encode it ({what}); use fewer workers") from error
    except Exception as error:
        if frontend.device.type != "cpu":  # an error of the device would fail all other files as well
            raise
        return f"can't be encoded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    # With a variable rate, a single frame may be a whole file.
    if num_frames < 2 and frontend.spec.hop_length is not None:
        return f"too short: {num_frames} frames of the front-end; at least two are needed"
    return num_samples, num_frames


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
