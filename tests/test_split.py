"""The split by files, and the sound of its training side."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import folder_of_noise, noise, write_wav

from audiogen.audio.io import read_audio
from audiogen.data import FileEntry, Index, Part, scan, split, training_wavs
from audiogen.errors import DataError
from audiogen.frontends import Mel


def made_up(tmp_path, number, seconds=1.0):
    files = [
        FileEntry(f"{i}.wav", f"{i * 7919 % 10007:064x}", 8000, 1, round(8000 * seconds), 0.5, 0.1, False, 0.0)
        for i in range(number)
    ]
    return Index(tmp_path, files, [])


def hashes(parts):
    return [part.file.sha256 for part in parts]


def test_content_alone_decides(tmp_path):
    """Guards against a split by name, by order or by the folder's path, and a training order that follows names."""
    folder_of_noise(tmp_path / "a", list(range(300, 330)))
    (tmp_path / "b").mkdir()
    for number in range(30):
        shutil.copy(tmp_path / "a" / f"{number:02d}.wav", tmp_path / "b" / f"{number * 17 % 30:02d} renamed.wav")
    one, other = split(scan(tmp_path / "a")), split(scan(tmp_path / "b"))
    assert hashes(one.train) == hashes(other.train)
    assert hashes(one.held_out) == hashes(other.held_out)
    assert len(one.held_out) == 3 and len(one.train) == 27 and one.note == ""
    assert not set(hashes(one.train)) & set(hashes(one.held_out))
    assert "27 files" in one.summary and "3 (" in one.summary


@pytest.mark.parametrize(
    "number, fraction, expected",
    [(2, 0.1, 1), (2, 0.9, 1), (3, 0.001, 1), (3, 0.999, 2), (10, 0.1, 1), (25, 0.2, 5), (1000, 0.1, 100)],
)
def test_each_side_has_a_file(tmp_path, number, fraction, expected):
    sides = split(made_up(tmp_path, number), fraction)
    assert (len(sides.held_out), len(sides.train)) == (expected, number - expected)


def test_one_more_file_moves_at_most_one_other_across(tmp_path):
    """Guards against a shuffle, after which a model that goes on training has heard what is held out."""
    index = made_up(tmp_path, 60)
    for count in range(2, 60):
        before = set(hashes(split(replace(index, files=index.files[:count])).held_out))
        after = set(hashes(split(replace(index, files=index.files[: count + 1])).held_out))
        assert len(before - after) <= 1 and len(after - before) <= 1


def test_one_long_file_is_cut_with_a_gap(tmp_path):
    """Guards against a gap that rounding eats, and a split that does not say what it did."""
    index = made_up(tmp_path, 1, seconds=100)
    sides = split(index, 0.1, gap_seconds=2.5)
    (train,), (held_out,) = sides.train, sides.held_out
    assert train.seconds == pytest.approx(87.5) and held_out.seconds == pytest.approx(10)
    assert "one file only" in sides.note and "10%" in sides.note and "2.5 s" in sides.note
    assert sides.note in sides.summary
    for num_frames in (7, 999, 1000, 12_345, 800_000):
        (first, end), (held_first, held_end) = train.span(num_frames), held_out.span(num_frames)
        assert first == 0 and held_end == num_frames
        assert held_first - end >= 0.025 * num_frames - 1e-6
        assert held_end - held_first >= 0.1 * num_frames - 1


@pytest.mark.parametrize(("seconds", "gap"), [(100, 10), (30, 3), (1000, 10)])
def test_a_model_that_hears_back_without_bound_gets_a_gap_all_the_same(tmp_path, seconds, gap):
    """Guards against a recurrent model that can never be trained on a single long file, since it asks for an infinite
    gap."""
    sides = split(made_up(tmp_path, 1, seconds=seconds), 0.1, gap_seconds=math.inf)
    (train,), (held_out,) = sides.train, sides.held_out
    assert train.seconds == pytest.approx(0.9 * seconds - gap) and held_out.seconds == pytest.approx(0.1 * seconds)
    assert f"gap of {gap} s, though this model's receptive field is unbounded" in sides.summary


def test_too_little_says_what_would_do(tmp_path):
    with pytest.raises(DataError, match="add a second file, or use one of 1 s or more"):
        split(made_up(tmp_path, 1, seconds=0.5))
    with pytest.raises(DataError, match=r"one of 11\.2.* s or more"):
        split(made_up(tmp_path, 1, seconds=11), gap_seconds=10)
    split(made_up(tmp_path, 1, seconds=11.3), gap_seconds=10)  # what the message asked for
    with pytest.raises(DataError, match="none of its 0 sound files"):
        split(made_up(tmp_path, 0))


def test_training_wavs_are_the_files_of_the_parts(tmp_path):
    """Guards against a generator that the second pass finds empty, another rate, files that are held out."""
    folder_of_noise(tmp_path, [2000, 3001, 800], sample_rate=8000)
    index = scan(tmp_path)
    sides = split(index)
    wavs = training_wavs(index, sides.train, 6000)
    expected = [read_audio(tmp_path / part.file.path, 6000) for part in sides.train]
    for _ in range(2):
        found = list(wavs)
        assert len(found) == len(expected) == 2
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("sample_rate", [1000, 1600])
def test_training_wavs_of_a_piece(tmp_path, sample_rate):
    """Guards against held-out sound in what a front-end is fitted on, at the file's rate and at another one."""
    samples = noise(0, 200_000)
    write_wav(tmp_path / "x.wav", samples, 1000)  # 200 s: several pieces of a minute
    index = scan(tmp_path)
    sides = split(index, gap_seconds=1.0)
    pieces = list(training_wavs(index, sides.train, sample_rate))
    assert len(pieces) >= 3 and max(piece.shape[1] for piece in pieces) <= 61 * sample_rate
    heard = torch.cat(pieces, dim=1)
    whole = read_audio(tmp_path / "x.wav", sample_rate)
    assert heard.shape[1] == round(179 * sample_rate)  # 0.9 of 200 s, less the gap
    assert torch.equal(heard, whole[:, : heard.shape[1]])
    end = list(training_wavs(index, sides.held_out, sample_rate))
    assert torch.equal(torch.cat(end, dim=1), whole[:, 180 * sample_rate :])
    middle = list(training_wavs(index, [Part(index.files[0], 0.35, 0.4)], sample_rate))
    assert torch.equal(torch.cat(middle, dim=1), whole[:, 70 * sample_rate : 80 * sample_rate])


def test_a_front_end_fitted_on_them_knows_nothing_of_what_is_held_out(tmp_path):
    """Guards against statistics of the whole file. What is held out changes from noise to a loud tone, the fit must
    not."""
    samples = noise(0, 40_000)
    fingerprints = []
    for end in (samples[36_000:], 0.9 * np.sin(np.arange(4000))):
        write_wav(tmp_path / "x.wav", np.concatenate([samples[:36_000], end]), 4000)
        index = scan(tmp_path)
        frontend = Mel(Mel.Config(sample_rate=4000, num_features=8))
        frontend.fit(training_wavs(index, split(index, gap_seconds=0.1).train, 4000))
        fingerprints.append(frontend.fingerprint())
    assert fingerprints[0] == fingerprints[1]
