"""Judges of labels: what they hear, and that they only learn from training files."""

import json
import math

import numpy as np
import pytest
import torch
from corpus import tiny_settings
from folders import write_wav
from listening import Page

from audiogen.audio.io import read_audio
from audiogen.commands.train import train
from audiogen.errors import DataError
from audiogen.evaluation import heard
from audiogen.evaluation.heard import heard_as_asked, interval, judge_of, tally
from audiogen.evaluation.judges import train_judge
from audiogen.evaluation.report import evaluate_folder
from audiogen.evaluation.wording import heard_tables
from audiogen.runs.run import load_run

RATE = 8000
TIMBRES = ("sine", "Square")


def tone(timbre, seed, seconds=0.4):
    """A tone (1, N) of any pitch, level and beginning."""
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * rng.uniform(200, 600) * np.arange(round(seconds * RATE)) / RATE)
    wave = np.sign(wave) if timbre == "Square" else wave
    begin = np.zeros(rng.integers(400))
    return torch.from_numpy(np.concatenate([begin, rng.uniform(0.05, 0.5) * wave])).float()[None]


def tones(seeds):
    return [(tone(TIMBRES[seed % 2], seed), {"timbre": TIMBRES[seed % 2].lower()}) for seed in seeds]


def accuracy(judge, sounds):
    return np.mean([judge.hear(wav)["timbre"].lower() == row["timbre"] for wav, row in sounds])


def test_a_judge_tells_timbres_apart_whatever_the_pitch_and_the_level():
    """Guards against a judge that hears loudness or the beginning instead of the sound, or that ignores its labels."""
    judge, held_out = train_judge(tones(range(64)), {"timbre": TIMBRES}, RATE), tones(range(100, 160))
    assert accuracy(judge, held_out) > 0.9
    assert accuracy(judge, [(0.1 * wav, row) for wav, row in held_out]) > 0.9
    # A long sound is judged window by window.
    assert judge.hear(tone("Square", 3, seconds=3))["timbre"] == "Square"
    shuffled = [(wav, {"timbre": TIMBRES[i % 4 // 2]}) for i, (wav, _) in enumerate(tones(range(64)))]
    assert 0.25 < accuracy(train_judge(shuffled, {"timbre": TIMBRES}, RATE), held_out) < 0.75


def test_a_judge_is_the_same_each_time():
    """Guards against a judge that depends on draws made before, or that changes those made after."""
    sounds, wav, judges = tones(range(12)), tone("sine", 5)[None, :, :3000][0], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        judges.append(train_judge(sounds, {"timbre": TIMBRES}, RATE))
        drawn = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(drawn, torch.rand(1))
    one, two = (judge.state_dict() for judge in judges)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert judges[0].hear(wav) == judges[1].hear(wav)
    with pytest.raises(DataError, match="no training sound"):
        train_judge([], {"timbre": TIMBRES}, RATE)


def test_missing_and_unknown_labels_are_skipped():
    """Guards against a sound without a label that counts as one of the first value."""
    sounds = [
        (wav, row if i % 3 else {"timbre": "unknown"} if i % 2 else {}) for i, (wav, row) in enumerate(tones(range(96)))
    ]
    assert accuracy(train_judge(sounds, {"timbre": TIMBRES}, RATE), tones(range(100, 140))) > 0.9


def test_counts_equal_those_made_by_hand():
    """Guards against shares of all sounds in the place of those of one value, and values counted in two spellings."""
    found = tally([("A", "a"), ("a", "b"), ("a", "b"), ("b", "b"), ("d", "a")], ("a", "b", "c"))
    assert (found["n"], found["right"]) == (4, 0.5)
    assert found["values"]["a"] == {"n": 3, "right": pytest.approx(1 / 3), "mistaken": "b"}
    assert found["values"]["b"] == {"n": 1, "right": 1.0, "mistaken": None}
    assert found["values"]["c"] == {"n": 0, "right": None, "mistaken": None}
    assert found["spread"] == pytest.approx(2 ** (-0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)))
    assert tally([], ("a", "b"))["right"] is None
    # Agresti and Coull 1998: of 10 trials none succeeds.
    assert interval(0, 10) == (pytest.approx(0, abs=1e-12), pytest.approx(0.2775, abs=1e-3))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder of tones, and a run of two steps on it."""
    folder = tmp_path_factory.mktemp("tones")
    for seed in range(40):
        write_wav(folder / TIMBRES[seed % 2] / f"{seed}.wav", tone(TIMBRES[seed % 2], seed)[0].numpy(), RATE)
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("mel").items()]
    small = ["backbone.dim=8", "training.crop_frames=16", "training.sample_seconds=0.05", "data.held_out=0.4"]
    return folder, train(folder, folder.parent / "run", "mel", "gru", steps=2, overrides=[*settings, *small])


def test_evaluation_says_what_is_heard(labelled, monkeypatch):
    """Guards against a judge that saw the held-out files: with their labels exchanged, it must be wrong about them. And
    against held-out files of one folder alone, if there are many."""
    folder, run = labelled
    found = evaluate_folder(run, folder, generate=4)
    json.dumps(found, allow_nan=False)
    monkeypatch.setattr(heard, "MOST_HELD_OUT", 10)
    some = evaluate_folder(run, folder, generate=1)["heard"]["folder"]["held_out"]
    assert some["n"] == 10 and all(row["n"] > 1 for row in some["values"].values())
    monkeypatch.undo()
    sets = found["heard"]["folder"]
    assert sets["generated"]["n"] == 4 and sets["held_out"]["n"] == sets["round_trips"]["n"] == 16
    assert sets["held_out"]["right"] > 0.8
    (title, header, rows), *others = heard_tables(found)
    assert not others and title.startswith("folder") and rows[-1][0] == "all" and len(rows[0]) == len(header)
    assert heard_tables(evaluate_folder(run, folder)) == []

    exchanged = dict(zip(TIMBRES, TIMBRES[::-1], strict=True))
    path = run.folder / "conditions.json"
    before = path.read_text()
    values = json.loads(before)
    for part in run.split().held_out:
        row = values["files"][part.file.sha256]
        row["folder"] = exchanged[row["folder"]]
    path.write_text(json.dumps(values))
    try:
        found = evaluate_folder(load_run(run.folder), folder, generate=1)
        assert found["heard"]["folder"]["held_out"]["right"] < 0.2
    finally:
        path.write_text(before)


def test_without_the_recordings_a_judge_learns_from_the_training_codes(labelled, tmp_path):
    """Guards against a report that needs the folder of the training files."""
    _, run = labelled
    for seed in range(200, 212):
        write_wav(tmp_path / TIMBRES[seed % 2] / f"{seed}.wav", tone(TIMBRES[seed % 2], seed)[0].numpy(), RATE)
    sets = evaluate_folder(run, tmp_path, generate=1)["heard"]["folder"]
    assert sets["held_out"]["n"] == 12 and sets["round_trips"]["right"] > 0.5


def test_a_sound_is_compared_with_its_own_label(labelled):
    """Guards against labels that are assigned to other sounds, and right answers counted as wrong."""
    _, run = labelled
    judge = judge_of(run, [(wav, {"folder": row["timbre"]}) for wav, row in tones(range(64))])
    made = [(tone("Square", 301), {"folder": "Square"})] * 3 + [(tone("Square", 303), {"folder": "sine"})]
    found = heard_as_asked(judge, run, made, [])["folder"]
    assert found["generated"]["values"]["Square"] == {"n": 3, "right": 1.0, "mistaken": None}
    assert found["generated"]["values"]["sine"] == {"n": 1, "right": 0.0, "mistaken": "Square"}
    assert found["held_out"]["n"] == 0


def test_the_page_shows_takes_of_each_label_with_what_is_heard(labelled):
    """Guards against takes that differ by more than the label, cells in another order, and mistakes that are not
    marked."""
    _, run = labelled
    samples = run.folder / "samples"
    notes = [json.loads(path.read_text()) for path in sorted(samples.glob("asked-*.json"))]
    assert [(one["conditions"]["folder"], one["seed"]) for one in notes] == [
        (value, seed) for value in ("sine", "Square") for seed in range(3)
    ]
    assert all(one["varied"] == "folder" and set(one["heard"]) == {"folder"} for one in notes)
    # A request of one sound by itself gives the same sound.
    made = run.request_with_end([1], conditions={"folder": "Square"})[0]
    again = run.generate_request(0.05, made).x[0]
    kept = read_audio(samples / "asked-01-1.wav")
    length = min(again.shape[1], kept.shape[1]) // 2  # Griffin-Lim hears the end of the clip
    assert torch.allclose(kept[:, :length], again[:, :length], atol=1e-3)

    marked = [one for one in notes if one["heard"]["folder"] != one["conditions"]["folder"]]
    page = Page(run.folder / "index.html")
    shown = page.texts["asked-and-heard"]
    assert [text for text in shown if text in TIMBRES] == ["sine"] * 3 + ["Square"] * 3
    assert sum(text.startswith("Heard as folder") for text in shown) == len(marked)
    assert shown.count("Heard as asked") == 6 - len(marked) and 0 < len(marked) < 6
    assert any(text.startswith("What is heard is said by a small classifier") for text in shown)
    assert len([sound for sound in page.sounds() if sound == (samples / "asked-00-2.wav").read_bytes()]) == 1
