"""Write a WAV incrementally, while its sound is generated."""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import AudiogenError
from .containers import MAX_PEAK


def write_chunks(path: Path, chunks: Iterable[Tensor], sample_rate: int, bits: int = 16) -> int:
    """Write a WAV chunk by chunk; after each chunk it is a complete file that can be played.

    The file has its final name from the first chunk on. If the chunks end with an error, it holds those before.

    Args:
        path: path of the WAV.
        chunks: (..., C, n) in [-1, 1], with C channels and no more than one item; values beyond are clipped.
        sample_rate: Hz.
        bits: bits per sample, 16, 24, or 32 for floats.

    Returns:
        The number of samples written, per channel.

    Raises:
        AudiogenError: samples are NaN, infinite or absurdly large, or the disk is full.
    """
    num_samples = start = width = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")
    except OSError as error:
        raise _unwritten(path, error, 0) from error
    with file:
        for chunk in chunks:
            samples = np.ascontiguousarray(torch.atleast_2d(chunk.float().cpu()).flatten(0, -2).numpy().T)  # (n, C)
            if not np.abs(samples).max(initial=0) <= MAX_PEAK:  # also true for NaN
                raise AudiogenError(
                    f"{path}: NaN, infinite or absurd samples (beyond {MAX_PEAK:g}, where full scale is 1) can't be "
                    "written; find out where they come from"
                )
            data = encode_samples(samples.clip(-1, 1), bits)
            try:
                if num_samples == 0:
                    width = samples.shape[1] * bits // 8
                    start = file.write(wav_header(0, sample_rate, bits, samples.shape[1]))
                written = num_samples * width
                file.seek(start + written)
                file.write(data + b"\0" * ((written + len(data)) % 2))  # a RIFF chunk ends at an even byte
                file.flush()  # before the header that states it
                num_samples += len(samples)
                file.seek(0)
                file.write(wav_header(num_samples, sample_rate, bits, samples.shape[1]))
                file.flush()
            except OSError as error:
                raise _unwritten(path, error, num_samples * width) from error
    return num_samples


def encode_samples(samples: np.ndarray, bits: int = 16) -> bytes:
    """Encode float32 samples in [-1, 1] as little-endian integers of 16 or 24 bits, or as they are."""
    if bits == 32:
        return samples.astype("<f4").tobytes()
    scale = 2.0 ** (bits - 1)
    whole = np.rint(samples * np.float64(scale)).clip(-scale, scale - 1).astype("<i4")
    return whole.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()


def wav_header(num_samples: int, sample_rate: int, bits: int = 16, num_channels: int = 1) -> bytes:
    """Return a RIFF WAVE header; a size of more than 32 bits is stated as the maximum.

    It has 44 bytes, or 58 for floats: a header of anything but PCM also states the number of samples.
    """
    width = num_channels * bits // 8
    size, floats = min(num_samples * width, 2**32 - 100), bits == 32
    form = struct.pack("<HHIIHH", 3 if floats else 1, num_channels, sample_rate, width * sample_rate, width, bits)
    chunks = [(b"fmt ", form + b"\0\0"), (b"fact", struct.pack("<I", size // width))] if floats else [(b"fmt ", form)]
    body = b"".join(name + struct.pack("<I", len(content)) + content for name, content in chunks)
    body += b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", 4 + len(body) + size + size % 2) + b"WAVE" + body


def _unwritten(path: Path, error: OSError, size: int) -> AudiogenError:
    return AudiogenError(
        f"{path}: can't be written ({error.strerror or error}, after {size} bytes of sound); free some "
        "space or choose another folder"
    )
