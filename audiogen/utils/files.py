"""Files that are either whole or not there: temporary name, flush to disk, rename."""

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from ..errors import AudiogenError, DataError, RunError


def check_folder_is_there(folder: str | Path) -> None:
    """Raises the DataError of a folder to read from that is not there, or is a file."""
    if not Path(folder).exists():
        raise DataError(f"{folder}: there is no such folder; check the path")
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: is a file; give the folder that it is in")


def check_is_no_file(out: str | Path) -> None:
    """Raises the AudiogenError of a file that was named where a folder is to be written."""
    if Path(out).exists() and not Path(out).is_dir():
        raise AudiogenError(f"{out}: is a file; give a folder to write to, new or old")


@contextmanager
def alone_in(out: str | Path) -> Iterator[None]:
    """Within, nobody else who asks for the same folder is let in: two that train into one would each delete and
    overwrite what the other saved. The lock goes with the process that holds it, however that ends.

    Raises:
        RunError: somebody is there.
    """
    out = Path(out)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = filelock.FileLock(out / ".lock", mode=0o666)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(
            f"{out}: another training is writing to it; wait until it has ended, or choose another --out"
        ) from None
    except (OSError, NotImplementedError):  # no locks on this file system; or it can't be written, as will be said
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            if os.name != "nt":  # where it goes by itself
                with suppress(OSError):
                    Path(lock.lock_file).unlink()
            lock.release()
        with suppress(OSError):  # not empty: something came of it
            for folder in made:
                folder.rmdir()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` (same suffix) that takes its place once the block ends well.

    The file is flushed to disk before the rename, and the folder after it, so that a crash at any moment leaves
    the old content or the new one. If the block raises, the temporary file is removed and `path` stays untouched.

    Raises:
        AudiogenError: the disk is full or the file can't be written; names the path and the bytes written so far.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent / f".{path.stem}-{secrets.token_hex(8)}.tmp{path.suffix}"
        # Not by tempfile, whose files nobody else may read: this one gets the mode that any new file gets.
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        temporary, mode = name, stat.S_IMODE(os.stat(name).st_mode)
        yield temporary
        os.chmod(temporary, mode)  # safetensors puts a file of its own there, with mode 0600
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        size = temporary.stat().st_size if temporary and temporary.exists() else 0
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise AudiogenError(
            f"{path}: can't be written ({reason}, {size} bytes written); free some room or choose "
            "another folder; what was saved before is untouched"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    # Names of files that are no UTF-8 come with surrogates, which can't be written as such.
    atomic_write_bytes(path, text.encode("utf-8", errors="replace"))


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinities are refused, since other readers refuse them too."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sync_file(path: str | Path) -> None:
    """Flushes a file's content to disk."""
    with open(path, "r+b") as file:  # Windows flushes what is open for writing alone
        os.fsync(file.fileno())


def sync_folder(folder: str | Path) -> None:
    """Flushes a folder's entries to disk, so that a rename survives a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows can't open a folder
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits, read in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
