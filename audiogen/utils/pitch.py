"""Names of pitches."""

import math
import re

#: Semitones above C.
STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
ACCIDENTALS = {"": 0, "#": 1, "s": 1, "♯": 1, "b": -1, "♭": -1}
NAME = re.compile(r"([a-g])(#|s|♯|b|♭|)(-?\d)")
LOWEST, HIGHEST = 0, 127


def midi_pitch(text: str) -> float:
    """Return the MIDI number, 0 to 127, of a pitch; NaN if the text is none.

    Args:
        text: a number such as 61, which may have a fraction; or a name such as C4 (60, middle C), F#3, Fs3 or Bb2.

    Example:
        >>> midi_pitch("C4"), midi_pitch("Bb2"), midi_pitch("61.5")
        (60.0, 46.0, 61.5)
    """
    text = text.strip().lower()
    if named := NAME.fullmatch(text):
        step, accidental, octave = named.groups()
        pitch = float(12 * (int(octave) + 1) + STEPS[step] + ACCIDENTALS[accidental])
    else:
        try:
            pitch = float(text)
        except ValueError:
            return math.nan
    return pitch if LOWEST <= pitch <= HIGHEST else math.nan
