"""How well a melody is followed: between another's melody and the recordings' own."""

import json

import numpy as np
import pytest
import torch
from corpus import tiny_settings
from folders import write_wav

from audiogen.commands.train import train
from audiogen.evaluation.melody import followed, melodies_followed
from audiogen.evaluation.report import evaluate_folder
from audiogen.evaluation.wording import report_rows

RATE = 8000


def tune(seed, seconds=1.5):
    """Notes of a third of a second each, (1, N)."""
    pitches = np.random.default_rng(seed).integers(60, 72, round(3 * seconds))
    t = np.arange(RATE // 3) / RATE
    notes = [0.3 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * t) for pitch in pitches]
    return torch.from_numpy(np.concatenate(notes)).float()[None]


def one_hot(*places):
    """A melody (12, T); None is a frame without a pitch."""
    x = torch.zeros(12, len(places))
    for t, place in enumerate(places):
        if place is not None:
            x[place, t] = 1
    return x


def test_the_cosine_is_that_of_the_frames_with_a_pitch():
    """Guards against silence that counts as followed, ends that are left out, and a floor that contains the melodies
    themselves."""
    asked = [one_hot(0, 0, None, 1), one_hot(2, 2)]
    heard = [one_hot(0, 3, 5), one_hot(2, 0, 0)]
    found = followed(asked, heard)
    assert found["value"] == pytest.approx(2 / 5)  # 1 of 3 frames and 1 of 2
    assert found["shuffled"] == pytest.approx(1 / 5)  # 1 of 3 (the second frame), and none of 2
    assert found["low"] <= found["value"] <= found["high"]
    soft = torch.tensor([3.0, 4.0] + 10 * [0.0])[:, None]
    assert followed([one_hot(0), one_hot(1)], [soft, soft])["value"] == pytest.approx((0.6 + 0.8) / 2)
    assert followed(asked[:1], heard[:1]) is None and followed([one_hot(None)] * 2, heard) is None


def test_a_run_that_plays_what_it_is_asked_for_is_at_the_ceiling(tmp_path, monkeypatch):
    """Guards against melodies compared with those of other clips, and with labels in the place of sound."""
    for seed in range(10):
        write_wav(tmp_path / "tunes" / f"{seed}.wav", tune(seed)[0].numpy(), RATE)
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings("mulaw").items()]
    settings += ["backbone.dim=8", "training.crop_frames=16", "training.sample_seconds=0.05", "data.held_out=0.4"]
    folder = tmp_path / "tunes"
    run = train(folder, tmp_path / "run", "mulaw", "gru", steps=2, overrides=settings, condition=["melody"])
    tunes = [tune(seed, 4 / 3) for seed in range(20, 25)]
    untrained = melodies_followed(run, tunes, 2)
    assert untrained["num"] == 2 and untrained["generated"]["value"] < 0.4
    assert untrained["round_trips"]["value"] > 0.8 > untrained["round_trips"]["shuffled"] + 0.4
    assert melodies_followed(run, [tunes[0][:, :100]], 5) is None

    def play(seconds, seeds, conditions=None):
        if conditions is None:
            return 0.1 * torch.randn(len(seeds), 1, round(seconds * RATE), generator=torch.Generator().manual_seed(0))
        return torch.stack([wav[0] for wav in conditions["melody"]])

    monkeypatch.setattr(run, "generate", play)
    found = evaluate_folder(run, folder, generate=3)
    json.dumps(found, allow_nan=False)
    assert found["melody"]["num"] == 3 and found["melody"]["generated"]["value"] == pytest.approx(1)
    assert found["melody"]["generated"]["shuffled"] < 0.35
    assert any(name.startswith("melody of 3 clips") for name, _ in report_rows(found))
