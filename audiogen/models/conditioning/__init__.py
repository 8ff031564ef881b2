"""Conditions: named properties of a sound, and the vectors that pass them to a model.

A condition's values are (B, F, T) float32: F numbers for each frame; T is 1 if one value applies to the whole item. NaN
means "not given" and is replaced by a learned null vector. So dropped conditions, padding after the end of a shorter
item and frames without a value are all represented in the same way.

    label      index of the label among its values          (B, 1, 1 or T)
    number     the number itself                            (B, 1, 1 or T)
    pitch      a MIDI number, which may have a fraction     (B, 1, 1 or T)
    melody     the strength of each pitch class             (B, 12, T)
    loudness   dB relative to a full-scale sine             (B, 1, T)
    timbre     mean and deviation of the cepstrum           (B, 48, 1 or T)
    frames     any other vector for each frame              (B, F, T)
    codes      those of an earlier stage, see stages.py     (B, F, T)
    position   frames since the file began, and to its end  (B, 2, T)
    text       a caption as UTF-8 bytes, padded with NaN    (B, max_bytes, 1 or T)

Each condition becomes one vector per frame, which is added to the embedding of the step that predicts the frame. So all
backbones, patterns and specs support conditions. The last weights before the sum start at zero, so adding a condition
to a trained model does not change its sound until the condition is learned.
"""

from .condition import Condition, waves_of
from .conditioner import STRENGTH, AskedConditions, Changed, Conditioner, Conditions, Prepared
from .constant import Label, Number, Pitch
from .framewise import Codes, Frames, Loudness, Melody, Position, Timbre, positions
from .text import Text

CONDITIONS: dict[str, type[Condition]] = {
    "label": Label,
    "number": Number,
    "pitch": Pitch,
    "melody": Melody,
    "loudness": Loudness,
    "timbre": Timbre,
    "frames": Frames,
    "codes": Codes,
    "position": Position,
    "text": Text,
}

__all__ = [
    "CONDITIONS", "STRENGTH", "AskedConditions", "Changed", "Codes", "Condition", "Conditioner", "Conditions", "Frames",
    "Label", "Loudness", "Melody", "Number", "Pitch", "Position", "Prepared", "Text", "Timbre", "positions",
    "waves_of",
]  # fmt: skip
