"""What `audiogen train FOLDER` does by default, worked out without torch, for `audiogen doctor FOLDER`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audio.dsp import HIGHEST_MEL_RATE, leading_bands
from ..data import Index, Split, main_sample_rate, split, split_each
from ..errors import RunError
from ..spec import FrameSpec, Spec
from ..utils.json_files import read_format
from .training_config import DataConfig

#: Run folder of the base model; `audiogen generate` accepts it like any other.
BASE = Path(__file__).parents[1] / "weights" / "base"
#: How it is fine-tuned: fields of TrainingConfig.
FINE_TUNING: dict[str, Any] = {
    "start": "base",
    "crop_frames": 96,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "warmup": 0.1,
    "weight_decay": 0.1,
}


@dataclass(frozen=True)
class Outlook:
    """How training splits and encodes a folder.

    Attributes:
        spec: of the front-end.
        crop_frames: frames per training crop.
        held_out: fraction of the files to hold out.
        gap_seconds: gap between the sides of a single file, as long as the model's receptive field.
        corpora: names of the folders, if there are several.
    """

    spec: Spec
    crop_frames: int
    held_out: float
    gap_seconds: float
    corpora: Sequence[str] = ()

    def split(self, index: Index, threshold: bool = True) -> Split:
        """Split a folder, or each of several, as training does; without the threshold, as older versions did."""
        if self.corpora:
            return split_each(index, self.corpora, self.held_out, self.gap_seconds, threshold)
        return split(index, self.held_out, self.gap_seconds, threshold)


def default_outlook(index: Index) -> Outlook:
    """Return the outlook of a run without options, which fine-tunes the base model.

    Raises:
        DataError: the index has no files.
    """
    base = read_format(BASE / "config.json", 1, RunError, "install audiogen again")
    mel, gpt = base["frontend"], base["backbone"]
    sample_rate = min(main_sample_rate(index), HIGHEST_MEL_RATE)
    bands, hop_length, _ = leading_bands(
        mel["sample_rate"], mel["num_features"], mel["hop_length"], mel["f_max"], sample_rate
    )
    stack, crop_frames = mel["stack"], FINE_TUNING["crop_frames"]
    spec = FrameSpec(sample_rate, hop_length * stack, bands * stack, stack)
    receptive_frames = 1 + gpt["num_layers"] * (crop_frames // 2 - 1)  # see GPT.for_crops and GPT.receptive_field
    return Outlook(spec, crop_frames, DataConfig().held_out, receptive_frames / spec.frame_rate)
