"""A WAV that grows while its sound is made."""

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import AudiogenError
from .containers import MAX_PEAK


def write_chunks(path: Path, chunks: Iterable[Tensor], sample_rate: int) -> int:
    """Writes a mono WAV of 16 bits as its chunks come, to be listened to meanwhile: after each it is a whole file.

    So it stands under its own name from the first chunk on, and where the chunks end in an error it holds those before.

    Args:
        chunks: (..., n) in [-1, 1]; what lies beyond is clipped.
        sample_rate: Hz.

    Returns:
        How many samples were written.

    Raises:
        AudiogenError: NaN, infinite or absurd samples, or a disk that is full.
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
            if not np.abs(samples).max(initial=0) <= MAX_PEAK:  # nor is it where it is NaN
                raise AudiogenError(
                    f"{path}: NaN, infinite or absurd samples (beyond {MAX_PEAK:g}, where full scale is 1) can't be "
                    "written; look for what made them"
                )
            data = np.rint(samples * 32768.0).clip(-32768, 32767).astype("<i2").tobytes()
            try:
                if num_samples == 0:
                    file.write(_header(0, sample_rate))
                file.seek(0, io.SEEK_END)
                file.write(data)
                file.flush()  # before the header that promises it
                num_samples += len(samples)
                file.seek(0)
                file.write(_header(num_samples, sample_rate))
                file.flush()
            except OSError as error:
                raise _unwritten(path, error, 2 * num_samples) from error
    return num_samples


def _header(num_samples: int, sample_rate: int) -> bytes:
    """44 bytes (RIFF WAVE, PCM); a length beyond what its 32 bits can say is said to be the most that they can."""
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
        f"{path}: can't be written ({error.strerror or error}, {size} bytes of sound are); free some "
        "room or choose another folder"
    )
