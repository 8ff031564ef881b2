"""Files are either whole or not there."""

import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import threading
import time

import filelock
import pytest
import torch

from audiogen.errors import AudiogenError, DataError, RunError
from audiogen.utils import files
from audiogen.utils.files import (
    LEFTOVER,
    atomic_folder,
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    clear_leftovers,
    locked,
    sha256_file,
)
from audiogen.utils.tensors import read_tensors, write_tensors

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX alone")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_can_be_read(tmp_path):
    """Guards against text in the encoding of the machine, and folders that have to exist already."""
    atomic_write_bytes(tmp_path / "new" / "folder" / "a.bin", b"\x00\xff")
    atomic_write_text(tmp_path / "b.txt", "Klänge\n音")
    atomic_write_json(tmp_path / "c.json", {"x": [1, None, "ä"]})
    assert (tmp_path / "new" / "folder" / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b.txt").read_bytes() == "Klänge\n音".encode()
    assert json.loads((tmp_path / "c.json").read_text()) == {"x": [1, None, "ä"]}
    assert names(tmp_path) == ["b.txt", "c.json", "new"]


def test_the_temporary_file_stands_beside_and_keeps_the_suffix(tmp_path):
    """Guards against a rename across file systems, which is a copy, and writers that choose a format by the suffix."""
    with atomic_path(tmp_path / "a.wav") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".wav"
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"new")
        assert not (tmp_path / "a.wav").exists()
    assert names(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("error", [ValueError, DataError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file(tmp_path, error):
    """Guards against half-written files in the place of good ones, and litter: also when Ctrl-C comes in between."""
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error, match="planted"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error("planted")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_names_path_and_bytes(tmp_path, monkeypatch, call):
    """Guards against a traceback, and the loss of what was saved before."""
    (tmp_path / "a.txt").write_text("old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(AudiogenError, match=r"a\.txt: .*disk is full.*12345 bytes") as caught:
        atomic_write_text(tmp_path / "a.txt", "x" * 12345)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@posix
def test_a_write_cut_short_leaves_the_old_file(tmp_path):
    """The same with a limit that the kernel really enforces."""
    script = """
import resource, signal, sys
from audiogen.errors import AudiogenError
from audiogen.utils.files import atomic_write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic_write_bytes(sys.argv[1], b"x" * 5000)
except AudiogenError as error:
    print(error)
"""
    (tmp_path / "a.bin").write_bytes(b"old")
    command = [sys.executable, "-c", script, tmp_path / "a.bin"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a.bin" in done.stdout
    assert "1000 bytes" in done.stdout
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@posix
def test_killed_while_writing_leaves_the_old_file(tmp_path):
    """Guards against a file that is opened for writing under its own name."""
    script = """
import os, signal, sys
from audiogen.utils.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "a.bin").write_bytes(b"old")
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "a.bin"]).returncode < 0
    assert (tmp_path / "a.bin").read_bytes() == b"old"


@posix
def test_flushed_before_it_is_renamed_and_the_folder_after(tmp_path, monkeypatch):
    """Guards against a rename that reaches the disk before the content does: a power cut would leave an empty file."""
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle):
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else ("file", os.fstat(handle).st_size))
        real_fsync(handle)

    def replace(source, target):
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    atomic_write_text(tmp_path / "a.txt", "12345")
    assert events == [("file", 5), "rename", "folder"]


@posix
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_mode_follows_the_umask(tmp_path, umask):
    """Guards against run folders that only their maker can read: temporary files are private unless one cares."""
    before = os.umask(umask)
    try:
        atomic_write_text(tmp_path / "a.txt", "x")
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


@posix
def test_the_umask_is_never_lifted(tmp_path, monkeypatch):
    """Guards against a umask set to 0 for a moment: what another thread makes at that moment, anybody could write."""
    monkeypatch.setattr(files.os, "umask", lambda mask: pytest.fail(f"the process's umask was set to {mask:o}"))
    atomic_write_text(tmp_path / "a.txt", "x")


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    """Guards against a metrics file that browsers can't read."""
    with pytest.raises(ValueError):
        atomic_write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


@posix
def test_a_place_that_can_not_be_written_is_one_clear_error(tmp_path):
    """Guards against tracebacks for a path that runs through a file, or is a folder."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "file" / "a.txt", tmp_path / "folder"):
        with pytest.raises(AudiogenError, match=f"^{path}: can't be written"):
            atomic_write_text(path, "y")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_sha256_of_a_file(tmp_path, size):
    """Guards against a hash of the first block alone."""
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_weights_are_readable_by_those_who_may_read_any_new_file(tmp_path):
    """Guards against weights of mode 0600, which safetensors gives the files that it writes itself."""
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_tensors_come_back_with_what_is_said_of_them(tmp_path):
    """Guards against the same tensors as another file, a value lost, and shapes looked at after memory was taken."""
    tensors = {"b": torch.arange(6).view(2, 3).T, "a": torch.tensor(1.5), "c": torch.zeros(0, 4)}
    write_tensors(tmp_path / "x.safetensors", tensors, step=3, more={"k": [1, None]})
    first = (tmp_path / "x.safetensors").read_bytes()
    found, about = read_tensors(tmp_path / "x.safetensors", RunError, "")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors) and found.keys() == tensors.keys()
    assert (about["step"], about["more"]) == (3, {"k": [1, None]})
    write_tensors(tmp_path / "x.safetensors", dict(reversed(tensors.items())), step=3, more={"k": [1, None]})
    assert (tmp_path / "x.safetensors").read_bytes() == first
    read_tensors(tmp_path / "x.safetensors", RunError, "", tensors)
    for like in ({**tensors, "a": torch.ones(1)}, {"a": tensors["a"]}, {**tensors, "d": torch.ones(1)}):
        with pytest.raises(RunError, match="x.safetensors: is damaged .* (is|not) .*; mend it"):
            read_tensors(tmp_path / "x.safetensors", RunError, "mend it", like)


def test_a_full_disk_while_weights_are_written_is_one_line(tmp_path):
    """Guards against safetensors' own error, which is no OSError: the largest file of a run is the one that fails."""
    write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(9)})
    before = (tmp_path / "x.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # stands for the disk's end
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(AudiogenError, match=r"x\.safetensors: can't be written .*4096 bytes") as caught:
            write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(9999)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["x.safetensors"] and (tmp_path / "x.safetensors").read_bytes() == before


@posix
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting needs root")
def test_a_disk_that_is_really_full(tmp_path):
    """The same on a file system of 64 KiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        with pytest.raises(AudiogenError, match=r"x\.safetensors: can't be written \(the disk is full, \d+ bytes"):
            write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(99_999)})
        assert names(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# ---- folders, locks, leftovers


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    """Guards against half a checkpoint under its name, and the old one gone before the new one is whole."""
    with atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    with pytest.raises(KeyError), atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("2")
        raise KeyError
    assert (tmp_path / "a" / "x").read_text() == "1"
    with atomic_folder(tmp_path / "a") as temporary:
        (temporary / "y").write_text("3")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["y"]


def test_only_what_a_killed_process_left_is_removed(tmp_path):
    """Guards against a user's own hidden file, taken for a leftover; what is left by every version is."""
    mine = [".a.tmp", ".tmp", ".tmpfile", ".tmpA1b2C3d", ".x-0123.tmp.wav", "x-0123456789abcdef.tmp", ".config"]
    for name in [*mine, ".x-0123456789abcdef.tmp.wav", ".x-0123456789abcdef.tmp", ".step-3.tmp", ".tmpA1b2C3"]:
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == sorted(mine)
    assert LEFTOVER.fullmatch(files._temporary_name("a/model.safetensors").name)
    assert LEFTOVER.fullmatch(files._temporary_name("a/step-3").name)


def test_a_lock_is_waited_for_or_told_of(tmp_path):
    """Guards against two writers at once, and a lock that stays."""
    held, order = threading.Event(), []

    def hold():
        with locked(tmp_path / "lock"):
            held.set()
            time.sleep(0.1)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(filelock.Timeout), locked(tmp_path / "lock", timeout=0):
        pytest.fail("two hold it")
    with locked(tmp_path / "lock"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"] and names(tmp_path) == []
