"""Decoder: decode one sound file, checking its header before and its samples after decoding.

There are two backends with the same interface: libsndfile, and FFmpeg (ffmpeg.py), which is slower and reads almost
everything. The header (containers.py) determines which of them reads the file completely. Interface:

    subtype                 name of the coding
    sample_rate (Hz), num_channels
    num_samples             per channel; None if it is only known after decoding
    notes                   what is odd about the file
    seeks                   whether `seek` is exact; otherwise, seeking decodes up to the position
    next(count)             the next samples (n, C) float32, n <= count; n is 0 at the end
    seek(position), close()
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ..errors import AudioReadError
from .containers import MAX_PEAK, MAX_SAMPLE_RATE, MEND, MIN_SAMPLE_RATE, check_channels, read_header, refusal
from .ffmpeg import FFmpegFile

AUDIO_SUFFIXES = frozenset(
    ".wav .bwf .w64 .rf64 .aiff .aif .aifc .au .snd .caf .flac .ogg .oga .opus .spx .mp3 .mp2 .m4a .m4b .mp4 .3gp .aac "
    ".ac3 .amr .wma .asf .webm .mka .wv .tta .ape".split()
)
"""Lower-case suffixes that count as sound files in a folder. Reading a file depends on its content, not its suffix."""

DECODE_AT_ONCE = 1 << 20
"""Maximum samples per channel to decode at a time: 32 MiB for 8 channels."""


@dataclass(frozen=True)
class AudioInfo:
    """Properties of a sound file.

    Attributes:
        path: the file.
        sample_rate: Hz.
        num_channels: 1 to 8.
        num_samples: samples per channel.
        format: "WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "W64", "ASF", or another format by FFmpeg's name.
        subtype: the coding, by libsndfile's name ("PCM_16", "FLOAT", "VORBIS") or FFmpeg's ("aac").
        notes: what is odd about the file, although it can be read.
    """

    path: Path
    sample_rate: int
    num_channels: int
    num_samples: int
    format: str
    subtype: str
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Duration in seconds."""
        return self.num_samples / self.sample_rate


def audio_info(path: str | Path) -> AudioInfo:
    """Return the properties of a sound file, usually from its headers alone, which is fast.

    WAV, AIFF, CAF, AU, W64 and Ogg are checked to be complete; FLAC, and the middle of any file, are only checked when
    they are read. Other formats, and files that state no length, are decoded once.

    Raises:
        AudioReadError: the file can't be read; says why and what to do.
    """
    with Decoder(path) as decoder:
        return decoder.info


class Decoder:
    """A sound file that is decoded sequentially from `position`, as float32; a context manager.

    Attributes:
        path: the file.
        position: next sample to decode.
        num_samples: samples per channel; None if it is only known after decoding.
        peak: largest magnitude of the last block; 1 for integers, which can't be larger.

    Raises:
        AudioReadError: on opening, the header is wrong or no backend reads the file; later, decoding failed. The
            decoder stays usable: after an error, seeking decodes from the beginning.
    """

    def __init__(self, path: str | Path):
        self.position = 0
        self.peak = 1.0
        self.path, self._header = path, read_header(path)
        self._file: Any = self._open()
        self.num_samples: int | None = self._file.num_samples
        self._failed, self._info = False, None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz."""
        return self._file.sample_rate

    @property
    def info(self) -> AudioInfo:
        """Properties of the file. If the file states no length, it is decoded to the end, by another decoder."""
        if self._info is None and self.num_samples is None:
            with Decoder(self.path) as other:
                for _ in other.blocks():
                    pass
                self._info, self.num_samples = other.info, other.num_samples
        if self.num_samples == 0:
            raise refusal(self.path, "has a header but no samples")
        if self._info is None:
            file, notes = self._file, (*self._header.notes, *self._file.notes)
            container = self._header.container or file.container
            format = (file.sample_rate, file.num_channels, self.num_samples or 0, container, file.subtype)
            self._info = AudioInfo(Path(self.path), *format, notes)
        return self._info

    def blocks(self, count: int = 1 << 18) -> Iterator[np.ndarray]:
        """Yield the remaining samples in blocks (n, C), n <= count; `num_samples` is known afterwards."""
        while self.num_samples is None or self.position < self.num_samples:
            samples = self.next(count)
            if len(samples) == 0:
                self.num_samples = self.position
            else:
                yield samples

    def seek(self, start: int) -> None:
        """Seek to sample `start`, directly if the backend does so exactly, otherwise by decoding up to it."""
        if self._failed or start < self.position and not self._file.seeks:
            self._file.close()
            self._file, self._failed, self.position = self._open(), False, 0
        if self._file.seeks and start != self.position:
            try:
                self.position = self._file.seek(start)
            except _FAILURES as error:
                raise _refused(self.path, error) from error
        while self.position < start:
            if len(self.next(min(start - self.position, DECODE_AT_ONCE))) == 0:
                break

    def next(self, count: int) -> np.ndarray:
        """Decode the next samples.

        Returns:
            (n, C) float32, 0 < n <= count, at most `MAX_PEAK` in magnitude; n is 0 at the end of a file that states no
            length.

        Raises:
            AudioReadError: the file ends before the length it states, or a sample is NaN, infinite or too large.
        """
        self._failed = True
        try:
            samples = self._file.next(count)
        except _FAILURES as error:
            raise _refused(self.path, error) from error
        stated = self.num_samples or self._header.num_samples
        if len(samples) == 0 and stated is not None and self.position < stated:
            raise refusal(
                self.path,
                f"is damaged or truncated: it states {stated} samples, but only {self.position} can be decoded",
            )
        if len(samples) > 0 and not self._file.subtype.startswith("PCM_"):
            # numpy finds the positions of extremes faster than their values. NaN counts as an extreme.
            self.peak = peak = max(samples.item(samples.argmax()), -samples.item(samples.argmin()))
            if not math.isfinite(peak):
                raise refusal(self.path, "holds NaN or infinite samples", "export it again, or remove it")
            if peak > MAX_PEAK:
                raise refusal(
                    self.path,
                    f"holds absurd samples (up to {peak:.3g}, where full scale is 1)",
                    "scale them to [-1, 1], or remove it",
                )
        self._failed = False
        self.position += len(samples)
        return samples

    def _open(self) -> "_SoundFile | FFmpegFile":
        """Open the file with libsndfile if the header says so and libsndfile agrees, else with FFmpeg."""
        try:
            file = _open_soundfile(self.path) if self._header.decoder == "libsndfile" else None
            end = self._header.end
            if file is not None and end is not None and abs((file.num_samples or 0) / file.sample_rate - end) > 1e-3:
                file.close()  # a page is damaged, or the first one does not start at 0
                file = None
            file = file or FFmpegFile(self.path, self._header)
        except OSError as error:
            raise _refused(self.path, error) from error
        try:
            self._check_format(file)
        except AudioReadError:
            file.close()
            raise
        return file

    def _check_format(self, file: "_SoundFile | FFmpegFile") -> None:
        check_channels(self.path, file.num_channels)
        if not MIN_SAMPLE_RATE <= file.sample_rate <= MAX_SAMPLE_RATE:
            raise refusal(
                self.path,
                f"states a sample rate of {file.sample_rate} Hz, and {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} are read",
            )
        size = os.stat(self.path).st_size
        if (file.num_samples or 0) > size * _MOST_PER_BYTE:
            raise refusal(self.path, f"states {file.num_samples} samples, more than its {size} bytes can hold")


def mono_mix(samples: np.ndarray) -> np.ndarray:
    """Average the channels: (n, C) -> (n,). numpy's own mean over so short an axis takes six times as long."""
    return sum(samples.T) / samples.shape[1] if samples.shape[1] > 1 else samples[:, 0]


_MOST_PER_BYTE = 6554  # the longest block of FLAC, 65,535 equal samples, takes 10 bytes


class _SoundFile(soundfile.SoundFile):
    """The libsndfile backend, without soundfile's needless seek after every read."""

    def __init__(self, path: Any):
        super().__init__(path)
        self.sample_rate, self.num_channels, self.notes = self.samplerate, self.channels, ()
        self.num_samples = self.frames if self.frames < 1 << 62 else None  # a FLAC written to a pipe states no length
        # In compressed files, seeking is not exact (https://github.com/libsndfile/libsndfile/issues/885).
        plain = self.subtype.startswith("PCM_") or self.subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")
        self.seeks = super().seekable() and plain

    def seekable(self) -> bool:
        return False

    def next(self, count: int) -> np.ndarray:
        return self.read(count, dtype="float32", always_2d=True)


def _open_soundfile(path: str | Path) -> _SoundFile | None:
    """Open a file with libsndfile; return None if that can't read it, or if it is an MP3, whose length it guesses."""
    try:  # as bytes, since soundfile refuses names that are not valid Unicode; Windows has none of those
        file = _SoundFile(os.fspath(path) if os.name == "nt" else os.fsencode(path))
    except (soundfile.SoundFileError, TypeError):  # TypeError: for suffixes of raw samples, soundfile wants a format
        return None
    if file.num_samples == 0 or file.subtype == "MPEG_LAYER_III":
        file.close()
        return None
    return file


_FAILURES = (soundfile.SoundFileError, OSError)


def _refused(path: str | Path, error: Exception) -> AudioReadError:
    """Convert an exception of libsndfile or the system to an error that names the file."""
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return refusal(path, f"can't be decoded ({reason.strip(' .')})", MEND)
