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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from ..audio.io import read_blocks
from ..errors import AudiogenError, AudioReadError, printable
from ..frontends import Frontend
from ..frontends.streaming import reblocked
from ..utils.files import atomic_path, atomic_write_json, clear_leftovers, sha256_file
from ..utils.json_files import LISTS, read_format
from ..utils.remote import fetched
from .cache_index import CachedFile
from .index import FileEntry, Index, Rejected, resampled

SHARDS_FOLDER = ".shards"
FORMAT = 1
#: A folder is divided into about this many shards, of this many seconds of sound at least and at most: enough of them
#: to share the work out equally, and each so long that writing it costs little.
NUM_SHARDS, SHORTEST, LONGEST = 64, 120.0, 3600.0
BLOCK_BYTES = 2**20
#: Files of similar length are encoded together on a GPU: at most this many, of at most this many seconds each, read in
#: blocks of this many; the longest is at most this many times as long as the shortest.
MOST_TOGETHER, LONGEST_TOGETHER, READ_SECONDS, SIMILAR = 64, 600.0, 10.0, 1.25
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
    lengths, rejected, frontend, skip = [], [], job.frontend, skip or {}
    try:
        with atomic_path(job.out / f"{shard.name}.bin") as temporary, _one_thread(frontend.device):
            with open(temporary, "wb") as data:
                ready = _encode_in_batches(job, shard, skip, begin)
                for place in range(len(shard.files)):
                    start = data.tell()
                    if place in skip:
                        found = skip[place]
                    elif place in ready:
                        found, frames = ready.pop(place)
                        data.write(frames)
                    else:
                        [found] = _encode(job, shard, [place], [data], begin)
                    if isinstance(found, str):
                        rejected.append([place, found])
                        data.seek(start)
                        data.truncate()
                    else:
                        lengths.append([place, *found])
            digest = sha256_file(temporary)
            if read_shard(job.out, shard) is not None:
                raise _DoneMeanwhile
    except _DoneMeanwhile:
        return encode_shard(job, shard)
    values = {"format": FORMAT, "sha256": digest, "files": lengths, "rejected": rejected}
    atomic_write_json(job.out / f"{shard.name}.json", values)
    return _from_json(shard, values)


class _DoneMeanwhile(Exception):
    """Another process has finished the shard: its result counts, since a GPU may round in another way."""


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


def plan_batches(files: Sequence[FileEntry], frontend: Frontend) -> list[list[int]]:
    """Return the places of files that are encoded together on a GPU, shortest first; others are encoded by themselves.

    Shorter files of a batch end in zeros. Where these would change the last codes, only files of equal length share a
    batch. The batches follow from the files alone, so a shard that is done again on an equal GPU has the same bytes.
    """
    if frontend.spec.hop_length is None:
        return []
    rate, similar = frontend.spec.sample_rate, SIMILAR if frontend.ends_in_zeros else 1.0
    lengths = [resampled(file, rate) for file in files]
    batches: list[list[int]] = []
    for place in sorted(range(len(files)), key=lengths.__getitem__):
        if not 0 < lengths[place] <= LONGEST_TOGETHER * rate:
            continue
        if not batches or len(batches[-1]) == MOST_TOGETHER or lengths[place] > similar * lengths[batches[-1][0]]:
            batches.append([])
        batches[-1].append(place)
    return [batch for batch in batches if len(batch) > 1]


def _encode_in_batches(
    job: Job, shard: Shard, skip: Mapping[int, str], begin: Callable[[int], None]
) -> dict[int, tuple[tuple[int, int] | str, bytes]]:
    """Encode files together on a GPU, which a single one does not keep busy; {} on a CPU.

    Returns:
        By place, what `_encode` returns, and the frames (T, C).
    """
    ready = {}
    for batch in plan_batches(shard.files, job.frontend) if _together(job.frontend.device) else ():
        places = [place for place in batch if place not in skip]
        outs = [BytesIO() for _ in places]
        for place, out, found in zip(places, outs, _encode(job, shard, places, outs, begin), strict=True):
            ready[place] = found, out.getvalue()
    return ready


def _together(device: torch.device) -> bool:
    return device.type != "cpu"


@torch.no_grad()
def _encode(
    job: Job, shard: Shard, places: Sequence[int], outs: Sequence[BinaryIO], begin: Callable[[int], None]
) -> list[tuple[int, int] | str]:
    """Encode files together, and append the frames (T, C) of each to its `out`.

    Args:
        job: what to encode with.
        shard: the shard.
        places: of the files in it.
        outs: where the frames of each are written.
        begin: called with the place of each file before a part of it is read.

    Returns:
        Of each file, its numbers of samples and frames; or the reason why it is left out.
    """
    frontend, rate = job.frontend, job.frontend.spec.sample_rate
    dtype, reasons = frontend.spec.storage_dtype, {}
    starts, num_samples, num_frames = [out.tell() for out in outs], [0] * len(places), 0
    with ExitStack() as files:
        paths = [files.enter_context(fetched(job.folder / shard.files[place].path)) for place in places]

        def blocks(item: int) -> Iterator[Tensor]:
            """Yield the samples (1, n) of a file, n equal but for the last."""
            path, size = paths[item], round(READ_SECONDS * rate)
            try:
                begin(places[item])
                reason = _changed(path, shard.files[places[item]])
                if reason is not None:
                    reasons[item] = reason
                    return
                for wav, _ in reblocked(read_blocks(path, rate), size, size):
                    num_samples[item] += wav.shape[1]
                    yield wav
                    begin(places[item])
            except AudioReadError as error:
                reasons[item] = str(error).removeprefix(printable(f"{path}: "))

        def chunks() -> Iterator[Tensor]:
            """Yield (B, 1, n), in which files that have ended are zeros."""
            readers, none = [blocks(item) for item in range(len(places))], torch.zeros(1, 0)
            while True:
                wavs = [next(reader, none) for reader in readers]
                length = max(wav.shape[1] for wav in wavs)
                if length == 0:
                    return
                padded = [nn.functional.pad(wav, (0, length - wav.shape[1])) for wav in wavs]
                yield torch.stack(padded).to(frontend.device, frontend.dtype)

        try:
            for x in frontend.encode_stream(chunks()):  # (B, C, t)
                rows = x.transpose(1, 2).cpu().numpy()
                for out, row in zip(outs, rows, strict=True):
                    out.write(np.ascontiguousarray(row, dtype).data)
                num_frames += x.shape[2]
        except (AudiogenError, OSError):  # such as a full disk
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            what = " ".join(str(error).split())[:200]
            raise AudiogenError(f"{paths[0]}: not enough memory to encode it ({what}); use fewer workers") from error
        except Exception as error:
            if frontend.device.type != "cpu":  # an error of the device would fail all other files as well
                raise
            what = f"can't be encoded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            reasons = dict.fromkeys(range(len(places)), what) | reasons
    found: list[tuple[int, int] | str] = []
    for item, (out, start) in enumerate(zip(outs, starts, strict=True)):
        own = num_frames if len(places) == 1 else frontend.num_frames(num_samples[item])
        out.seek(start + own * frontend.spec.num_channels * np.dtype(dtype).itemsize)
        out.truncate()
        if item not in reasons and own < 2 and frontend.spec.hop_length is not None:
            # With a variable rate, a single frame may be a whole file.
            reasons[item] = f"too short: {own} frames of the front-end; at least two are needed"
        found.append(reasons.get(item) or (num_samples[item], own))
    return found


def _changed(path: Path, entry: FileEntry) -> str | None:
    """Say why a file can't be encoded as the one that was scanned; None if it can."""
    try:
        return None if sha256_file(path) == entry.sha256 else "has changed since the folder was scanned"
    except OSError as error:
        return f"can't be read ({error.strerror})"


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
