"""The FFmpeg backend (PyAV), which decodes sequentially from the beginning, since FFmpeg's seeking is not exact."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AudioReadError
from .containers import CONVERT, MEND, Header, check_channels, refusal

#: FFmpeg's containers that hold sound and can't refer to other files.
_CONTAINERS = "aac,ac3,aiff,amr,ape,asf,au,caf,eac3,flac,matroska,mov,mp3,ogg,tta,w64,wav,wv"
#: Containers that state the size of each packet, so that a truncated one is detected.
_STATE_SIZES = {"ape", "asf", "caf", "mov,mp4,m4a,3gp,3g2,mj2", "tta", "w64", "wv"}
_AT_ONCE = 1 << 16
_MAX_LOST = 0.01  # fraction of packets that may fail, and always two: junk in an MP3 counts as a few packets
_KBITS = {  # bitrates of MP3 frames in kbit/s, by whether they are MPEG 1
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_FULL_SCALE = {"u1": 2.0**7, "i2": 2.0**15, "i4": 2.0**31, "i8": 2.0**63}


class FFmpegFile:
    """A backend of `Decoder` that uses PyAV. The number of samples and the notes are known at the end only.

    Raises:
        AudioReadError: the container or coding is not supported, or there is no sound; at the end, the file is
            truncated or damaged.
    """

    seeks, num_samples = False, None

    def __init__(self, path: str | Path, header: Header):
        import av  # slow and 20 MiB, and not needed for most folders
        import av.error

        self._av, self._path, self._header, self.notes = av, path, header, ()
        self._file: io.FileIO = _Nameless(path)
        self._container: Any = None
        try:
            begins_as_it_should = self._file.read(3)[:1] in (b"\xff", b"I")  # with a frame, or a tag
            self._file.seek(0)
            try:
                options = {"format_whitelist": _CONTAINERS}
                self._container = av.open(self._file, options=options, metadata_errors="ignore")
            except (av.error.FFmpegError, UnicodeDecodeError) as error:
                if header.container:
                    raise self._refused(error) from error
                raise refusal(path, "is not a sound file of a supported kind", CONVERT) from error
            tracks: Any = self._container.streams.audio
            self._format = self._container.format.name
            if not tracks:
                raise refusal(path, "holds no sound", "remove it")
            if tracks[0].codec_context is None:
                raise refusal(path, "can't be decoded (its coding is not known)", CONVERT)
            if len(tracks) > 1:
                self.notes = (f"holds {len(tracks)} tracks of sound; the first is read",)
            if self._format == "mp3" and not begins_as_it_should:
                self.notes += ("bytes before its first frame are skipped",)
            self._stream, self._count = tracks[0], 0
            self.container, self.subtype = (
                self._format.split(",")[0].upper(),
                tracks[0].codec_context.codec.canonical_name,
            )
            self._blocks = self._decode()
            self._left = next(self._blocks, None)
            if self._left is None:
                raise refusal(path, "has a header but no samples")
        except BaseException:
            self.close()
            raise

    def next(self, count: int) -> np.ndarray:
        """Return the next samples, (n, C) float32, n <= count; n is 0 at the end."""
        blocks, held = [], 0
        while held < min(count, _AT_ONCE) and self._left is not None:
            block = self._left[: count - held]
            blocks, held = [*blocks, block], held + len(block)
            self._left = self._left[len(block) :] if len(block) < len(self._left) else next(self._blocks, None)
        return np.concatenate(blocks) if blocks else np.empty((0, self.num_channels), np.float32)

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
        self._file.close()

    def _decode(self) -> Iterator[np.ndarray]:
        """Yield the samples (n, C) float32, n > 0, of each frame; at the end, check the file and add notes."""
        num_packets = lost = missing = 0
        cut, last, expected = False, b"", None
        for packet in self._packets():
            if packet.size > 0:  # the last packet is empty and flushes the decoder
                num_packets, cut, last = num_packets + 1, cut or packet.is_corrupt, bytes(packet)
            try:
                frames = packet.decode()
            except self._av.error.FFmpegError:
                lost += 1
                continue
            for frame in frames:
                if self._format == "ogg" and frame.pts is not None:  # FFmpeg skips damaged pages silently
                    begin = round(frame.pts * frame.time_base * frame.sample_rate)
                    if expected is None and begin > 0:
                        self.notes += (f"begins at sample {begin} by its own count",)
                    missing += max(0, begin - (begin if expected is None else expected))
                    expected = begin + frame.samples
                if frame.samples > 0:
                    yield self._samples(frame)
        stated = self._header.num_frames
        if num_packets < stated - 1 or cut and self._format in _STATE_SIZES:
            raise refusal(self._path, f"is truncated: its header states more than the {self._count} samples it holds")
        if lost > max(2, _MAX_LOST * num_packets):
            raise refusal(self._path, f"is damaged: {lost} of its {num_packets} packets can't be decoded")
        if lost:
            self.notes += (f"packets that can't be decoded are left out: {lost} of {num_packets}",)
        if self._header.end is not None and self._count:
            missing += max(0, round(self._header.end * self.sample_rate) - (expected or self._count))
        alone = not self._header.notes  # joined streams restart their count
        if alone and self._count and missing > 0.001 * self.sample_rate:
            self.notes += (f"it is damaged: {missing} samples of it can't be decoded",)
        if 0 < stated < num_packets - 1:
            self.notes += (f"its header states {stated} frames, and the {num_packets} that it holds are read",)
        if self.subtype == "mp3" and len(last) < _mp3_frame_bytes(last):
            self.notes += ("its last frame is cut short",)

    def _packets(self) -> Iterator:
        try:
            yield from self._container.demux(self._stream)
        except self._av.error.FFmpegError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> AudioReadError:
        reason = (getattr(error, "strerror", None) or str(error)).strip(" .")
        return refusal(self._path, f"can't be decoded ({reason})", MEND)

    def _samples(self, frame) -> np.ndarray:
        found = frame.sample_rate, frame.layout.nb_channels
        if self._count == 0:
            self.sample_rate, self.num_channels = found
        elif found != (self.sample_rate, self.num_channels):
            raise refusal(
                self._path, f"changes its sample rate or number of channels after {self._count} samples", CONVERT
            )
        check_channels(self._path, self.num_channels)  # of more than 8, PyAV reads planes that are not there
        values = _values(frame)  # (C, n), or (1, n * C) if the channels are interleaved
        values = values.T if frame.format.is_planar else values.reshape(-1, self.num_channels)
        self._count += len(values)
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused later
            samples = np.ascontiguousarray(values, np.float32)
        if values.dtype.kind in "ui":
            samples = samples / np.float32(_FULL_SCALE[values.dtype.str[1:]]) - (values.dtype.kind == "u")
        return samples


def _values(frame) -> np.ndarray:
    """Convert a frame to an array with one row per plane. PyAV itself can't convert 64-bit integers."""
    if frame.format.bytes != 8 or frame.format.name.startswith("dbl"):
        return frame.to_ndarray()
    count = frame.samples * (1 if frame.format.is_planar else frame.layout.nb_channels)
    return np.stack([np.frombuffer(plane, np.int64, count) for plane in frame.planes])


def _mp3_frame_bytes(head: bytes) -> int:
    """Return the length in bytes of an MP3 frame from its first four bytes; 0 if it is not one."""
    if len(head) < 4 or head[0] != 0xFF or head[2] >> 2 & 3 == 3:
        return 0
    version = head[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate = (44_100, 48_000, 32_000)[head[2] >> 2 & 3] // {3: 1, 2: 2}.get(version, 4)
    kbits = _KBITS[version == 3][head[2] >> 4]
    return (144_000 if version == 3 else 72_000) * kbits // rate + (head[2] >> 1 & 1)


class _Nameless(io.FileIO):
    """A file that hides its name, so that FFmpeg does not use the suffix."""

    name = property(lambda self: "", lambda self, name: None)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek; return -1 on errors: damaged files may lead before the start, and FFmpeg would print the exception."""
        try:
            return super().seek(offset, whence)
        except OSError:
            return -1
