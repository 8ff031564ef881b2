"""Write files atomically, lock folders, and clean up after killed processes."""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import filelock

from ..errors import AudiogenError, DataError, RunError

#: What a killed process leaves behind: files and folders named by `_temporary_name`, and from older versions
#: unfinished checkpoints and safetensors' temporary files.
LEFTOVER = re.compile(r"\..+-[0-9a-f]{16}\.tmp(\.\w+)?|\.step-\d+\.tmp|\.tmp[A-Za-z0-9]{6}")
LOCK_FILE = ".lock"


def check_folder_is_there(folder: str | Path) -> None:
    """Raise a DataError if a folder to read from does not exist or is a file."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
        url = re.sub(":/+", "://", str(folder), count=1)  # a Path has merged the slashes
        raise DataError(f"{url}: is a URL, which only tokenize reads: audiogen tokenize URL CACHE, then use CACHE")
    if not Path(folder).exists():
        raise DataError(f"{folder}: there is no such folder; check the path")
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: is a file; give the folder that contains it")


def check_is_no_file(out: str | Path) -> None:
    """Raise an AudiogenError if a folder to write to is a file."""
    if Path(out).exists() and not Path(out).is_dir():
        raise AudiogenError(f"{out}: is a file; give a new or existing folder to write to")


def check_holds_config(folder: str | Path) -> None:
    """Raise a RunError if a folder is missing or has no config.json, as a run, a cache and a saved front-end have."""
    with suppress(PermissionError):  # reading the file will say so
        if Path(folder, "config.json").exists():
            return
        if not Path(folder).exists():
            raise RunError(f"{folder}: there is no such folder; check the path")
        raise RunError(
            f"{folder}: is not a run, cache or saved front-end, since it has no config.json; give a folder that "
            "audiogen train or tokenize wrote"
        )


# Locks.


@contextmanager
def locked(path: str | Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path`. The system releases it when the process ends, in whatever way.

    If the file system has no locks or the file can't be written, run without a lock.

    Args:
        path: the lock file, in an existing folder.
        timeout: seconds to wait for another holder; negative waits for ever.

    Raises:
        filelock.Timeout: another process still holds it.
    """
    lock = filelock.FileLock(path, mode=0o666)
    try:
        lock.acquire(timeout=timeout)
    except filelock.Timeout:
        raise
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            if os.name != "nt":  # Windows removes it by itself
                with suppress(OSError):
                    Path(path).unlink()
            lock.release()


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Make this the only process that writes to a folder; create the folder if needed.

    Before, remove what a killed process left in it and in its direct subfolders, except where another process holds a
    lock. Afterwards, remove the folder if it was created here and is still empty.

    Raises:
        RunError: another process is writing to it.
    """
    folder = Path(folder)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with suppress(OSError):  # the first file written will report it
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK_FILE, timeout=0):
            for place in (folder, *(folder.iterdir() if folder.is_dir() else ())):
                if place == folder or not (place / LOCK_FILE).exists():
                    clear_leftovers(place)
            yield
    except filelock.Timeout:
        raise RunError(
            f"{folder}: another process is writing to it; wait until that has finished, or choose another folder"
        ) from None
    finally:
        with suppress(OSError):  # not empty: something was written
            for parent in made:
                parent.rmdir()


# Cleaning up.


def clear_leftovers(folder: Path) -> None:
    """Remove the half-written files that a killed process left in a folder, unless the folder is a symbolic link."""
    with suppress(OSError):  # not a folder, or unreadable
        if not folder.is_symlink():
            for path in folder.iterdir():
                if LEFTOVER.fullmatch(path.name):
                    remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder that contains only files. Never follow links."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for file in path.iterdir():
                with suppress(OSError):
                    file.unlink()
            path.rmdir()
        else:
            path.unlink()


# Writing.


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; rename it to `path` when the block succeeds.

    The file is flushed to disk before the rename and the folder after it, so that a crash at any moment leaves either
    the old content or the new. If the block raises, the temporary file is removed and `path` stays untouched.

    Raises:
        AudiogenError: the disk is full or the file can't be written; names the path and the bytes written so far.
    """
    path, temporary = Path(path), _temporary_name(path)
    with _told_when_full(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        # tempfile's files are readable by their owner alone; this one gets the default mode of a new file.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder (for files only) beside `path`; rename it to `path` when the block succeeds.

    An existing folder is removed just before the rename.

    Raises:
        AudiogenError: see `atomic_path`.
    """
    path, temporary = Path(path), _temporary_name(path)
    with _told_when_full(path, temporary):
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            sync_file(file)
        sync_folder(temporary)
        remove(path)
        os.replace(temporary, path)
        sync_folder(path.parent)


def _temporary_name(path: str | Path) -> Path:
    path = Path(path)
    return path.parent / f".{path.stem}-{secrets.token_hex(8)}.tmp{path.suffix}"


@contextmanager
def _told_when_full(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        files = temporary.iterdir() if temporary.is_dir() else [temporary] if temporary.exists() else []
        raise cannot_write(path, error, sum(file.stat().st_size for file in files)) from error
    finally:
        remove(temporary)


def cannot_write(path: Path, error: OSError, num_bytes: int) -> AudiogenError:
    """Return the error for a file of which only `num_bytes` could be written."""
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return AudiogenError(
        f"{path}: can't be written ({reason}, {num_bytes} bytes written); free some room or choose another folder; "
        "what was saved before is untouched, and training goes on from there with --resume"
    )


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file completely or not at all; see `atomic_path` for errors."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file completely or not at all; see `atomic_path` for errors."""
    # File names that are not UTF-8 contain surrogates, which can't be encoded.
    atomic_write_bytes(path, text.encode("utf-8", errors="replace"))


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all.

    Raises:
        AudiogenError: see `atomic_path`.
        ValueError: it contains NaN or infinity, which are not JSON.
    """
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sync_file(path: str | Path) -> None:
    """Flush a file's content to disk."""
    with open(path, "r+b") as file:  # Windows can flush only files open for writing
        os.fsync(file.fileno())


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows can't open a folder
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Reading.


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading; refuse pipes and devices, which could block for ever.

    Raises:
        OSError: it does not exist, can't be read, or is not a regular file.
    """
    file = open(path, "rb", opener=_open_without_waiting)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a regular file as 64 hexadecimal digits, in constant memory.

    Raises:
        OSError: see `open_regular`.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(folder: str | Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (folder, names of subfolders, names of files) for each folder, like os.walk with followlinks.

    Works at any depth, where os.walk in Python 3.11 recurses. Remove a name from the subfolders to skip that one.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        place, folders, files = waiting.pop(), [], []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    (folders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            onerror(error)
            continue
        yield place, folders, files
        waiting += [os.path.join(place, name) for name in reversed(folders)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
