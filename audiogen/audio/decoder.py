"""One sound file, open for decoding, behind checks of what is given to the decoder and of what it gives.

There are two decoders, alike to use: libsndfile, and FFmpeg (ffmpeg.py), which takes more time and reads nearly
everything. What the container states (containers.py) says which of them reads all of a file. Each has

    subtype                 the name of the coding
    sample_rate (Hz), num_channels
    num_samples             per channel; None: only decoding to the end can tell
    notes                   what is odd about the file
    seeks                   whether its `seek` can be trusted to a sample; else the way there is decoded
    next(count)             the next samples (n, C) float32, n <= count; none at the end
    seek(position), close()
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..errors import AudioReadError
from .containers import MAX_PEAK, MAX_SAMPLE_RATE, MEND, MIN_SAMPLE_RATE, check_channels, read_header, refusal
from .ffmpeg import FFmpegFile

AUDIO_SUFFIXES = frozenset(
    ".wav .bwf .w64 .rf64 .aiff .aif .aifc .au .snd .caf .flac .ogg .oga .opus .spx .mp3 .mp2 .m4a .m4b .mp4 .3gp .aac "
    ".ac3 .amr .wma .asf .webm .mka .wv .tta .ape".split()
)
"""The lower-case suffixes of the files that a folder is searched for. Reading itself goes by content, not by suffix."""

DECODE_AT_ONCE = 1 << 20
"""Samples per channel to ask for at most, which is 32 MiB at 8 channels."""


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file holds: `num_samples` per channel at the file's own `sample_rate` in Hz."""

    path: Path
    sample_rate: int
    num_channels: int
    num_samples: int
    format: str  # "WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "W64", "ASF", or FFmpeg's name of another
    subtype: str  # the coding by libsndfile's name, such as "PCM_16", "FLOAT", "VORBIS", or by FFmpeg's, such as "aac"
    notes: tuple[str, ...] = ()  # what is odd about the file, though it is read whole

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_samples / self.sample_rate


def audio_info(path: str | Path) -> AudioInfo:
    """What the sound file at `path` holds, checked as far as its headers go: made to be run over many files.

    That the sound of a WAV, AIFF, CAF, AU, W64 or Ogg is there in full is checked; a FLAC, and whatever lies in the
    middle of a file, is only checked when it is read. Other files, and those that state no length, are decoded once.

    Raises:
        AudioReadError: not a sound file that can be read; the message says why and what to do.
    """
    with Decoder(path) as decoder:
        return decoder.info


class Decoder:
    """A sound file that is read straight on from `position`, as float32; to be used in a `with`.

    Raises:
        AudioReadError: on opening, for what the container reveals and where no decoder reads it; later, for whatever
            the decoder raises. It can be used afterwards: what is sought next is decoded from the beginning.
    """

    def __init__(self, path: str | Path):
        self.position = 0
        self.peak = 1.0  # of the last block; of integers, which hold no more than full scale, it is not looked for
        self.path, self._header = path, read_header(path)
        self._file = self._open()
        self.num_samples, self._failed, self._info = self._file.num_samples, False, None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def info(self) -> AudioInfo:
        """A file that states no length is decoded to its end for it, unless that was done; by another decoder."""
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
            format = (file.sample_rate, file.num_channels, self.num_samples, container, file.subtype)
            self._info = AudioInfo(Path(self.path), *format, notes)
        return self._info

    def blocks(self, count: int = 1 << 18) -> Iterator[np.ndarray]:
        """All that follows, as `next` gives it. Afterwards `num_samples` is known."""
        while self.num_samples is None or self.position < self.num_samples:
            samples = self.next(count)
            if len(samples) == 0:
                self.num_samples = self.position
            else:
                yield samples

    def seek(self, start: int) -> None:
        """Goes to sample `start`, directly where the decoder can do that exactly."""
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
        """The next samples, (n, C) float32 with 0 < n <= count; finite and not absurd. None at an end not stated.

        Raises:
            AudioReadError: the file ends here, before the samples that it states; NaN, infinite, beyond `MAX_PEAK`.
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
            # A NaN counts as the largest and as the smallest. numpy finds their places sooner than their values.
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
        """libsndfile where the header says so and it agrees, else FFmpeg."""
        try:
            file = _open_soundfile(self.path) if self._header.decoder == "libsndfile" else None
            end = self._header.end
            if file is not None and end is not None and abs((file.num_samples or 0) / file.sample_rate - end) > 1e-3:
                file.close()  # a page is damaged, or the first one states a later position than 0
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
    """The mean of the channels, (n, C) -> (n,). numpy's own mean over so short an axis takes six times as long."""
    return sum(samples.T) / samples.shape[1] if samples.shape[1] > 1 else samples[:, 0]


_MOST_PER_BYTE = 6554  # 65,535 samples of one value, the longest block of FLAC, take 10 bytes


class _SoundFile(soundfile.SoundFile):
    """libsndfile, without a seek after every read to where it already is, which soundfile does for files that can."""

    def __init__(self, path: str | bytes):
        super().__init__(path)
        self.sample_rate, self.num_channels, self.notes = self.samplerate, self.channels, ()
        self.num_samples = self.frames if self.frames < 1 << 62 else None  # a FLAC from a pipe states none
        # Among compressed samples it lands beside the place (https://github.com/libsndfile/libsndfile/issues/885).
        plain = self.subtype.startswith("PCM_") or self.subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")
        self.seeks = super().seekable() and plain

    def seekable(self) -> bool:
        return False

    def next(self, count: int) -> np.ndarray:
        return self.read(count, dtype="float32", always_2d=True)


def _open_soundfile(path: str | Path) -> _SoundFile | None:
    """The file in libsndfile, or None if it does not read it. Of MP3s, in a WAV too, it reads what it guesses."""
    try:  # bytes, since soundfile refuses names that are no valid Unicode; Windows has no such names
        file = _SoundFile(os.fspath(path) if os.name == "nt" else os.fsencode(path))
    except (soundfile.SoundFileError, TypeError):  # the latter where a suffix of raw samples asks for their format
        return None
    if file.num_samples == 0 or file.subtype == "MPEG_LAYER_III":
        file.close()
        return None
    return file


_FAILURES = (soundfile.SoundFileError, OSError)


def _refused(path: str | Path, error: Exception) -> AudioReadError:
    """What libsndfile or the system raised, as the error that names the file."""
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return refusal(path, f"can't be decoded ({reason.strip(' .')})", MEND)
