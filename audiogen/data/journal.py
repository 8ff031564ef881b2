"""What is known of files so far, kept on disk, so that going through a large folder continues after a kill."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import __version__

JOURNAL_FILE = ".scan.jsonl"
_HEADER = json.dumps({"format": 1, "version": __version__}).encode() + b"\n"  # another version may find something else


class Journal:
    """JSON values by path, each valid as long as the size of the file and the time of its last change are the same.

    A line that a kill has cut off is ignored. Nothing else is checked: whoever encodes a file checks its contents.

    Args:
        path: file of the journal, made by the first `add`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lines: dict[str, bytes] = {}  # parsed when they are asked for, which takes less memory
        self._valid: set[str] = set()
        with suppress(OSError), open(path, "rb") as file:
            if file.readline() == _HEADER:
                for line in file:
                    name, _, rest = line.partition(b"\t")
                    if rest.endswith(b"\n"):
                        with suppress(ValueError):
                            self._lines[json.loads(name)] = rest

    def get(self, folder: Path, name: str) -> Any:
        """Return what is known of a file; None if it is unknown, or the file has changed."""
        with suppress(ValueError, OSError, TypeError):
            if line := self._lines.pop(name, None):
                size, changed, value = json.loads(line)
                status = (folder / name).stat()
                if (size, changed) == (status.st_size, status.st_mtime_ns):
                    self._valid.add(name)
                    return value
        return None

    def add(self, folder: Path, values: dict[str, Any]) -> None:
        """Append values by path, apart from those that come from here. If the disk is full, they are not kept."""
        with suppress(OSError):
            lines = []
            for name, value in values.items():
                if name in self._valid:
                    continue
                status = (folder / name).stat()
                row = [status.st_size, status.st_mtime_ns, value]
                lines.append(json.dumps(name).encode() + b"\t" + json.dumps(row).encode() + b"\n")
            if not lines:
                return
            with open(self.path, "ab") as file:
                # A new one, or one of another version: it begins anew. A line that was cut off is ended.
                if file.tell() == 0 or self._is_other():
                    file.truncate(0)
                    file.write(_HEADER)
                else:
                    file.write(b"\n")
                file.write(b"".join(lines))

    def _is_other(self) -> bool:
        with open(self.path, "rb") as file:
            return file.readline() != _HEADER
