"""The codes or frames of an earlier stage as a condition of each file: teacher forcing."""

from typing import Any

import numpy as np
import torch

from ..models.conditioning import Codes, Frames
from ..models.stages import Alignment
from ..spec import Spec
from .cache import EncodedCache


def stage_config(earlier: Spec, later: Spec) -> Any:
    """Return the config of the condition by which a later stage takes the codes or frames of an earlier one.

    Raises:
        ConfigError: the frame rate of one of them varies.
    """
    num_values = Alignment(earlier, later).num_values
    if not earlier.discrete:
        return Frames.Config(num_values)
    return Codes.Config(num_values, earlier.num_choices // earlier.num_rows)


class StageFrames:
    """What an earlier stage has encoded, at the frames of a later one; it takes the place of a `StoredDescriptor`.

    Args:
        cache: the files, encoded by the front-end of the earlier stage.
        later: spec of the front-end of the later stage.
    """

    def __init__(self, cache: EncodedCache, later: Spec):
        self.cache, self.alignment = cache, Alignment(cache.spec, later)
        self._places = {sha256: i for i, sha256 in enumerate(cache.hashes())}

    def frames(self, sha256: str, first: int, length: int) -> np.ndarray:
        """Return the values of frames [first, first + length) of a file: (F, length) float32.

        They are NaN if the earlier stage has not encoded the file.
        """
        place = self._places.get(sha256)
        if place is None:
            return np.full((self.alignment.num_values, length), np.nan, np.float32)
        wanted = self.alignment.frames(torch.arange(first, first + length)).numpy()  # (length, per_frame)
        # A file's last frames may end after those of the earlier stage.
        wanted = self.cache.offsets[place] + wanted.clip(max=int(self.cache.num_frames[place]) - 1)
        return self.cache.data[wanted].reshape(length, -1).T.astype(np.float32)
