"""The stereo image of the training files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..audio.decoder import Decoder
from ..audio.stereo import StereoImage, measure_image
from .split import Part

#: Maximum number of seconds that are measured, in all and of one file.
MOST_SECONDS, MOST_OF_FILE = 600.0, 60.0


def stereo_image(folder: Path, parts: Sequence[Part]) -> StereoImage | None:
    """Measure the stereo image of files.

    Args:
        folder: their folder.
        parts: the files, or parts of them.

    Returns:
        The image; None if less than half of the sound has two channels, or if these are the same.

    Raises:
        AudioReadError: a file can't be read.
    """
    stereo = [part for part in parts if part.file.num_channels == 2]
    if sum(part.seconds for part in stereo) < 0.5 * sum(part.seconds for part in parts):
        return None
    return measure_image(_blocks(folder, stereo))


def _blocks(folder: Path, parts: Sequence[Part]) -> Iterator[tuple[np.ndarray, int]]:
    left = MOST_SECONDS
    for part in parts:
        rate = part.file.sample_rate
        first, end = part.span(part.file.num_samples)
        count = min(end - first, round(min(left, MOST_OF_FILE) * rate))
        left -= count / rate
        with Decoder(folder / part.file.path) as decoder:
            decoder.seek(first)
            for samples in decoder.blocks():
                yield samples[:count], rate
                count -= len(samples)
                if count <= 0:
                    break
        if left <= 0:
            break
