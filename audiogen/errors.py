"""One exception type for each kind of error.

Every message names the file or the key, says what is wrong and what to do. The command line prints that one
line and exits with the error's `exit_code`; only bugs end in a traceback.
"""

import difflib
import os
from collections.abc import Iterable


def printable(text: str) -> str:
    r"""Escape control and unprintable characters, so that any file name prints as one line.

    Example:
        >>> printable("bad\x1b[2J.wav")
        'bad\\x1b[2J.wav'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reports(error: "AudiogenError") -> bool:
    """Return whether this process is to print an error: of several that train together, one prints each."""
    return not isinstance(error, ReportedElsewhere) and error.rank == int(os.environ.get("RANK", 0))


class AudiogenError(Exception):
    """Base class for errors the user can fix. `str()` gives one printable line."""

    #: 1: the input (file, folder, download) is at fault. 2: the command or setting is, whatever the input.
    exit_code = 1
    #: The process that prints the error, where several train together; see `audiogen.distributed`.
    rank = 0

    def __str__(self) -> str:
        return printable(super().__str__())


class AudioReadError(AudiogenError):
    """A sound file is not audio, empty, truncated, or contains NaN or absurd samples."""


class DataError(AudiogenError):
    """A folder can't be used as training data: it has no audio, or too little to hold anything out."""


class ConfigError(AudiogenError):
    """A setting is unknown or invalid, or parts do not fit together (a usage error)."""

    exit_code = 2


class CacheError(AudiogenError):
    """An encoded cache is damaged or was made by another front-end."""


class NotFittedError(AudiogenError):
    """A learned front-end was asked to encode or decode before `fit`."""


class RunError(AudiogenError):
    """A run or front-end folder is incomplete, damaged, or of a newer format."""


class GenerationError(AudiogenError):
    """Generation can't continue because the model predicts NaN or infinity."""


class TrainingError(AudiogenError):
    """Training can't continue, for example because the loss is NaN."""


class RankError(AudiogenError):
    """A process that trains together with this one has ended or does not answer."""


class ReportedElsewhere(AudiogenError):
    """Another process reports the error, so this one ends silently."""

    def __init__(self, exit_code: int = 1):
        super().__init__("another process reports the error")
        self.exit_code = exit_code


class HubError(AudiogenError):
    """A run can't be loaded from the hub or pushed to it."""


class ExportError(AudiogenError):
    """A part can't be exported, or its graph differs from the model."""


class DownloadError(AudiogenError):
    """A download is missing, incomplete, or does not match its checksum."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Ask, as a part of a message, whether the valid name nearest to a wrong one was meant; empty if none is near."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.4)
    return f", did you mean {close[0]}?" if close else ""
