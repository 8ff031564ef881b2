"""What a sound file states about itself, read from its container without decoding a sample.

libsndfile opens a truncated WAV in silence, takes the length that a FLAC states on trust and guesses that of an MP3,
so the containers are read here first: one module for each, which says what that container states and what is known
from it before any decoding.
"""

import os
import stat
import struct
from pathlib import Path

from . import flac, mp3, ogg, wav
from .header import CONVERT, FETCH_AGAIN, Header, Source, refusal

__all__ = ["CONVERT", "MAX_CHANNELS", "MAX_SAMPLE_RATE", "MIN_SAMPLE_RATE", "Header", "read_header", "refusal"]

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000  # Hz; a rate of 1 in a header would resample to gigabytes
MAX_CHANNELS = 8
_PARSERS = (wav.parse, flac.parse, ogg.parse, mp3.parse)


def read_header(path: str | Path) -> Header:
    """Reads what the sound file states about itself, in a few hundred bytes and without touching its samples.

    Raises:
        AudioReadError: no regular file, not audio, empty, header only, shorter than it states, more samples than the
            file can hold, a rate outside [1000, 768000] Hz, channels outside [1, 8].
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # asked before opening, which would wait for ever at a pipe
            raise refusal(path, "is a folder or a device, not a file", "give the path of a sound file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise refusal(path, "is empty (0 bytes)", FETCH_AGAIN)
            source = Source(path, file, size)
            header = _parse(source)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise refusal(path, f"can't be opened ({reason})", "check the path and its permissions") from error
    except struct.error as error:
        raise refusal(path, "is truncated: it ends within its header", FETCH_AGAIN) from error
    _check(source, header)
    return header


def _parse(source: Source) -> Header:
    start = _skip_id3(source)
    for parse in _PARSERS:
        header = parse(source, start)
        if header is not None:
            return header
    raise source.refusal("is no WAV, FLAC, Ogg or MP3 file", CONVERT)


def _skip_id3(source: Source) -> int:
    """The offset behind the ID3v2 tags, which taggers put before any kind of file."""
    offset = 0
    for _ in range(8):  # a file of nothing but empty tags would keep us for hours
        tag = source.read(offset, 10)
        if len(tag) < 10 or tag[:3] != b"ID3":
            break
        length = 0
        for byte in tag[6:]:  # 7 bits each
            length = length << 7 | byte & 0x7F
        offset += 10 + length
    return offset


def _check(source: Source, header: Header) -> None:
    if not 1 <= header.num_channels <= MAX_CHANNELS:
        raise source.refusal(f"states {header.num_channels} channels, and 1 to {MAX_CHANNELS} are read", CONVERT)
    if not MIN_SAMPLE_RATE <= header.sample_rate <= MAX_SAMPLE_RATE:
        raise source.refusal(
            f"states a sample rate of {header.sample_rate} Hz, and {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} are read"
        )
    if header.num_samples is None:
        return
    if header.num_samples <= 0:
        raise source.refusal("has a header but no samples")
    if header.num_samples > source.size * header.max_samples_per_byte:
        raise source.refusal(f"states {header.num_samples} samples, more than its {source.size} bytes can hold")
