"""Unpack untrusted archives: only into the given folder, and only up to given limits."""

import bz2
import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, Any, cast

from tqdm import tqdm

from ..errors import DownloadError

HEADERS = 2**20  # upper bound, in bytes, of the headers of one tar member


@dataclass(frozen=True)
class Member:
    """An unpacked file: its name in the archive, its path on disk, and whether the archive marks it executable."""

    name: str
    path: Path
    executable: bool


@dataclass(frozen=True)
class Entry:
    """One entry of an archive, not yet checked."""

    name: str
    kind: str  # "file", "folder", or a description of anything else
    size: int
    executable: bool
    open: Callable[[], Any]  # a binary file


def unpack(
    archive: str | Path, folder: str | Path, place: Callable[[str], str | None], max_bytes: int, max_files: int
) -> list[Member]:
    """Unpack a .zip, .tar, .tar.gz or .tar.bz2 (detected from its content) into a new folder.

    Only regular files are written, never over another file and never executable. An archive that contains anything else
    or exceeds a limit raises an error. Files unpacked before the error stay in `folder`, so pass a temporary one.

    Args:
        archive: path of the archive.
        folder: the folder to create; it must not exist yet.
        place: maps a file's name in the archive (with "/", no leading "./") to its name in the folder, or to None to
            skip it.
        max_bytes: limit for the total size of all files, including skipped ones.
        max_files: limit for the number of entries.

    Returns:
        The unpacked files, in archive order.

    Raises:
        DownloadError: not such an archive, damaged, over a limit, or with a link, a device, an encrypted file, an
            absolute path, a path with "..", or two files of the same name.
    """
    archive, folder = Path(archive), Path(folder)
    members, num_entries, num_bytes = [], 0, 0
    try:
        folder.mkdir(parents=True)
        for entry in tqdm(_entries(archive, max_bytes), desc=f"unpacking {archive.name}", unit=" files", disable=None):
            num_entries, num_bytes = num_entries + 1, num_bytes + entry.size
            if num_entries > max_files or num_bytes > max_bytes or entry.size < 0:
                raise DownloadError(
                    f"{archive}: holds more than {max_files} files or {max_bytes} bytes, which it "
                    "should not; nothing of it is used"
                )
            name = _safe_name(archive, entry.name)
            if entry.kind not in ("file", "folder"):
                raise DownloadError(
                    f"{archive}: {entry.name!r} is a {entry.kind}; only plain files are unpacked, and "
                    "nothing of it is used"
                )
            target = place(name) if entry.kind == "file" else None
            if target is not None:
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(entry, path)
                members.append(Member(name, path, entry.executable))
    except FileExistsError as error:
        raise DownloadError(f"{archive}: {error.filename} is there already, or twice in the archive") from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())
        raise DownloadError(
            f"{archive}: can't be unpacked ({reason}); if the disk is not full, delete it and download it again"
        ) from error
    return members


def _write(entry: Entry, path: Path) -> None:
    with entry.open() as source, open(path, "xb") as file:  # "x": never through a link, never over another file
        left = entry.size
        while block := source.read(min(2**20, left + 1)):
            left -= len(block)
            if left < 0:
                break
            file.write(block)
    if left:
        raise ValueError(f"{entry.name!r} is not as long as the archive says")


def _safe_name(archive: Path, name: str) -> str:
    """Normalise a name: drop empty and "." parts. Refuse paths that leave the folder."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    climbs = name.startswith("/") or ".." in parts or PureWindowsPath(name).drive or "\\" in name
    if climbs or not name.isprintable():
        raise DownloadError(
            f"{archive}: {name!r} would be written outside of the folder, or has unprintable "
            "characters; nothing of it is used"
        )
    return "/".join(parts)


def _entries(archive: Path, max_bytes: int) -> Iterator[Entry]:
    with open(archive, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic == b"PK\3\4":
            with zipfile.ZipFile(file) as zipped:
                yield from _zip_entries(zipped)
        else:
            opener = gzip.open if magic[:2] == b"\x1f\x8b" else bz2.open if magic[:3] == b"BZh" else None
            with opener(file) if opener else file as plain:
                yield from _tar_entries(_Metered(plain, max_bytes))


def _zip_entries(zipped: zipfile.ZipFile) -> Iterator[Entry]:
    for info in zipped.infolist():
        mode = info.external_attr >> 16
        kind = (
            "folder"
            if info.is_dir()
            else {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link"}.get(
                stat.S_IFMT(mode), "special file"
            )
        )
        if info.flag_bits & 1:
            kind = "file under a password"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = "file of an unusual compression"
        yield Entry(info.filename, kind, info.file_size, bool(mode & 0o100), lambda info=info: zipped.open(info))


def _tar_entries(plain: "_Metered") -> Iterator[Entry]:
    plain.allow(0)
    # "|" reads forwards only, so nothing is read twice.
    tar: Any = tarfile.open(fileobj=cast(IO[bytes], plain), mode="r|", bufsize=2**16)
    with tar:
        while (info := tar.next()) is not None:
            tar.members = []  # tarfile would otherwise keep every one in memory
            kind = "file" if info.isreg() and not info.issparse() else "folder" if info.isdir() else _odd_kind(info)
            plain.allow(info.size)
            yield Entry(info.name, kind, info.size, bool(info.mode & 0o100), lambda info=info: tar.extractfile(info))
    while plain.read(2**16):  # read on: gzip and bzip2 have their checksums at the end
        pass


def _odd_kind(info: tarfile.TarInfo) -> str:
    return "symbolic link" if info.issym() else "hard link" if info.islnk() else "special file"


class _Metered:
    """A decompressed tar, read under a limit.

    tarfile reads the headers of a member into memory whole, and a few compressed bytes can expand to huge headers.
    """

    def __init__(self, file: Any, max_bytes: int):
        self.file, self.left, self.total = file, 0, max_bytes + 64 * HEADERS

    def allow(self, num_bytes: int) -> None:
        """Allow the next `num_bytes` (a member's content) and the headers of one more member."""
        self.left = num_bytes + HEADERS

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        self.total -= len(data)
        if min(self.left, self.total) < 0:
            raise ValueError("it describes its files at absurd length")
        return data
