"""Folders in an object store, named by a URL such as s3://bucket/folder, through fsspec.

Each file is fetched to this machine for as long as it is read, and removed after that.
"""

import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

from ..errors import ConfigError, DataError

#: A URL, or what is left of one after it has been taken for a path: "s3:/bucket". Drives of Windows have one letter.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


@dataclass(frozen=True)
class RemotePath:
    """A folder or file in an object store: what `scan` and `tokenize` need of a `Path`.

    Attributes:
        url: its address, without a slash at the end.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(self.url).name

    @property
    def suffix(self) -> str:
        """The end of its name, from the last dot on."""
        return PurePosixPath(self.url).suffix

    def absolute(self) -> "RemotePath":
        """Return itself: an address does not depend on the working folder."""
        return self

    def is_dir(self) -> bool:
        """Return whether it is a folder with something in it."""
        with self._asking():
            return self._system.isdir(self._place)

    def is_file(self) -> bool:
        """Return whether it is a file."""
        with self._asking():
            return self._system.isfile(self._place)

    def stat(self) -> Any:
        """Return its size, and a text that changes with its content, as `st_size` and `st_mtime_ns`."""
        with self._asking():
            return _status(self._system.info(self._place))

    def find(self) -> list[str]:
        """Return the paths of all files below it, relative to it, sorted."""
        with self._asking():
            base = self._place.rstrip("/") + "/"
            return sorted(path.removeprefix(base) for path in self._system.find(self._place) if path.startswith(base))

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Fetch the file for the time of the block.

        Raises:
            DataError: the store does not answer, or has no such file.
        """
        folder = tempfile.mkdtemp(prefix="audiogen-")
        try:
            path = Path(folder, self.name)
            with self._asking():
                self._system.get_file(self._place, str(path))
            yield path
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @cached_property
    def _system(self) -> Any:
        return self._opened[0]

    @cached_property
    def _place(self) -> str:
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, which fsspec makes once for all paths of a store, and the path in it."""
        try:
            return importlib.import_module("fsspec.core").url_to_fs(self.url)
        except ImportError as error:
            package = "fsspec" if getattr(error, "name", None) == "fsspec" else str(error)
            raise ConfigError(f"{self.url}: needs another package ({package}); pip install it") from error
        except ValueError as error:
            raise ConfigError(f"{self.url}: no address of a store that fsspec knows ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn the errors of a store, of which each library has its own, into one line."""
        try:
            yield
        except (ConfigError, DataError):
            raise
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(
                f"{self.url}: can't be read ({what}); check the address and your access to it, then give the same "
                "command again: it continues"
            ) from error


def as_folder(place: str | Path) -> Path:
    """Return the folder with a path or URL: a Path, or a RemotePath, which has what is needed of one."""
    if isinstance(place, RemotePath):
        return cast(Path, place)
    found = URL.fullmatch(str(place))
    if found is None:
        return Path(place)
    if found[1] in ("file", "local"):
        return Path(f"/{found[2]}")
    return cast(Path, RemotePath(f"{found[1]}://{found[2]}".rstrip("/")))


def is_remote(path: Any) -> bool:
    """Return whether a folder or file lies in an object store."""
    return isinstance(path, RemotePath)


def fetched(path: Path) -> Any:
    """Return a context that yields a path on this machine; of a RemotePath, that of a copy for its time."""
    return cast(Any, path).fetched() if is_remote(path) else nullcontext(path)


def _status(info: dict[str, Any]) -> Any:
    marks = ("ETag", "etag", "LastModified", "mtime", "updated", "created")  # as the stores call it
    changed = next((info[key] for key in marks if key in info), "")
    return SimpleNamespace(st_size=info["size"], st_mtime_ns=str(changed))
