"""Read untrusted JSON files within limits, with one wording for every error."""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import AudiogenError
from .files import open_regular

#: Maximum nesting depth of lists and objects; our files have five levels.
DEEPEST = 32
#: Maximum bytes of a settings file, and of a file that lists a corpus.
SETTINGS, LISTS = 2**20, 2**30


def read_json(path: str | Path, kind: type[AudiogenError], remedy: str, max_bytes: int = SETTINGS) -> Any:
    """Read a JSON file.

    Args:
        path: path of the file.
        kind: exception type to raise.
        remedy: what the user can do about a damaged file; ends the message.
        max_bytes: refuse a larger file.

    Raises:
        FileNotFoundError: it does not exist.
        kind: it can't be read, is not a regular file, is too large, or is not strict JSON (see `parse_json`).
    """
    try:
        with open_regular(path) as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise ValueError(f"it has more than {max_bytes} bytes")
        return parse_json(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        raise kind(f"{path}: can't be read ({error.strerror}); check what it is, and its permissions") from error
    except ValueError as error:
        raise damaged(path, error, kind, remedy) from error


def read_format(
    path: str | Path,
    newest: int,
    kind: type[AudiogenError],
    remedy: str,
    max_bytes: int = SETTINGS,
    newer: type[AudiogenError] | None = None,
) -> dict[str, Any]:
    """Read a JSON object with a "format" from 1 to `newest`; see `read_json` for the other arguments.

    Raises:
        FileNotFoundError: it does not exist.
        kind: see `read_json`; also if the format is missing.
        newer: the format is newer; `kind` unless it is given.
    """
    values = read_json(path, kind, remedy, max_bytes)
    version = values.get("format") if isinstance(values, dict) else None
    if type(version) is not int or version < 1:
        raise damaged(path, "it states no format", kind, remedy)
    if version > newest:
        raise (newer or kind)(f"{path}: has format {version}, this audiogen reads up to {newest}; upgrade audiogen")
    return values


def damaged(path: str | Path, reason: object, kind: type[AudiogenError], remedy: str) -> AudiogenError:
    """Return the error for a damaged file, in one line."""
    return kind(f"{path}: is damaged ({' '.join(str(reason).split())[:200]}); {remedy}")


def parse_json(data: bytes) -> Any:
    """Parse UTF-8 JSON strictly: nested at most `DEEPEST` deep, finite numbers only.

    Raises:
        ValueError: it is not such JSON.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"it is nested deeper than {DEEPEST}")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no finite number")
    return value
