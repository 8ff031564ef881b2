"""One exception type per kind of trouble.

Every message names the file or the key, says what is wrong and what to do. The command line prints that one
line and exits with the error's `exit_code`; a traceback is for bugs.
"""


class AudiogenError(Exception):
    """Base of every error that a user can mend."""

    #: 1: what was given can't be used. 2: what was asked for can't be, whatever is given.
    exit_code = 1


class AudioReadError(AudiogenError):
    """A sound file that can't be trusted: not audio, empty, truncated, NaN, absurd samples."""


class DataError(AudiogenError):
    """A folder that can't be trained on: no audio, too little to hold anything out."""


class ConfigError(AudiogenError):
    """An unknown key, a value of the wrong type, parts that do not fit each other: wrong usage."""

    exit_code = 2


class CacheError(AudiogenError):
    """An encoded cache that is damaged or was made by another front-end."""


class NotFittedError(AudiogenError):
    """A learned front-end that was asked to encode or decode before `fit`."""


class RunError(AudiogenError):
    """A run or front-end folder that is half-written, damaged, or of a newer format."""


class TrainingError(AudiogenError):
    """Training that can't go on, such as a loss that is not a number."""


class DownloadError(AudiogenError):
    """A download that is missing, incomplete, or not what its checksum says."""
