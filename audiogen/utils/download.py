"""Download files: resume after a lost connection, check the SHA-256, and write the file only once it is complete."""

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from ..errors import DownloadError
from .files import atomic_write_json, locked, sha256_file, sync_folder
from .json_files import read_json

ATTEMPTS = 4  # in a row without a single new byte
PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0  # seconds without a byte
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses worth another attempt


def cache_folder() -> Path:
    """Return the folder of downloads: $AUDIOGEN_CACHE, or ~/.cache/audiogen."""
    return Path(os.environ.get("AUDIOGEN_CACHE") or "~/.cache/audiogen").expanduser()


def fetch(
    url: str, path: str | Path, sha256: str | None = None, max_bytes: int = 32 * 2**30, otherwise: str = ""
) -> str:
    """Download `url` to `path`, which is always either absent or complete.

    Partial content is kept in `path` + ".part". The next attempt, in this call or a later one, requests the rest by
    HTTP Range (RFC 9110, section 14) and makes sure that the server's file has not changed: by its ETag or date
    (If-Range), or by `sha256` at the end. If neither is known, or the server does not support ranges, it starts over.

    Args:
        url: http or https.
        path: the file to write; if it exists (and has the hash), nothing is downloaded.
        sha256: the file's SHA-256 in hexadecimal, or its first digits if only those are published.
        max_bytes: refuse a larger file.
        otherwise: an alternative for the user, appended to every error message.

    Returns:
        The SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        DownloadError: no connection, an error status, a file that stays incomplete, is too large or has another hash,
            or a full disk; the message names the URL and says what to do.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: only http and https addresses can be downloaded")
    wanted = (sha256 or "").lower()
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(path.name + ".lock")):
            return _fetch(url, path, part, wanted, max_bytes)
    except DownloadError as error:
        raise DownloadError(f"{error}; {otherwise}" if otherwise else str(error)) from error
    except OSError as error:  # a disk error; network errors are handled below
        raise DownloadError(
            f"{path}: can't be written ({error.strerror or error}); free some room or choose another folder"
        ) from error


def _fetch(url: str, path: Path, part: Path, wanted: str, max_bytes: int) -> str:
    if path.exists():
        digest = sha256_file(path)
        if digest.startswith(wanted):
            return digest
    in_pieces = _receive(url, part, bool(wanted), max_bytes)
    digest = sha256_file(part)
    if in_pieces and not digest.startswith(wanted):  # the pieces may be of different versions: start over
        _discard(part)
        _receive(url, part, bool(wanted), max_bytes)
        digest = sha256_file(part)
    if not digest.startswith(wanted):
        _discard(part)
        raise DownloadError(
            f"{url}: the downloaded file has the SHA-256 {digest}, not the published {wanted}, and was deleted; "
            "try again later, or another network or mirror"
        )
    os.replace(part, path)
    sync_folder(path.parent)
    _notes(part).unlink(missing_ok=True)
    return digest


def _receive(url: str, part: Path, hash_known: bool, max_bytes: int) -> bool:
    """Retry until `part` is complete. Return whether it was assembled from several pieces."""
    resumed, most, attempt = False, _size(part), 0
    while True:
        try:
            return _transfer(url, part, hash_known, max_bytes) or resumed
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # range not satisfiable: `part` is complete, or the file has changed
                if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
                    return True
                _discard(part)
            elif error.code not in PASSING:
                raise DownloadError(
                    f"{url}: the server answers {error.code} {error.reason}; check the address, or try again later"
                ) from error
            reason = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, _NetworkError) as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        size = _size(part)
        attempt, most, resumed = (1, size, True) if size > most else (attempt + 1, most, resumed or size > 0)
        if attempt >= ATTEMPTS:
            kept = f" ({size} bytes are kept, and the next attempt continues from there)" if size else ""
            raise DownloadError(f"{url}: can't be downloaded ({reason}); check the connection and run it again{kept}")
        time.sleep(PAUSE * 2 ** (attempt - 1))


class _NetworkError(Exception):
    """The connection broke while the body was read. Unlike a disk error, this is worth a retry."""


def _transfer(url: str, part: Path, hash_known: bool, max_bytes: int) -> bool:
    """Try once, appending to `part` where that is safe. Return whether anything was appended to."""
    validator = _read_notes(part, url)
    start = _size(part)
    headers = {"User-Agent": "audiogen", "Accept-Encoding": "identity"}
    if start and (validator or hash_known):
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    with _opened(urllib.request.Request(url, headers=headers)) as response:
        if response.status != 206:  # the whole file: the server has no ranges, or the file has changed
            start = 0
        elif not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            _discard(part)
            raise _NetworkError("the server sends another range than the one requested")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if max(total or 0, start) > max_bytes:
            raise DownloadError(f"{url}: {total} bytes are more than the {max_bytes} expected; check the address")
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise DownloadError(f"{part}: {total - start} bytes are needed and {free} are free; free some room")
        etag = response.headers.get("ETag", "")
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        with open(part, "ab") as file:  # before the notes describe what follows
            file.truncate(start)
            os.fsync(file.fileno())
        atomic_write_json(_notes(part), {"url": url, "validator": validator})
        with (
            open(part, "ab") as file,
            tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar,
        ):
            size = start
            try:
                while block := _read(response):
                    size += len(block)
                    if size > max_bytes:
                        _discard(part)
                        raise DownloadError(f"{url}: sends more than the {max_bytes} bytes expected")
                    file.write(block)
                    bar.update(len(block))
            finally:
                file.flush()
                os.fsync(file.fileno())
        if total is not None and size < total:
            raise _NetworkError(f"the connection was cut at {size} of {total} bytes")
    return start > 0


def _opened(request: urllib.request.Request) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.URLError:
        raise
    except OSError as error:  # the connection broke before all headers were received
        raise _NetworkError(str(error) or type(error).__name__) from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(2**18)
    except OSError as error:
        raise _NetworkError(str(error) or type(error).__name__) from error


def _notes(part: Path) -> Path:
    """Return the path of the notes on a part: its URL, and the ETag or date of the server's file."""
    return part.with_name(part.name + ".json")


def _read_notes(part: Path, url: str) -> str:
    """Return the validator to resume with, or ""; discard a part that is from another URL."""
    try:
        notes = read_json(_notes(part), DownloadError, "delete it")
        known, validator = notes["url"], str(notes["validator"])
    except (OSError, DownloadError, LookupError, TypeError):
        return ""
    if known != url:
        _discard(part)
        return ""
    return validator


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)
