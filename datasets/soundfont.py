"""The 128 instruments of General MIDI, playing single notes and public-domain scores, with exact labels.

    apt-get install fluidsynth fluid-soundfont-gm       # the synthesizer, and FluidR3 by Frank Wen (MIT licence)
    pip install music21                                 # reads the scores: chorales by J. S. Bach
    python datasets/soundfont.py OUT [--minutes 30] [--programs 0-127] [--drums] [--sample-rate 44100] [--seed 0]

writes OUT/000-acoustic_grand_piano-note-0.wav, ...-tune-0.wav, ... (stereo, 16 bit) and OUT/metadata.csv. It lists for
each file the instrument, its family and General MIDI program; for a note its pitch (a MIDI number, 60 is middle C) and
velocity; for a tune its tempo (quarter notes per minute) and the score. A note lasts up to 2 seconds, a tune about 8. A
tune is the melody of a score, or all its voices, transposed into the range of the instrument. With --drums, each of the
47 sounds of eight drum kits is also played at four velocities: OUT/drums-tr_808-hand_clap-0.wav, with the kit as the
family. A hit ends where it has died away. The same options, soundfont and version of FluidSynth give the same files.

The file reads from top to bottom: the instruments, the scores, the takes (what is played), MIDI, the sound, the files.
"""

import argparse
import csv
import functools
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from audiogen.audio.io import write_audio
from audiogen.errors import AudiogenError
from audiogen.utils.scripts import run_script

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")  # where Debian and Ubuntu have it

# ----------------------------------------------------------------------------------------------------- instruments

# Eight instruments per family, in the order of their program numbers (General MIDI Level 1), after the range of the
# family's tunes in MIDI numbers.
FAMILIES = {
    "piano": (48, 84, "acoustic_grand_piano bright_acoustic_piano electric_grand_piano honky_tonk_piano "
              "electric_piano_1 electric_piano_2 harpsichord clavinet"),
    "chromatic_percussion": (60, 96, "celesta glockenspiel music_box vibraphone marimba xylophone tubular_bells "
                             "dulcimer"),
    "organ": (48, 84, "drawbar_organ percussive_organ rock_organ church_organ reed_organ accordion harmonica "
              "tango_accordion"),
    "guitar": (43, 76, "acoustic_guitar_nylon acoustic_guitar_steel electric_guitar_jazz electric_guitar_clean "
               "electric_guitar_muted overdriven_guitar distortion_guitar guitar_harmonics"),
    "bass": (28, 55, "acoustic_bass electric_bass_finger electric_bass_pick fretless_bass slap_bass_1 slap_bass_2 "
             "synth_bass_1 synth_bass_2"),
    "strings": (43, 84, "violin viola cello contrabass tremolo_strings pizzicato_strings orchestral_harp timpani"),
    "ensemble": (43, 84, "string_ensemble_1 string_ensemble_2 synth_strings_1 synth_strings_2 choir_aahs voice_oohs "
                 "synth_voice orchestra_hit"),
    "brass": (43, 79, "trumpet trombone tuba muted_trumpet french_horn brass_section synth_brass_1 synth_brass_2"),
    "reed": (48, 84, "soprano_sax alto_sax tenor_sax baritone_sax oboe english_horn bassoon clarinet"),
    "pipe": (60, 96, "piccolo flute recorder pan_flute blown_bottle shakuhachi whistle ocarina"),
    "synth_lead": (48, 84, "square sawtooth calliope chiff charang voice fifths bass_and_lead"),
    "synth_pad": (48, 84, "new_age warm polysynth choir bowed metallic halo sweep"),
    "synth_effects": (48, 84, "rain soundtrack crystal atmosphere brightness goblins echoes sci_fi"),
    "ethnic": (48, 84, "sitar banjo shamisen koto kalimba bagpipe fiddle shanai"),
    "percussive": (48, 84, "tinkle_bell agogo steel_drums woodblock taiko_drum melodic_tom synth_drum "
                   "reverse_cymbal"),
    "sound_effects": (48, 72, "guitar_fret_noise breath_noise seashore bird_tweet telephone_ring helicopter applause "
                      "gunshot"),
}  # fmt: skip


@dataclass(frozen=True)
class Instrument:
    """A program of General MIDI: its number (0 to 127), name, family, and the range (MIDI numbers) of its tunes."""

    program: int
    name: str
    family: str
    lowest: int
    highest: int


INSTRUMENTS = [
    Instrument(8 * number + place, f"{family}_{name}" if family.startswith("synth_") else name, family, *ends)
    for number, (family, (*ends, names)) in enumerate(FAMILIES.items())
    for place, name in enumerate(names.split())
]

# Drum kits by program number (Roland GS, which FluidR3 follows); what their keys from 35 on play (General MIDI).
KITS = {0: "standard", 8: "room", 16: "power", 24: "electronic", 25: "tr_808", 32: "jazz", 40: "brush", 48: "orchestra"}
LOWEST_KEY = 35
DRUMS = (
    "acoustic_bass_drum bass_drum side_stick acoustic_snare hand_clap electric_snare low_floor_tom closed_hi_hat "
    "high_floor_tom pedal_hi_hat low_tom open_hi_hat low_mid_tom high_mid_tom crash_cymbal_1 high_tom ride_cymbal_1 "
    "chinese_cymbal ride_bell tambourine splash_cymbal cowbell crash_cymbal_2 vibraslap ride_cymbal_2 high_bongo "
    "low_bongo mute_high_conga open_high_conga low_conga high_timbale low_timbale high_agogo low_agogo cabasa maracas "
    "short_whistle long_whistle short_guiro long_guiro claves high_wood_block low_wood_block mute_cuica open_cuica "
    "mute_triangle open_triangle"
).split()

# ---------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Note:
    """Start and length in quarter notes (of a score) or in seconds (of a take), MIDI number, velocity (1 to 127)."""

    start: float
    length: float
    pitch: int
    velocity: int


@functools.cache
def chorales() -> list[Path]:
    """Return the chorales and other works by J. S. Bach that come with music21, sorted by name."""
    try:
        from music21 import corpus
    except ImportError:
        raise AudiogenError("music21, which reads the scores, is not installed: pip install music21") from None
    return sorted(Path(path) for path in corpus.getComposer("bach") if Path(path).suffix == ".mxl")


@functools.cache
def voices(path: Path) -> list[list[Note]]:
    """Return the voices of a score, the highest first: lists of notes in quarter notes, with ties merged."""
    from music21 import converter

    found = []
    for part in converter.parse(path).parts:
        notes = []
        for event in part.stripTies().flatten().notes:
            pitches = [] if event.duration.isGrace else event.pitches
            notes += [Note(float(event.offset), float(event.quarterLength), pitch.midi, 80) for pitch in pitches]
        if notes:
            found.append(sorted(notes, key=lambda note: (note.start, note.pitch)))
    return found


# ----------------------------------------------------------------------------------------------------------- takes


@dataclass(frozen=True)
class Take:
    """The content of one file: notes in seconds, its duration including the release, and its labels."""

    kind: str  # "note", "tune" or "hit"
    notes: tuple[Note, ...]
    seconds: float
    labels: dict[str, str | int]


def note_take(instrument: Instrument, rng: random.Random) -> Take:
    """Make a take of a single note of 0.3 to 2 seconds, with 0.5 seconds of release."""
    pitch, velocity = rng.randint(instrument.lowest, instrument.highest), rng.randint(40, 120)
    length = round(rng.uniform(0.3, 2.0), 3)
    return Take("note", (Note(0.0, length, pitch, velocity),), length + 0.5, {"pitch": pitch, "velocity": velocity})


def tune_take(instrument: Instrument, path: Path, rng: random.Random, seconds: float = 8.0) -> Take | None:
    """Make a take of `seconds` of a score, from a bar near its beginning: melody or all voices; None if empty."""
    tempo = rng.randrange(60, 161, 4)
    whole = voices(path)
    played = whole[:1] if rng.random() < 0.5 else whole
    first = 4 * rng.randrange(4)
    last = first + seconds * tempo / 60
    notes = [note for voice in played for note in voice if first <= note.start < last]
    if not notes:
        return None
    middle = (min(note.pitch for note in notes) + max(note.pitch for note in notes)) / 2
    shift = 12 * round(((instrument.lowest + instrument.highest) / 2 - middle) / 12) + rng.randint(-3, 3)
    quarter, loudness = 60 / tempo, rng.randint(60, 110)
    return Take(
        "tune",
        separate(
            Note(
                (note.start - first) * quarter,
                min(note.length, last - note.start) * quarter * 0.95,  # so that a note repeated is heard as two
                min(max(note.pitch + shift, 0), 127),
                min(max(loudness + rng.randint(-8, 8), 1), 127),
            )
            for note in notes
        ),
        seconds + 0.5,
        {"tempo": tempo, "voices": len(played), "score": path.stem},
    )


def hit_takes(kit: str, seed: int) -> list[Take]:
    """Make takes of each sound of a drum kit, at a random velocity in each quarter of the range."""
    rng = random.Random(f"{seed} {kit}")
    return [
        Take("hit", (Note(0.0, 1.0, key, velocity),), 4.0, {"instrument": name, "pitch": key, "velocity": velocity})
        for key, name in enumerate(DRUMS, LOWEST_KEY)
        for velocity in (rng.randint(low, low + 21) for low in (40, 62, 84, 106))
    ]


def separate(notes: Iterable[Note]) -> tuple[Note, ...]:
    """Sort notes by time, and end each where the next one of the same pitch begins, as on a piano."""
    found: list[Note] = []
    for note in sorted(notes, key=lambda note: (note.start, note.pitch, note.length)):
        for place, other in enumerate(found):
            if other.pitch == note.pitch and other.start + other.length > note.start:
                found[place] = replace(other, length=note.start - other.start)
        found.append(note)
    return tuple(note for note in found if note.length > 0)


def plan(instrument: Instrument, seconds: float, scores: list[Path], seed: int) -> list[Take]:
    """Plan takes of one instrument of at least `seconds` in total, every third a tune; depends on the seed alone."""
    rng = random.Random(f"{seed} {instrument.program}")
    takes: list[Take] = []
    while sum(take.seconds for take in takes) < seconds:
        take = tune_take(instrument, rng.choice(scores), rng) if len(takes) % 3 == 2 else note_take(instrument, rng)
        if take is not None:
            takes.append(take)
    return takes


# ------------------------------------------------------------------------------------------------------------ MIDI

TICKS = 1000  # a second: a quarter note of 500 ticks lasts half a second


def midi_file(program: int, notes: list[Note], channel: int = 0) -> bytes:
    """Return a Standard MIDI File (format 0) of notes in seconds, played by one program on one channel."""
    events = [(0, 0, bytes([0xC0 | channel, program]))]
    for note in notes:
        start = round(note.start * TICKS)
        stop = max(start + 1, round((note.start + note.length) * TICKS))
        events.append((start, 2, bytes([0x90 | channel, note.pitch, note.velocity])))
        events.append(
            (stop, 1, bytes([0x80 | channel, note.pitch, 0]))
        )  # before a note of the same pitch that begins here
    track, now = b"\x00\xff\x51\x03" + (500_000).to_bytes(3, "big"), 0
    for time, _, event in sorted(events):
        track, now = track + variable_length(time - now) + event, time
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS // 2) + b"MTrk" + struct.pack(">I", len(track)) + track


def variable_length(number: int) -> bytes:
    """Encode MIDI's variable-length quantity: seven bits per byte, the highest bit set in all bytes but the last."""
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F | 0x80)
    return bytes(reversed(digits))


# ----------------------------------------------------------------------------------------------------------- sound

GAP = 1.5  # seconds between takes, for notes to die away
DRUM_CHANNEL = 9  # on which programs are drum kits


def render(program: int, takes: list[Take], sample_rate: int, soundfont: Path, channel: int = 0) -> list[torch.Tensor]:
    """Synthesize takes: wavs (2, N) in [-1, 1], N = round(take.seconds * sample_rate)."""
    starts, notes, now = [], [], 0.0
    for take in takes:
        starts.append(now)
        notes += [Note(now + note.start, note.length, note.pitch, note.velocity) for note in take.notes]
        now += take.seconds + GAP
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "takes.mid", Path(folder) / "takes.wav"
        midi.write_bytes(midi_file(program, notes, channel))
        command = ["fluidsynth", "-ni", "-q", "-r", str(sample_rate), "-g", "0.6", "-T", "wav", "-O", "float",
                   "-F", str(wav), str(soundfont), str(midi)]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except FileNotFoundError:
            raise AudiogenError("fluidsynth is not installed: apt-get install fluidsynth") from None
        if done.returncode or not wav.exists():
            raise AudiogenError(f"fluidsynth failed: {(done.stderr or done.stdout).strip() or done.returncode}")
        sound = torch.from_numpy(soundfile.read(wav, dtype="float32", always_2d=True)[0].T.copy())  # (2, N)
    return [cut(sound, start, take.seconds, sample_rate) for start, take in zip(starts, takes, strict=True)]


def cut(sound: torch.Tensor, start: float, seconds: float, sample_rate: int) -> torch.Tensor:
    """Cut `seconds` out of (C, N), padded with silence, faded out over the last 50 ms, with a peak of at most 0.9."""
    first, count = round(start * sample_rate), round(seconds * sample_rate)
    piece = torch.nn.functional.pad(sound[:, first : first + count], (0, max(0, first + count - sound.shape[1])))
    fade = round(0.05 * sample_rate)
    piece[:, -fade:] *= torch.from_numpy(np.linspace(1, 0, fade, dtype=np.float32))
    return piece * min(1.0, 0.9 / max(float(piece.abs().max()), 1e-9))


def until_silence(wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Cut (C, N) where it has died away: 50 ms after the last sample that is within 60 dB of the peak."""
    size = wav.abs().amax(dim=0)
    heard = (size > 1e-3 * size.max()).nonzero()
    last = int(heard[-1]) if len(heard) else 0
    return cut(wav, 0.0, min(wav.shape[1] / sample_rate, last / sample_rate + 0.05), sample_rate)


# ----------------------------------------------------------------------------------------------------------- files

COLUMNS = ("file", "kind", "instrument", "family", "program", "pitch", "velocity", "tempo", "voices", "score")


def make(
    out: Path, programs: list[int], minutes: float, sample_rate: int, seed: int, soundfont: Path, drums: bool = False
) -> int:
    """Write the corpus and its metadata.csv to the folder `out`; return the number of files.

    Raises:
        AudiogenError: FluidSynth, music21 or the soundfont is missing, or a file can't be written.
    """
    if not soundfont.is_file():
        raise AudiogenError(f"{soundfont}: not found; apt-get install fluid-soundfont-gm, or give --soundfont FILE")
    scores, rows = chorales(), []
    for program in programs:
        instrument = INSTRUMENTS[program]
        takes = plan(instrument, 60 * minutes / len(programs), scores, seed)
        for number, (take, wav) in enumerate(zip(takes, render(program, takes, sample_rate, soundfont), strict=True)):
            name = f"{program:03d}-{instrument.name}-{take.kind}-{number}.wav"
            write_audio(out / name, wav, sample_rate)
            rows.append({"file": name, "kind": take.kind, "instrument": instrument.name, "family": instrument.family,
                         "program": program, **take.labels})  # fmt: skip
        print(f"{instrument.name}: {len(takes)} files")
    for program, kit in KITS.items() if drums else ():
        takes = hit_takes(kit, seed)
        wavs = render(program, takes, sample_rate, soundfont, DRUM_CHANNEL)
        for number, (take, wav) in enumerate(zip(takes, wavs, strict=True)):
            name = f"drums-{kit}-{take.labels['instrument']}-{number % 4}.wav"
            write_audio(out / name, until_silence(wav, sample_rate), sample_rate)
            rows.append({"file": name, "kind": take.kind, "family": kit, "program": program, **take.labels})
        print(f"drum kit {kit}: {len(takes)} files")
    with open(out / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return len(rows)


def program_list(text: str) -> list[int]:
    """Parse a list of programs: '0-7,40' -> [0, 1, ..., 7, 40]."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if not found or not all(0 <= program < len(INSTRUMENTS) for program in found):
        raise ValueError
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=30, help="minimum total duration (default: 30)")
    parser.add_argument("--programs", type=program_list, default="0-127", help="such as 0-7,40 (default: 0-127)")
    parser.add_argument("--drums", action="store_true", help="also play the sounds of eight drum kits")
    parser.add_argument("--sample-rate", type=int, default=44100, help="in Hz, 8000 to 96000 (default: 44100)")
    parser.add_argument("--seed", type=int, default=0, help="determines the notes (default: 0)")
    parser.add_argument("--soundfont", type=Path, default=SOUNDFONT, help="an .sf2 file (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 6000:
        parser.error("--minutes: choose more than 0 and at most 6000")
    if not 8000 <= options.sample_rate <= 96000:
        parser.error("--sample-rate: choose from 8000 to 96000")
    count = make(
        options.out,
        options.programs,
        options.minutes,
        options.sample_rate,
        options.seed,
        options.soundfont,
        options.drums,
    )
    kits = f" and {len(KITS)} drum kits" if options.drums else ""
    print(f"{options.out}: {count} files, {len(options.programs)} instruments{kits} at {options.sample_rate} Hz")


if __name__ == "__main__":
    sys.exit(run_script(main))
