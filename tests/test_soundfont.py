"""datasets/soundfont.py: what it says of each file is what the file holds.

A stand-in for FluidSynth, which reads the MIDI file by itself and plays sines, takes the synthesizer's place; so
pitches, onsets and lengths are measured in the files that come out, without a soundfont.
"""

import csv
import importlib.util
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiogen.errors import AudiogenError

SCRIPT = Path(__file__).parent.parent / "datasets" / "soundfont.py"
RATE = 16000

STAND_IN = f"""#!{sys.executable}
import struct, sys
import numpy as np, soundfile
rate, out, midi = int(sys.argv[sys.argv.index("-r") + 1]), sys.argv[sys.argv.index("-F") + 1], sys.argv[-1]
data = open(midi, "rb").read()
assert data[:8] == b"MThd\\0\\0\\0\\6" and struct.unpack(">HHH", data[8:14])[:2] == (0, 1) and data[14:18] == b"MTrk"
division, length = struct.unpack(">H", data[12:14])[0], struct.unpack(">I", data[18:22])[0]
assert len(data) == 22 + length
place, ticks, tempo, sounding, notes = 22, 0, None, {{}}, []
while place < len(data):
    delta = 0
    while True:
        delta, more, place = delta << 7 | data[place] & 127, data[place] & 128, place + 1
        if not more:
            break
    ticks, status = ticks + delta, data[place]
    if status == 0xFF:
        size = data[place + 2]
        if data[place + 1] == 0x51:
            tempo = int.from_bytes(data[place + 3 : place + 3 + size], "big")
        place += 3 + size
        continue
    now, channel, status = ticks * tempo / 1e6 / division, status & 15, status & 0xF0
    if status == 0xC0:
        place += 2
        continue
    pitch, velocity = data[place + 1] + (12 if channel == 9 else 0), data[place + 2]
    if status == 0x90 and velocity:
        assert pitch not in sounding, "a note that sounds already begins again"
        sounding[pitch] = now, velocity
    else:
        start, loud = sounding.pop(pitch)
        notes.append((start, now, pitch, loud))
    place += 3
assert not sounding
wav = np.zeros((round((max(stop for _, stop, _, _ in notes) + 0.2) * rate), 2), np.float32)
for start, stop, pitch, velocity in notes:
    a, b = round(start * rate), round(stop * rate)
    wav[a:b] += (velocity / 127 * 0.2 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * np.arange(b - a) / rate))[:, None]
soundfile.write(out, wav, rate, subtype="FLOAT", format="WAV")
"""  # noqa: E501


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("soundfont", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soundfont"] = module  # a dataclass looks its own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soundfont"]


@pytest.fixture
def stand_in(script, tmp_path, monkeypatch):
    """FluidSynth that plays sines, a score of two voices, and a soundfont that nobody reads."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "fluidsynth").write_text(STAND_IN)
    (tools / "fluidsynth").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    high = [script.Note(float(beat), 1.0, 72 + beat % 5, 80) for beat in range(40)]
    low = [script.Note(2.0 * beat, 2.0, 48 + beat % 3, 80) for beat in range(20)]
    monkeypatch.setattr(script, "chorales", lambda: [Path("bwv1.mxl")])
    monkeypatch.setattr(script, "voices", lambda path: [high, low])
    font = tmp_path / "font.sf2"
    font.touch()
    return font


def pitch_of(wav: np.ndarray) -> float:
    """MIDI number of the strongest frequency."""
    spectrum = np.abs(np.fft.rfft(wav * np.hanning(len(wav)), 2**18))
    return 69 + 12 * np.log2(spectrum.argmax() * RATE / 2**18 / 440)


def test_labels_say_what_the_files_hold(script, stand_in, tmp_path):
    """Guards against labels of the neighbouring file, notes cut off or late, and tunes at another tempo than they
    say."""
    out = tmp_path / "out"
    arguments = [str(out), "--minutes", "0.8", "--programs", "40,73", "--sample-rate", str(RATE)]
    script.main([*arguments, "--soundfont", str(stand_in)])
    rows = list(csv.DictReader(open(out / "metadata.csv", newline="")))
    assert sorted(row["file"] for row in rows) == sorted(path.name for path in out.glob("*.wav"))
    assert {row["instrument"] for row in rows} == {"violin", "flute"}
    assert {row["kind"] for row in rows} == {"note", "tune"}
    for row in rows:
        wav, rate = soundfile.read(out / row["file"])
        assert rate == RATE and wav.shape[1] == 2 and 0 < np.abs(wav).max() <= 0.91
        wav = wav[:, 0]
        if row["kind"] == "note":
            assert np.abs(wav[: RATE // 100]).max() > 0.02, "begins at once"
            assert np.abs(wav[-RATE // 4 :]).max() < 1e-3, "and ends"
            assert abs(pitch_of(wav[: RATE // 4]) - int(row["pitch"])) < 0.2
            assert not row["tempo"] and not row["score"]
        else:
            assert row["score"] == "bwv1" and not row["pitch"]
            quarter = 60 / int(row["tempo"])
            # At every quarter note (in the score, each begins one) the sound changes: 5 % of it is a rest.
            for beat in range(1, int(8 / quarter) - 1):
                rest = wav[round((beat - 0.04) * quarter * RATE) : round((beat - 0.01) * quarter * RATE)]
                note = wav[round((beat + 0.02) * quarter * RATE) : round((beat + 0.5) * quarter * RATE)]
                assert np.abs(note).max() > 1.2 * np.abs(rest).max()


def test_drum_kits_are_played_on_their_channel_and_end(script, stand_in, tmp_path, monkeypatch):
    """The stand-in plays channel 10 an octave higher. Guards against kits that sound as a piano, and hits that are
    followed by seconds of silence."""
    monkeypatch.setattr(script, "KITS", {25: "tr_808"})
    monkeypatch.setattr(script, "DRUMS", ["acoustic_bass_drum", "bass_drum"])
    out = tmp_path / "out"
    script.make(out, [0], 0.01, RATE, 0, stand_in, drums=True)
    rows = [row for row in csv.DictReader(open(out / "metadata.csv", newline="")) if row["kind"] == "hit"]
    assert [row["pitch"] for row in rows] == 4 * ["35"] + 4 * ["36"] and {row["family"] for row in rows} == {"tr_808"}
    assert len({row["velocity"] for row in rows}) > 4
    for row in rows:
        wav = soundfile.read(out / row["file"])[0][:, 0]
        assert 1.0 < len(wav) / RATE < 1.1
        assert abs(pitch_of(wav[: RATE // 2]) - 12 - int(row["pitch"])) < 0.3


def test_notes_that_overlap_are_told_apart(script, stand_in):
    """Guards against a pitch that ends with the first of two voices that sing it, and a note that is cut by its own
    repeat."""
    take = script.Take(
        "tune",
        script.separate([script.Note(0.0, 1.0, 60, 80), script.Note(0.5, 1.0, 60, 90), script.Note(0.0, 0.5, 64, 80)]),
        2.0,
        {},
    )
    assert take.notes == (script.Note(0.0, 0.5, 60, 80), script.Note(0.0, 0.5, 64, 80), script.Note(0.5, 1.0, 60, 90))
    (wav,) = script.render(40, [take], RATE, stand_in)
    assert wav.shape == (2, 2 * RATE)


def test_the_same_seed_gives_the_same_takes(script, stand_in):
    """Guards against draws that depend on what was drawn before for other instruments."""
    plans = [script.plan(script.INSTRUMENTS[73], 30, [Path("bwv1.mxl")], seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_the_instruments_are_those_of_general_midi(script):
    """The standard's program numbers (counted from 0 here) of one instrument of each family are the oracle."""
    names = [instrument.name for instrument in script.INSTRUMENTS]
    assert len(set(names)) == 128
    known = {0: "acoustic_grand_piano", 9: "glockenspiel", 19: "church_organ", 24: "acoustic_guitar_nylon",
             33: "electric_bass_finger", 40: "violin", 52: "choir_aahs", 56: "trumpet", 71: "clarinet", 73: "flute",
             81: "synth_lead_sawtooth", 89: "synth_pad_warm", 96: "synth_effects_rain", 104: "sitar",
             114: "steel_drums", 127: "gunshot"}  # fmt: skip
    assert {program: names[program] for program in known} == known
    assert [instrument.program for instrument in script.INSTRUMENTS] == list(range(128))


@pytest.mark.parametrize(
    "number, expected", [(0, "00"), (127, "7f"), (128, "8100"), (0x3FFF, "ff7f"), (0x4000, "818000")]
)
def test_variable_length_quantities(script, number, expected):
    """The examples of the Standard MIDI Files specification are the oracle."""
    assert script.variable_length(number).hex() == expected


def test_what_is_missing_is_named(script, stand_in, tmp_path, monkeypatch):
    """Guards against a traceback where one line and a command would do."""
    with pytest.raises(AudiogenError, match="apt-get install fluid-soundfont-gm"):
        script.make(tmp_path / "out", [0], 1, RATE, 0, tmp_path / "nothing.sf2")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudiogenError, match="apt-get install fluidsynth"):
        script.make(tmp_path / "out", [0], 0.1, RATE, 0, stand_in)
    with pytest.raises(SystemExit):
        script.main([str(tmp_path), "--programs", "128"])


@pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not Path("/usr/share/sounds/sf2/FluidR3_GM.sf2").exists(),
    reason="needs fluidsynth and fluid-soundfont-gm",
)
def test_a_flute_is_in_tune(script):
    """The real synthesizer, where there is one. Guards against options that it does not know, and takes cut out of
    place."""
    rng = random.Random(0)
    takes = [script.note_take(script.INSTRUMENTS[73], rng) for _ in range(2)]
    for take, wav in zip(takes, script.render(73, takes, RATE, script.SOUNDFONT), strict=True):
        heard = pitch_of(wav[0, RATE // 10 : RATE // 10 + RATE // 4].numpy())
        assert min(abs(heard - take.labels["pitch"]), abs(heard - 12 - take.labels["pitch"])) < 0.3
