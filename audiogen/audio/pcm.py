"""The samples of a plain WAV, read where they lie: no decoder is needed, and none is opened.

Scaled as libsndfile does it, to the bit: full scale of n bits is 2^(n - 1), and 8 bits are unsigned.
"""

import numpy as np

from .containers import Header

_SUBTYPES = {  # (coding, bits): libsndfile's name, how the bytes are read, full scale
    ("PCM", 8): ("PCM_U8", "u1", 2**7),
    ("PCM", 16): ("PCM_16", "<i2", 2**15),
    ("PCM", 24): ("PCM_24", "<i4", 2**23),
    ("PCM", 32): ("PCM_32", "<i4", 2**31),
    ("float", 32): ("FLOAT", "<f4", 1),
    ("float", 64): ("DOUBLE", "<f8", 1),
}


def is_pcm(header: Header) -> bool:
    """Whether a file of this header can be read here."""
    return header.plain is not None and header.plain[:2] in _SUBTYPES


class PCMFile:
    """The words of soundfile.SoundFile that a decoder needs, for a file of which `is_pcm` is true."""

    def __init__(self, path: str | bytes, header: Header):
        coding, bits, self._begin = header.plain
        self.subtype, self._dtype, full_scale = _SUBTYPES[coding, bits]
        self._scale = np.float32(1 / full_scale)
        self.samplerate, self.channels, self.frames = header.sample_rate, header.num_channels, header.num_samples
        self._width = bits // 8
        self._position = 0
        self._file = open(path, "rb", buffering=0)

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def next(self, count: int) -> np.ndarray:
        """The next samples, (n, C) float32, fewer than `count` only where the file ends."""
        count = min(count, self.frames - self._position) * self.channels
        begin = self._begin + self._position * self._width * self.channels
        if self._width == 3:  # the upper three bytes of a word, which begins with the last byte of what lies before
            data = np.empty(3 * count + 1, np.uint8)
            values = np.ndarray((count,), self._dtype, data, strides=(3,))
            self._file.seek(begin - 1)
            held = (self._file.readinto(data) - 1) // 3
        else:
            values = np.empty(count, self._dtype)
            self._file.seek(begin)
            held = self._file.readinto(values) // self._width
        if held < count:
            values = values[: max(held, 0) // self.channels * self.channels]
        if self._width == 3:
            values = values >> 8
        elif self._width == 1:
            values = (values ^ np.uint8(0x80)).view(np.int8)
        samples = values if self.subtype == "FLOAT" else _rounded(values)
        if self._scale != 1:
            samples *= self._scale
        samples = samples.reshape(-1, self.channels)
        self._position += len(samples)
        return samples

    def close(self) -> None:
        self._file.close()


def _rounded(values: np.ndarray) -> np.ndarray:
    """As float32. A double too large for it becomes infinite, which the caller refuses."""
    if values.dtype.kind == "i":
        return values.astype(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
