"""datasets/synthetic.py: in tune, in time, no clipping, and the same bytes for the same seed.

The corpus is measured by means that share nothing with the script that makes it: periods by autocorrelation,
frequencies by FFT peaks, attacks by energy, bytes by SHA-256.
"""

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).parent.parent / "datasets" / "synthetic.py"
RATE = 16000


@pytest.fixture(scope="module")
def corpus(synthetic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.main([str(folder), "--minutes", "2", "--seed", "3"])
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.wav"))}


def equal_tempered(pitch: int) -> float:
    """Hz of a MIDI number, by counting semitones from A4 = 440 Hz (independent of the script's own formula)."""
    hertz = 440.0
    for _ in range(abs(pitch - 69)):
        hertz *= 1.0594630943592953 if pitch > 69 else 1 / 1.0594630943592953
    return hertz


def period_by_autocorrelation(wav: np.ndarray, rate: int) -> float:
    """The frequency in Hz of the first high peak of the autocorrelation, refined by a parabola."""
    spectrum = np.fft.rfft(wav, 2 * len(wav))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(wav)] / np.arange(len(wav), 0, -1)
    lags = np.arange(rate // 1000, rate // 50)
    high = [
        lag
        for lag in lags
        if correlation[lag - 1] < correlation[lag] >= correlation[lag + 1]
        and correlation[lag] > 0.9 * correlation[lags].max()
    ]
    a, b, c = correlation[high[0] - 1 : high[0] + 2]
    return rate / (high[0] + 0.5 * (a - c) / (a - 2 * b + c))


@pytest.mark.parametrize("instrument", ["guitar", "harp", "bass"])
@pytest.mark.parametrize("pitch", [40, 52, 60, 69, 76])
def test_a_string_is_in_tune(synthetic, instrument, pitch):
    """Guards against a delay line rounded to whole samples, which puts high Karplus-Strong notes 20 cents out of
    tune."""
    wav = synthetic.pluck(instrument, pitch, RATE)[: RATE // 2]
    cents = 1200 * np.log2(period_by_autocorrelation(wav, RATE) / equal_tempered(pitch))
    assert abs(cents) < 3


@pytest.mark.parametrize("instrument", ["guitar", "harp", "bass"])
def test_a_string_is_plucked(synthetic, instrument):
    """It starts at once, dies away, and grows rounder while it does (highs die before lows)."""
    wav = synthetic.pluck(instrument, 60, RATE)
    energy = np.array([np.sum(part**2) for part in np.array_split(wav[: 2 * RATE], 100)])  # 20 ms each
    assert energy.argmax() <= 1
    assert energy[1] > 10 * energy[50] > 10 * energy[99]

    def brightness(part):
        power = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
        return np.sum(power * np.fft.rfftfreq(len(part), 1 / RATE)) / np.sum(power)

    assert brightness(wav[:2000]) > 1.05 * brightness(wav[16000:18000])


def test_the_files_play_the_score(synthetic, corpus):
    """Each long melody note of each file has a spectral peak within 10 cents of where the score puts it,
    and its sound sets in within 10 ms of where the score puts it. Guards against notes written at a rounded beat, a
    tune rendered at another rate than its header says, and a mix that drowns its melody."""
    checked = 0
    for name, notes, seconds in synthetic.plan(2, 3):
        wav, rate = soundfile.read(corpus / name)
        assert rate == RATE and len(wav) == round(seconds * rate)
        melody = [n for n in notes if n.instrument in ("guitar", "harp") and n.loudness >= 0.8 and n.length >= 0.4]
        assert melody
        for note in melody:
            start = round(note.start * rate)
            part = wav[start : start + round(0.4 * rate)]
            power = np.abs(np.fft.rfft(part * np.hanning(len(part)), 16 * len(part)))
            hertz = np.fft.rfftfreq(16 * len(part), 1 / rate)
            near = np.abs(1200 * np.log2(np.maximum(hertz, 1) / equal_tempered(note.pitch))) < 50
            peak = hertz[near][power[near].argmax()]
            assert abs(1200 * np.log2(peak / equal_tempered(note.pitch))) < 10, (name, note)
            assert power[near].max() > 0.05 * power.max(), (name, note)
            checked += 1
            if note.start > 0.1:
                before, after = wav[start - 160 : start], wav[start + 32 : start + 192]
                fresh = np.sum(np.diff(after) ** 2) / np.sum(np.diff(before) ** 2)  # highs mark an attack
                assert fresh > 1.2, (name, note, fresh)
    assert checked > 50


def test_the_score_is_music(synthetic):
    """Melodies keep to the five notes of their key, end at home, and never leave a singer's two octaves; a beat is
    always filled by the bass; tunes differ."""
    tunes = [synthetic.compose(0, number)[0] for number in range(200)]
    assert len({tuple(notes) for notes in tunes}) == len(tunes)
    for notes in tunes:
        melody = [n for n in notes if n.instrument in ("guitar", "harp") and n.loudness >= 0.8]
        bass = [n for n in notes if n.instrument == "bass"]
        assert all(60 <= n.pitch <= 81 for n in melody)
        assert len({n.pitch % 12 for n in melody}) <= 5
        assert all(36 <= n.pitch <= 54 for n in bass)
        assert melody[-1].pitch % 12 == bass[-1].pitch % 12  # both end on the tonic
        ends = [a.start + a.length for a in melody]
        assert all(end <= b.start + 1e-9 for end, b in zip(ends, melody[1:], strict=False))  # one voice


def test_level_and_format(corpus):
    """No clipping, equal loudness, no offset, silence at neither end but a faded last sample; 16-bit mono WAVs of 8 to
    10 seconds, at least as long in sum as asked for, and no more than one file longer."""
    total = 0.0
    for path in sorted(corpus.glob("*.wav")):
        info = soundfile.info(path)
        assert (info.format, info.subtype, info.channels, info.samplerate) == ("WAV", "PCM_16", 1, RATE)
        assert 7.9 < info.duration < 10.1
        total += info.duration
        wav, _ = soundfile.read(path)
        assert np.abs(wav).max() <= 0.9
        assert 0.07 < np.sqrt(np.mean(wav**2)) <= 0.101
        assert abs(wav.mean()) < 1e-3
        assert wav[-1] == 0
        assert np.abs(wav[:RATE]).max() > 0.05
    assert 120 <= total < 131


def test_same_seed_same_bytes(synthetic, corpus, tmp_path):
    """A fresh process, run by path as a user would, gives the very same bytes; a longer corpus begins with the
    shorter one; another seed gives other tunes. Guards against Python's salted hash() as a seed, and a noise generator
    shared by all tunes."""
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "again", "--minutes", "1", "--seed", "3"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "7 tunes" in done.stdout or "8 tunes" in done.stdout
    again, before = hashes(tmp_path / "again"), hashes(corpus)
    assert again.items() <= before.items() and len(again) >= 6
    synthetic.main([str(tmp_path / "other"), "--minutes", "0.5", "--seed", "4"])
    assert not set(hashes(tmp_path / "other").values()) & set(before.values())
    assert len(set(before.values())) == len(before)


def test_labels_say_what_is_heard(synthetic, corpus):
    """The CSV names each tune once; its tempo is that of the file's length (16 beats), and its lead and shaker are
    those of the score. Guards against rows in another order than the tunes, and a lead taken from the chords."""
    with open(corpus / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(path.name for path in corpus.glob("*.wav"))
    plan = {name: notes for name, notes, _ in synthetic.plan(2, 3)}
    assert {row["lead"] for row in rows} == {"guitar", "harp"} and {row["shaker"] for row in rows} == {"yes", "no"}
    for row in rows:
        assert float(row["tempo"]) * soundfile.info(corpus / row["file"]).duration == pytest.approx(60 * 16, rel=1e-3)
        loudest = [note for note in plan[row["file"]] if note.loudness == 1.0]  # the first melody note of a bar
        assert {note.instrument for note in loudest} == {row["lead"]}
        assert (row["shaker"] == "yes") == any(note.instrument == "shaker" for note in plan[row["file"]])


def test_other_sample_rates(synthetic, tmp_path):
    """At 8 kHz as at 44.1 kHz a note has its pitch, and no harmonic folds back at half the rate."""
    for rate in (8000, 44100):
        wav = synthetic.pluck("harp", 81, rate)
        assert abs(1200 * np.log2(period_by_autocorrelation(wav[: rate // 2], rate) / 880)) < 5
        power = np.abs(np.fft.rfft(wav[:rate] * np.hanning(rate))) ** 2
        between = power.copy()
        for n in range(1, int(rate / 2 / 880) + 1):
            between[max(0, 880 * n - 40) : 880 * n + 40] = 0
        assert between.sum() < 1e-4 * power.sum()
    synthetic.main([str(tmp_path), "--minutes", "0.1", "--sample-rate", "8000"])
    assert soundfile.info(next(tmp_path.glob("*.wav"))).samplerate == 8000


def test_wrong_usage(synthetic, tmp_path, capsys):
    """Wrong options exit with 2; a folder with other WAVs is refused in one line, before anything is written."""
    for wrong in (["--minutes", "0"], ["--sample-rate", "10"], ["--minutes", "nan"]):
        with pytest.raises(SystemExit) as error:
            synthetic.main([str(tmp_path), *wrong])
        assert error.value.code == 2
    (tmp_path / "mine.wav").write_bytes(b"")
    with pytest.raises(SystemExit) as error:
        synthetic.main([str(tmp_path), "--minutes", "0.1"])
    assert "mine.wav" in str(error.value.code) and "\n" not in str(error.value.code)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.wav"]
