"""Archives that try to write outside their folder, or to be larger than they state."""

import bz2
import gzip
import hashlib
import os
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
from archives import tar_of, zip_of

from audiogen.errors import DownloadError
from audiogen.utils.archives import unpack


def tar_with_a_long_description():
    """Make a few hundred kB that cause tarfile to read 200 MB of extended header."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 200 * 2**20
    return gzip.compress(info.tobuf() + bytes(info.size), 1)


def zip_that_lies_about_a_size():
    """Make a ZIP that states 10 bytes and contains 10 MB."""
    data = bytearray(zip_of(("a.wav", bytes(10**7))))
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, 10)
    return bytes(data)


def zip_with_a_password():
    data = bytearray(zip_of(("a.wav", b"1")))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


NOISE = hashlib.shake_128(b"noise").digest(20_000)

MALICIOUS = {
    "tar symbolic link": (tar_of(("a", {"type": tarfile.SYMTYPE, "linkname": "/etc"}), ("a/b", b"1")), "symbolic link"),
    "tar hard link": (tar_of(("a.wav", {"type": tarfile.LNKTYPE, "linkname": "../outside"})), "hard link"),
    "tar device": (tar_of(("a.wav", {"type": tarfile.CHRTYPE, "devmajor": 1})), "special file"),
    "tar pipe": (tar_of(("a.wav", {"type": tarfile.FIFOTYPE})), "special file"),
    "tar sparse": (tar_of(("a.wav", {"type": tarfile.GNUTYPE_SPARSE})), "special file|can't be unpacked"),
    "tar absolute": (tar_of(("/tmp/a.wav", b"1")), "outside"),
    "tar climbing": (tar_of(("../a.wav", b"1")), "outside"),
    "tar climbing later": (tar_of(("a/./../../a.wav", b"1")), "outside"),
    "tar backslash": (tar_of(("..\\a.wav", b"1")), "outside"),
    "tar drive": (tar_of(("C:a.wav", b"1")), "outside"),
    "tar control character": (tar_of(("a\x1b[2J.wav", b"1")), "outside"),
    "tar climbing folder": (tar_of(("../a", {"type": tarfile.DIRTYPE})), "outside"),
    "tar twice": (tar_of(("a.wav", b"1"), ("./a.wav", b"2")), "twice"),
    "tar file as folder": (tar_of(("a", b"1"), ("a/b.wav", b"2")), "there already"),
    "tar many": (tar_of(*[(f"{i}.wav", b"") for i in range(101)]), "more than 100 files"),
    "tar many folders": (tar_of(*[(f"{i}", {"type": tarfile.DIRTYPE}) for i in range(101)]), "more than 100 files"),
    "tar bomb": (tar_of(("a.wav", bytes(10**7))), "bytes, which it should not"),
    "tar bomb left out": (tar_of(("skip", bytes(10**7))), "bytes, which it should not"),
    "tar long description": (tar_with_a_long_description(), "absurd length"),
    "tar bomb behind the end": (gzip.compress(tar_of(("a.wav", b"1"), compress=bytes) + bytes(10**7)), "absurd length"),
    "tar truncated": (tar_of(("a.wav", NOISE))[:-9000], "can't be unpacked"),
    "tar damaged": (flipped(tar_of(("a.wav", NOISE)), 9000), "can't be unpacked"),
    "tar.bz2 damaged": (flipped(tar_of(("a.wav", NOISE), compress=bz2.compress), 9000), "can't be unpacked"),
    "plain tar truncated": (tar_of(("a.wav", NOISE), compress=bytes)[:9000], "can't be unpacked"),
    "zip symbolic link": (zip_of(("a.wav", 0o120777)), "symbolic link"),
    "zip device": (zip_of(("a.wav", 0o020666)), "special file"),
    "zip absolute": (zip_of(("/tmp/a.wav", b"1")), "outside"),
    "zip climbing": (zip_of(("a/../../a.wav", b"1")), "outside"),
    "zip backslash": (zip_of(("..\\a.wav", b"1")), "outside"),
    "zip bomb": (zip_of(("a.wav", bytes(10**7))), "bytes, which it should not"),
    "zip many": (zip_of(*[(f"{i}.wav", b"") for i in range(101)]), "more than 100 files"),
    "zip lies": (zip_that_lies_about_a_size(), "can't be unpacked"),
    "zip password": (zip_with_a_password(), "password"),
    "zip damaged": (flipped(zip_of(("a.wav", NOISE)), 9000), "can't be unpacked"),
    "zip compression": (zip_of(("a.wav", b"1"), compression=zipfile.ZIP_LZMA), "unusual compression"),
    "web page": (b"<!DOCTYPE html><title>Not found</title>" * 100, "can't be unpacked"),
    "empty": (b"", "can't be unpacked|no recordings"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", MALICIOUS)
def test_malicious_archives(kind, tmp_path):
    """Guards against an archive that writes outside its folder, leaves a file, exhausts memory, or is refused without a
    reason."""
    content, message = MALICIOUS[kind]
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "outside").write_text("as it was")
    tracemalloc.start()
    try:
        with pytest.raises(DownloadError, match=message) as info:
            unpack(
                tmp_path / "archive",
                tmp_path / "in" / "folder",
                lambda name: None if name == "skip" else name,
                max_bytes=10**6,
                max_files=100,
            )
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert str(tmp_path / "archive") in str(info.value) and "\n" not in str(info.value)
    assert sorted(os.listdir(tmp_path)) == ["archive", "in", "outside"] and os.listdir(tmp_path / "in") == ["folder"]
    assert (tmp_path / "outside").read_text() == "as it was"
    for path in (tmp_path / "in" / "folder").rglob("*"):
        assert not path.is_symlink()
    assert sum(path.stat().st_size for path in (tmp_path / "in").rglob("*") if path.is_file()) <= 10**6


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, bytes, zip_of])
def test_good_archives(compress, tmp_path):
    """Guards against good archives that are refused, or unpacked with other names, contents or permissions."""
    long = bytes(3 * 10**6)
    names = ["top/a.wav", "top/deep/é b.wav", "top/README"]
    if compress is zip_of:
        content = zip_of(("top/", b""), *[(name, name.encode()) for name in names], ("top/long.wav", long))
    else:
        content = tar_of(
            ("top", {"type": tarfile.DIRTYPE}),
            *[(f"./{name}", name.encode()) for name in names],
            ("top/run.wav", {"mode": 0o755}),
            ("x" * 150 + "/long.wav", long),
            compress=compress,
        )
    (tmp_path / "archive").write_bytes(content)
    members = unpack(
        tmp_path / "archive",
        tmp_path / "folder",
        lambda name: name.removeprefix("top/") if name.endswith(".wav") else None,
        10**7,
        100,
    )
    assert [member.name for member in members][:2] == names[:2]
    assert (tmp_path / "folder" / "deep" / "é b.wav").read_bytes() == names[1].encode()
    assert not (tmp_path / "folder" / "README").exists()
    if compress is not zip_of:
        assert [member.executable for member in members] == [False, False, True, False]
        assert not os.access(tmp_path / "folder" / "run.wav", os.X_OK)
        assert (tmp_path / "folder" / ("x" * 150) / "long.wav").read_bytes() == long
