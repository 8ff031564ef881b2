"""The words that the container modules share: the file they read, what it states, and the error that names it."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...errors import AudioReadError

FETCH_AGAIN = "copy it again from where it came from, or remove it"
CONVERT = "convert it, for example with ffmpeg, or remove it"


@dataclass(frozen=True)
class Header:
    """What a sound file states about itself."""

    container: str  # "WAV", "FLAC", "OGG" or "MP3"
    sample_rate: int  # Hz
    num_channels: int
    num_samples: int | None  # per channel; None: it states no length, and only decoding can tell
    max_samples_per_byte: int  # the most samples that a byte of this container can stand for
    tolerance: int = 0  # by how many samples decoders differ about num_samples
    counted: bool = False  # no field states num_samples: the container's frames were counted
    plain: tuple[str, int, int] | None = None  # uncoded, little-endian samples: "PCM" or "float", bits, first byte


@dataclass(frozen=True)
class Source:
    """A sound file that is open for reading, its name and its size in bytes."""

    path: str | Path
    file: BinaryIO
    size: int

    def read(self, offset: int, count: int) -> bytes:
        """The `count` bytes at `offset`, fewer where the file ends before."""
        self.file.seek(offset)
        return self.file.read(count)

    def refusal(self, problem: str, advice: str = FETCH_AGAIN) -> AudioReadError:
        return refusal(self.path, problem, advice)


def refusal(path: str | Path, problem: str, advice: str = FETCH_AGAIN) -> AudioReadError:
    """The error for `path`."""
    return AudioReadError(f"{path}: {problem}; {advice}")
