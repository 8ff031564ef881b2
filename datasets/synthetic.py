"""A small synthetic corpus of music: plucked strings playing short tunes over a bass.

    python datasets/synthetic.py OUT [--minutes 12] [--sample-rate 16000] [--seed 0]

writes OUT/tune-0000.wav, tune-0001.wav, ... (mono, 16 bit, 8 to 10 seconds each), and OUT/metadata.csv, which says of
each what plays the melody, how fast, and whether there is a shaker: `audiogen train OUT` learns these as conditions. It
needs no network and no recordings, no licence applies, and the same options always give the same bytes. Tune number i
depends only on the seed and on i, so a longer corpus begins with the shorter one.

The corpus is simple on purpose, so that a small model learns it in minutes: two strings and a bass, four keys that
share nearly all their notes, four tempi. It is music on purpose, so that you can hear what the model has learned and
what it has not. Models tend to learn these aspects in this order:

    1. loudness and timbre    is it a string, or noise?
    2. attack and decay       does each note begin at once and die away?
    3. pitch                  does a note keep its pitch, and does it fit the other notes?
    4. rhythm                 do the notes fall on a steady beat?
    5. harmony and phrase     do bass and melody fit together, and does a tune end on its tonic?

The file reads from top to bottom: the score (what is played when), the strings (how a note sounds), the mix, the files.
"""

import argparse
import csv
import functools
import io
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from audiogen.audio.io import write_audio
from audiogen.errors import AudiogenError
from audiogen.utils.files import atomic_write_text

# ---------------------------------------------------------------------------------------------------- the score

BEATS = 16  # four bars of four beats: 8 to 10 seconds at the tempi below
TEMPI = (96, 104, 112, 120)  # beats per minute

# (tonic as a MIDI number, mode). These four share six of their seven notes.
KEYS = ((60, "major"), (67, "major"), (57, "minor"), (64, "minor"))  # C and G major, A and E minor
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}  # semitones above the tonic
# The melody keeps to five of the seven notes: no semitone lies between them, so that nothing sounds wrong.
MELODY_DEGREES = {"major": (0, 1, 2, 4, 5), "minor": (0, 2, 3, 4, 6)}
# One chord per bar, as the scale degree of its root; each tune ends on the tonic chord.
PROGRESSIONS = {
    "major": ((0, 3, 4, 0), (0, 5, 4, 0), (0, 5, 3, 0), (0, 4, 3, 0)),
    "minor": ((0, 5, 6, 0), (0, 3, 6, 0), (0, 2, 6, 0), (0, 6, 5, 0)),
}
# One bar in eighth notes, eight in all; a negative length is a rest.
BAR_RHYTHMS = (
    (2, 2, 2, 2),
    (2, 1, 1, 2, 2),
    (3, 1, 2, 2),
    (2, 2, 1, 1, 2),
    (1, 1, 2, 1, 1, 2),
    (3, 3, 2),
    (-2, 2, 2, 2),
)
LAST_BAR_RHYTHMS = ((8,), (2, 6), (2, 2, 4), (1, 1, 2, 4))
# The bass in eighth notes: (length, 0 for the chord's root or 7 for the fifth above it).
BASS_LINES = (((4, 0), (4, 7)), ((3, 0), (1, 0), (4, 7)), ((2, 0), (2, 7), (2, 0), (2, 7)))


@dataclass(frozen=True)
class Note:
    """One note of a tune: `pitch` is a MIDI number (69 is the A of 440 Hz), `start` and `length` are in seconds."""

    start: float
    length: float
    pitch: int
    instrument: str
    loudness: float


def compose(seed: int, number: int) -> tuple[list[Note], float]:
    """Compose tune `number`: its notes, and its length in seconds."""
    dice = random.Random(f"{seed}/{number}")  # a string is hashed by SHA-512, the same on every machine
    tonic, mode = dice.choice(KEYS)
    roots = dice.choice(PROGRESSIONS[mode])
    beat = 60 / dice.choice(TEMPI)
    late = dice.choice((0.5, 0.5, 2 / 3))  # where the second eighth of a beat falls: halfway, or swung
    lead = dice.choice(("guitar", "harp"))
    strummed, shaken = dice.random() < 0.5, dice.random() < 0.3

    def seconds(eighth: int) -> float:
        return beat * (eighth // 2 + (late if eighth % 2 else 0))

    def note(eighth: int, length: int, pitch: int, instrument: str, loudness: float) -> Note:
        start = seconds(eighth)
        return Note(start, seconds(eighth + length) - start, pitch, instrument, loudness)

    notes = [
        note(start, length, pitch, lead, 1.0 if start % 4 == 0 else 0.8)
        for start, length, pitch in melody(dice, tonic, mode, roots)
    ]

    bass_line = dice.choice(BASS_LINES)
    for bar, root in enumerate(roots):
        first = 8 * bar
        chord = [chord_pitch(tonic, mode, root, third) for third in range(3)]
        low = 36 + (chord[0] - 36) % 12  # the root between C2 (65 Hz) and B2
        if bar == 3:
            notes.append(note(first, 8, low, "bass", 0.9))
        else:
            start = first
            for length, above in bass_line:
                notes.append(note(start, length, low + above, "bass", 0.9 if start == first else 0.7))
                start += length
        if strummed:  # the chord, softly, on the second and the fourth beat
            for eighth in (2, 6) if bar < 3 else (2,):
                notes += [note(first + eighth, 2, 52 + (pitch - 52) % 12, "guitar", 0.3) for pitch in chord]
        if shaken and bar < 3:
            notes += [note(first + eighth, 1, 0, "shaker", 0.22 if eighth % 4 == 2 else 0.1) for eighth in range(8)]
    return sorted(notes, key=lambda n: (n.start, n.pitch)), BEATS * beat


def labels(notes: list[Note], seconds: float) -> dict[str, str]:
    """Describe a tune: what plays the melody, its beats per minute, and whether a shaker plays."""
    instruments = {note.instrument for note in notes}
    return {
        # A guitar may also strum chords, but softly.
        "lead": max(notes, key=lambda note: note.loudness * (note.instrument in ("guitar", "harp"))).instrument,
        "tempo": f"{60 * BEATS / seconds:g}",
        "shaker": "yes" if "shaker" in instruments else "no",
    }


def melody(dice: random.Random, tonic: int, mode: str, roots: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Compose a phrase of four bars: a motif, its echo, an answer, an ending.

    The melody moves up and down a scale of five notes; at the start of a bar it moves to the nearest note of the chord.

    Returns:
        (start in eighths, length in eighths, pitch) of each note.
    """
    ladder = [
        pitch
        for pitch in range(60, 82)
        if pitch
        in {  # C4 (262 Hz) to A5 (880 Hz)
            other
            for octave in (-24, -12, 0, 12, 24)
            for degree in MELODY_DEGREES[mode]
            for other in [tonic + octave + SCALES[mode][degree]]
        }
    ]
    motif, answer = dice.choice(BAR_RHYTHMS), dice.choice(BAR_RHYTHMS)
    ending = dice.choice(LAST_BAR_RHYTHMS)
    moves = [dice.choice((-2, -1, -1, 1, 1, 2)) for _ in range(8)]
    other_moves = [dice.choice((-1, -1, 1, 1)) for _ in range(8)]
    plan = ((motif, moves), (motif, moves), (answer, other_moves), (ending, other_moves))

    line, rung = [], len(ladder) // 2 + dice.choice((-2, 0, 2))
    for bar, ((rhythm, steps), root) in enumerate(zip(plan, roots, strict=True)):
        chord = {chord_pitch(tonic, mode, root, third) % 12 for third in range(3)}
        at_home = [i for i, pitch in enumerate(ladder) if pitch % 12 in chord]
        rung = min(at_home, key=lambda i: abs(i - rung))
        start = 8 * bar
        for index, length in enumerate(rhythm):
            if length > 0:
                last = bar == 3 and index == len(rhythm) - 1
                if last:  # the tune ends on its tonic
                    rung = min(
                        (i for i, pitch in enumerate(ladder) if (pitch - tonic) % 12 == 0), key=lambda i: abs(i - rung)
                    )
                line.append((start, length, ladder[rung]))
                step = steps[index]
                rung += step if 0 <= rung + step < len(ladder) else -step  # turn round at either end
            start += abs(length)
    return line


def chord_pitch(tonic: int, mode: str, root: int, third: int) -> int:
    """Return the root (third=0), third (1) or fifth (2) of the chord on a scale degree, as a MIDI number."""
    octave, degree = divmod(root + 2 * third, 7)
    return tonic + 12 * octave + SCALES[mode][degree]


# -------------------------------------------------------------------------------------------------- the strings


@dataclass(frozen=True)
class String:
    """The sound of a plucked string.

    An ideal string plucked at the fraction `plucked_at` of its length has harmonics of amplitude
    |sin(pi n plucked_at)| / n^2; here `dullness` replaces the exponent 2. `ring` is the time in seconds in which a
    fundamental of 220 Hz decays to 1/e. Harmonic n decays `1 + damping (n - 1)` times as fast, so a note is bright at
    first and then becomes softer, as plucked strings do. `level` scales the sound.
    """

    plucked_at: float
    dullness: float
    ring: float
    damping: float
    level: float


STRINGS = {
    "guitar": String(plucked_at=0.27, dullness=1.5, ring=0.42, damping=0.35, level=1.0),
    "harp": String(plucked_at=0.45, dullness=1.1, ring=0.55, damping=0.6, level=0.9),
    "bass": String(plucked_at=0.35, dullness=1.8, ring=0.42, damping=0.3, level=1.1),
}


def frequency(pitch: int) -> float:
    """Return the frequency in Hz of a MIDI number: equal temperament, 69 is 440 Hz."""
    return 440.0 * 2 ** ((pitch - 69) / 12)


@functools.cache
def pluck(instrument: str, pitch: int, sample_rate: int) -> np.ndarray:
    """Synthesize a note that is not damped: (N,) float64, 3 seconds."""
    string, f0 = STRINGS[instrument], frequency(pitch)
    time = np.arange(3 * sample_rate) / sample_rate
    sound = np.zeros_like(time)
    ring = string.ring * (220 / f0) ** 0.5  # low strings ring longer
    harmonics = range(1, max(2, int(0.45 * sample_rate / f0) + 1))  # all that lie safely below half the sample rate
    for n in harmonics:
        strength = abs(np.sin(np.pi * n * string.plucked_at)) / n**string.dullness
        sound += strength * np.exp(-time * (1 + string.damping * (n - 1)) / ring) * np.sin(2 * np.pi * n * f0 * time)
    rise = np.minimum(time / 0.003, 1.0)  # 3 ms from silence to full: an attack without a click
    return string.level * sound * (0.5 - 0.5 * np.cos(np.pi * rise))


@functools.cache
def shake(sample_rate: int) -> np.ndarray:
    """Synthesize a soft shaker, 60 ms of noise without low frequencies: (N,) float64."""
    noise = np.random.default_rng(7).standard_normal(int(0.06 * sample_rate))
    time = np.arange(len(noise)) / sample_rate
    return np.diff(noise, prepend=0.0) * np.minimum(time / 0.008, 1.0) * np.exp(-time / 0.015)


# ------------------------------------------------------------------------------------------------------ the mix


def render(notes: list[Note], seconds: float, sample_rate: int) -> np.ndarray:
    """Mix the notes to a wav (N,) float32 in [-1, 1], with the same loudness for every tune."""
    wav = np.zeros(round(seconds * sample_rate))
    for note in notes:
        start = round(note.start * sample_rate)
        if note.instrument == "shaker":
            sound = shake(sample_rate)
        else:  # a finger stops the string when the note is over, and the sound dies in 0.1 s
            time = np.arange(round((note.length + 0.1) * sample_rate)) / sample_rate
            sound = pluck(note.instrument, note.pitch, sample_rate)[: len(time)]
            sound = sound * np.clip(1 - (time[: len(sound)] - note.length) / 0.1, 0, 1) ** 2
        stop = min(start + len(sound), len(wav))
        wav[start:stop] += note.loudness * sound[: stop - start]
    fade = round(0.05 * sample_rate)
    wav[-fade:] *= np.linspace(1, 0, fade)
    loudness = np.sqrt(np.mean(wav**2))
    # 0.1 of full scale on average (-20 dB), less where the loudest moment would come close to clipping.
    return (wav * min(0.1 / loudness, 0.9 / np.abs(wav).max())).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- the files


def plan(minutes: float, seed: int) -> Iterator[tuple[str, list[Note], float]]:
    """Yield (file name, notes, seconds) of each tune, up to at least `minutes` in total."""
    total, number = 0.0, 0
    while total < minutes * 60:
        notes, seconds = compose(seed, number)
        yield f"tune-{number:04d}.wav", notes, seconds
        total, number = total + seconds, number + 1


def make(out: Path, minutes: float, sample_rate: int, seed: int) -> tuple[int, float]:
    """Write the corpus and its labels to the folder `out`; return the number of tunes and their seconds.

    Raises:
        AudiogenError: a file can't be written, or `out` holds WAVs that do not belong to this corpus.
    """
    tunes = list(plan(minutes, seed))
    names = {name for name, _, _ in tunes}
    if strangers := sorted(path for path in out.rglob("*.wav") if path.name not in names):
        raise AudiogenError(
            f"{strangers[0]}: not part of this corpus, but training on the folder would include it; "
            "remove it, or choose an empty folder"
        )
    for name, notes, seconds in tunes:
        write_audio(out / name, torch.from_numpy(render(notes, seconds, sample_rate))[None], sample_rate)
    table = io.StringIO(newline="")
    rows = [{"file": name, **labels(notes, seconds)} for name, notes, seconds in tunes]
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(out / "metadata.csv", table.getvalue())
    return len(tunes), sum(seconds for _, _, seconds in tunes)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=12, help="minimum total duration (default: 12)")
    parser.add_argument("--sample-rate", type=int, default=16000, help="in Hz, 4000 to 48000 (default: 16000)")
    parser.add_argument("--seed", type=int, default=0, help="determines the tunes (default: 0)")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 600:
        parser.error("--minutes: choose more than 0 and at most 600")
    if not 4000 <= options.sample_rate <= 48000:
        parser.error("--sample-rate: choose from 4000 to 48000")
    try:
        count, seconds = make(options.out, options.minutes, options.sample_rate, options.seed)
    except AudiogenError as error:
        sys.exit(str(error))
    print(f"{options.out}: {count} tunes, {seconds / 60:.1f} minutes at {options.sample_rate} Hz, seed {options.seed}")


if __name__ == "__main__":
    main()
