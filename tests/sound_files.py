"""Sound files made for tests, good ones and such as lie about themselves."""

import struct
from pathlib import Path

import numpy as np
import soundfile


def sounds(num_samples: int, sample_rate: int, num_channels: int) -> np.ndarray:
    """(N, C) float64: another tone in each channel, with noise, within [-0.9, 0.9]."""
    time = np.arange(num_samples) / sample_rate
    tones = np.sin(2 * np.pi * np.outer(time, 300 + 100 * np.arange(num_channels)))
    return 0.6 * tones + np.random.default_rng(0).uniform(-0.3, 0.3, tones.shape)


def flac(path: Path, total: int | None = None, num_samples: int = 5_000) -> Path:
    """A FLAC file, stating `total` samples in STREAMINFO in the place of what it holds."""
    soundfile.write(path, sounds(num_samples, 16_000, 1), 16_000)
    data = bytearray(path.read_bytes())
    if total is not None:
        data[18:26] = (int.from_bytes(data[18:26], "big") >> 36 << 36 | total).to_bytes(8, "big")
    path.write_bytes(data)
    return path


def wav_bytes(
    data: bytes,
    data_size: int | None = None,
    *,
    riff_size: int | None = None,
    coding: int = 1,
    num_channels: int = 1,
    sample_rate: int = 16_000,
    bits: int = 16,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A WAV made by hand, so that every field can lie."""
    align = num_channels * bits // 8
    fmt = struct.pack(
        "<4sIHHIIHH",
        b"fmt ",
        16,
        coding,
        num_channels,
        sample_rate,
        sample_rate * align & 0xFFFFFFFF,
        align & 0xFFFF,
        bits,
    )
    size = len(data) if data_size is None else data_size
    body = b"WAVE" + fmt + before + struct.pack("<4sI", b"data", size) + data + after
    return struct.pack("<4sI", b"RIFF", len(body) if riff_size is None else riff_size) + body


def put(data: bytes, at: int, layout: str, value: int) -> bytes:
    new = struct.pack(layout, value)
    return data[:at] + new + data[at + len(new) :]


def ogg_page(data: bytes, at: int, offset: int, layout: str, value: int) -> bytes:
    """Changes a field of the page at `at`, and its checksum, without which decoders would pass over the page."""
    body = at + 27 + data[at + 26]
    end = body + sum(data[at + 27 : body])
    page = put(put(data[at:end], offset, layout, value), 22, "<I", 0)
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    return data[:at] + put(page, 22, "<I", crc) + data[end:]
