"""One exception type per kind of trouble.

Every message names the file or the key, says what is wrong and what to do. The command line prints that one
line and exits with the error's `exit_code`; a traceback is for bugs.
"""


def printable(text: str) -> str:
    r"""One line without anything that a terminal would act on or could not show: names of files may hold anything.

    Example:
        >>> printable("bad\x1b[2J.wav")
        'bad\\x1b[2J.wav'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class AudiogenError(Exception):
    """Base of every error that a user can mend. As text it is one printable line."""

    #: 1: what was given can't be used. 2: what was asked for can't be, whatever is given.
    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


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


class GenerationError(AudiogenError):
    """Generation that can't go on, because what the model predicts is not a number."""


class TrainingError(AudiogenError):
    """Training that can't go on, such as a loss that is not a number."""


class DownloadError(AudiogenError):
    """A download that is missing, incomplete, or not what its checksum says."""
