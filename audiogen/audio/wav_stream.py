"""Write a WAV incrementally, while its sound is generated."""

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import AudiogenError
from .containers import MAX_PEAK


def write_chunks(path: Path, chunks: Iterable[Tensor], sample_rate: int) -> int:
    """Write a mono 16-bit WAV chunk by chunk; after each chunk it is a complete file that can be played.

    The file has its final name from the first chunk on. If the chunks end with an error, it holds those before.

    Args:
        path: path of the WAV.
        chunks: (..., n) in [-1, 1]; values beyond are clipped.
        sample_rate: Hz.

    Returns:
        The number of samples written.

    Raises:
        AudiogenError: samples are NaN, infinite or absurdly large, or the disk is full.
    """
    num_samples = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")
    except OSError as error:
        raise _unwritten(path, error, 0) from error
    with file:
        for chunk in chunks:
            samples = chunk.float().cpu().reshape(-1).numpy()
            if not np.abs(samples).max(initial=0) <= MAX_PEAK:  # also true for NaN
                raise AudiogenError(
                    f"{path}: NaN, infinite or absurd samples (beyond {MAX_PEAK:g}, where full scale is 1) can't be "
                    "written; find out where they come from"
                )
            data = np.rint(samples * 32768.0).clip(-32768, 32767).astype("<i2").tobytes()
            try:
                if num_samples == 0:
                    file.write(_header(0, sample_rate))
                file.seek(0, io.SEEK_END)
                file.write(data)
                file.flush()  # before the header that states it
                num_samples += len(samples)
                file.seek(0)
                file.write(_header(num_samples, sample_rate))
                file.flush()
            except OSError as error:
                raise _unwritten(path, error, 2 * num_samples) from error
    return num_samples


def _header(num_samples: int, sample_rate: int) -> bytes:
    """Return a header of 44 bytes (RIFF WAVE, PCM); a size of more than 32 bits is stated as the maximum."""
    size = min(2 * num_samples, 2**32 - 38)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + size,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        sample_rate,
        2 * sample_rate,
        2,
        16,
        b"data",
        size,
    )


def _unwritten(path: Path, error: OSError, size: int) -> AudiogenError:
    return AudiogenError(
        f"{path}: can't be written ({error.strerror or error}, after {size} bytes of sound); free some "
        "space or choose another folder"
    )
