"""One sound file, open for decoding: libsndfile behind checks of what it is given and of what it gives."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..errors import AudioReadError
from .containers import CONVERT, Header, read_header, refusal
from .pcm import PCMFile, is_pcm

MAX_PEAK = 4.0
"""Samples beyond 12 dB over full scale are not sound that was turned up too far but a wrong format: refused."""

DECODE_AT_ONCE = 1 << 20
"""Samples per channel to ask for at most, which is 32 MiB at 8 channels."""

# Samples to decode before the one that is sought. An MP3 frame may need some twenty earlier ones, and Opus takes
# time to settle; with Vorbis libsndfile lands beside the place (https://github.com/libsndfile/libsndfile/issues/885).
_LEAD = {"MPEG_LAYER_III": 1 << 15, "OPUS": 1 << 14, "VORBIS": math.inf}


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file holds: `num_samples` per channel at the file's own `sample_rate` in Hz."""

    path: Path
    sample_rate: int
    num_channels: int
    num_samples: int
    format: str  # "WAV", "FLAC", "OGG" or "MP3"
    subtype: str  # libsndfile's name of the coding, such as "PCM_16", "FLOAT", "VORBIS", "OPUS", "MPEG_LAYER_III"

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_samples / self.sample_rate


class Decoder:
    """A sound file that is read straight on from `position`, as float32; to be used in a `with`.

    Raises:
        AudioReadError: on opening, for what the container reveals and for disagreement between it and libsndfile;
            later, for whatever libsndfile raises.
    """

    def __init__(self, path: str | Path):
        self.position = 0
        self.peak = 1.0  # of the last block; of integers, which hold no more than full scale, it is not looked for
        header = read_header(path)
        try:
            self._file = PCMFile(path, header) if is_pcm(header) else _open(path)
            try:
                self.info = _agreed(path, header, self._file)
            except BaseException:
                self._file.close()
                raise
        except _FAILURES as error:
            raise _refused(path, error) from error

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def seek(self, start: int) -> None:
        """Goes to sample `start`, directly where the format and libsndfile can do that exactly."""
        lead = _LEAD.get(self.info.subtype, 0)
        if start > lead or start < self.position:
            try:
                self.position = self._file.seek(int(max(start - lead, 0)))
            except _FAILURES as error:
                raise _refused(self.info.path, error) from error
        while self.position < start:
            self.next(min(start - self.position, DECODE_AT_ONCE))

    def next(self, count: int) -> np.ndarray:
        """The next samples, (n, C) float32 with 0 < n <= count; finite and not absurd.

        Raises:
            AudioReadError: the file ends here, before the samples that it states; NaN, infinite, beyond `MAX_PEAK`.
        """
        try:
            samples = self._file.next(count)
        except _FAILURES as error:
            raise _refused(self.info.path, error) from error
        if len(samples) == 0:
            raise refusal(
                self.info.path,
                f"is damaged or truncated: it states {self.info.num_samples} samples, but "
                f"only {self.position} can be decoded",
            )
        self.position += len(samples)
        if self.info.subtype.startswith("PCM_"):
            return samples
        # A NaN counts as the largest and as the smallest. numpy finds their places sooner than their values.
        self.peak = peak = max(samples.item(samples.argmax()), -samples.item(samples.argmin()))
        if not math.isfinite(peak):
            raise refusal(self.info.path, "holds NaN or infinite samples", "export it again, or remove it")
        if peak > MAX_PEAK:
            raise refusal(
                self.info.path,
                f"holds absurd samples (up to {peak:.3g}, where full scale is 1)",
                "scale them to [-1, 1], or remove it",
            )
        return samples


class _File(soundfile.SoundFile):
    """A SoundFile that does not seek after every read to where it already is.

    soundfile does so wherever a file can seek, and an MP3 decoder then starts afresh, without the earlier frames that
    the next one builds on.
    """

    def seekable(self) -> bool:
        return False

    def next(self, count: int) -> np.ndarray:
        return self.read(count, dtype="float32", always_2d=True)


def _open(path: str | Path) -> _File:
    try:  # bytes, since soundfile refuses names that are no valid Unicode; Windows has no such names
        return _File(os.fspath(path) if os.name == "nt" else os.fsencode(path))
    except TypeError as error:
        raise refusal(
            path, "is taken for samples without a header because of its suffix", "give it the suffix of its format"
        ) from error


_FAILURES = (soundfile.SoundFileError, OSError)


def _refused(path: str | Path, error: Exception) -> AudioReadError:
    """What libsndfile or the system raised, as the error that names the file."""
    reason = getattr(error, "error_string", None) or str(error)
    return refusal(path, f"is damaged or truncated: it can't be decoded ({reason.strip(' .')})")


def _agreed(path: str | Path, header: Header, file: _File | PCMFile) -> AudioInfo:
    """What the container states, once libsndfile's understanding of it agrees."""
    if (file.samplerate, file.channels) != (header.sample_rate, header.num_channels):
        raise refusal(
            path,
            f"states {header.num_channels} channels at {header.sample_rate} Hz but decodes to "
            f"{file.channels} at {file.samplerate} Hz",
        )
    num_samples = _agreed_length(path, header, file)
    return AudioInfo(Path(path), file.samplerate, file.channels, num_samples, header.container, file.subtype)


def _agreed_length(path: str | Path, header: Header, file: _File | PCMFile) -> int:
    """Samples per channel, once the container's statement and libsndfile's understanding of it agree."""
    if header.num_samples is None:
        return _count_samples(path)
    # Of an MP3 that states no length libsndfile reads as much as it guesses from the first frame: too little where
    # the bitrate varies.
    num_samples = min(file.frames, header.num_samples) if header.counted else file.frames
    if abs(num_samples - header.num_samples) > header.tolerance:
        raise refusal(
            path, f"holds {header.num_samples} samples by its container but {num_samples} by its decoder", CONVERT
        )
    return num_samples


def _count_samples(path: str | Path) -> int:
    count = 0
    with _open(path) as file:
        while len(samples := file.next(DECODE_AT_ONCE)):
            count += len(samples)
    return count
