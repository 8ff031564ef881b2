"""What is said of generated sound: distances, brightness, level, pulse, copies."""

import json

import pytest
import torch
from corpus import folder_of_notes, tiny_settings

from audiogen.commands.train import train
from audiogen.evaluation.distribution import log_mel_statistics
from audiogen.evaluation.generated import (
    _seconds,
    centroid,
    change,
    copies_among,
    judge_generated,
    level,
    pulse,
    silence,
)
from audiogen.evaluation.report import evaluate_folder
from audiogen.evaluation.wording import report_rows


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_copies_are_found_and_new_sound_is_not_called_one():
    """Guards against a threshold of its own: what counts is how near other recordings of the same source come."""
    training, held_out, new = noise(400, 50), noise(100, 50, seed=1), noise(100, 50, seed=2)
    copied = training[:100] + 0.05 * noise(100, 50, seed=3)
    found = copies_among(copied, held_out, training)
    assert found["nearer"] == 1.0 and found["low"] > 0.9 and found["generated"] < 0.2 * found["held_out"]
    fresh = copies_among(new, held_out, training)
    assert fresh["nearer"] < 0.2 and fresh["low"] < 0.05
    assert copies_among(new[:0], held_out, training) is None


def test_nearest_seconds_equal_a_slow_loop():
    """Guards against a distance summed over the wrong axis, or to the wrong set."""
    made, held_out, training = noise(5, 7), noise(6, 7, seed=1), noise(9, 7, seed=2)
    slow = [min(float((x - y).abs().mean()) for y in training) for x in made]
    assert copies_among(made, held_out, training)["generated"] == pytest.approx(sorted(slow)[2], rel=1e-5)


def test_seconds_are_cut_at_all_shifts():
    """Guards against shifts that are left out, in which a copy would hide."""
    bands = torch.arange(27.0).expand(32, -1)
    assert _seconds([bands], 1)[:, 0].tolist() == [0.0, 1.0, 2.0]
    assert len(_seconds([bands], 25)) == 1
    one_shot = _seconds([bands[:, :2]], 1)[0].view(32, 25)
    assert one_shot[0].tolist() == [0.0] + 24 * [1.0]


def test_the_centroid_is_that_of_a_tone_and_silence_is_its_share():
    """Guards against a centroid of amplitudes, in bins, or of silent windows."""
    time = torch.arange(16000) / 16000
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * time)[None]
    half = torch.cat([tone, torch.zeros(1, 16000)], dim=1)
    for value in centroid([half], 16000):
        assert value == pytest.approx(1000, rel=0.02)
    assert silence([half], 16000) == pytest.approx(0.5) and silence([tone], 16000) == 0
    assert centroid([torch.zeros(1, 100)], 16000) == (0.0, 0.0, 0.0)


def test_the_level_is_that_of_a_tone_and_sound_that_changes_has_change():
    """Guards against a mean of decibels, which silence would pull down, and a change of waves instead of levels."""
    time = torch.arange(16000) / 16000
    tone = torch.sin(2 * torch.pi * 1000 * time)[None]
    assert level([tone]) == pytest.approx(0, abs=0.01) and level([0.1 * tone]) == pytest.approx(-20, abs=0.01)
    assert level([tone, torch.zeros(1, 16000)]) == pytest.approx(-3.01, abs=0.01)
    wav = noise(1, 16000)
    steps = torch.where(time < 0.5, 1.0, 0.01) * wav  # half of a second 40 dB lower: a deviation of 20 dB
    changes, steady, quiet, short = (
        change(log_mel_statistics([x], 16000)) for x in (steps, wav, 0.01 * wav, wav[:, :8000])
    )
    assert changes == pytest.approx(20, rel=0.15)
    assert steady < 7 and quiet == pytest.approx(steady, abs=0.1)
    assert short is None


def test_a_steady_beat_has_a_pulse_and_random_onsets_have_none():
    """Guards against a pulse of silence, of the wrong lags, or of loudness alone: clicks twice a second stand far above
    as many clicks at random times, at any level and rate."""
    for rate in (8000, 44100):
        wav, anywhere = torch.zeros(1, 4 * rate), torch.zeros(1, 4 * rate)
        decay = torch.exp(-torch.arange(rate // 10) / (0.01 * rate)) * noise(rate // 10)
        for beat, place in zip(range(8), torch.rand(8, generator=torch.Generator().manual_seed(3)), strict=True):
            for sound, begin in ((wav, beat * rate // 2), (anywhere, int(3.8 * rate * place))):
                sound[:, begin : begin + len(decay)] += decay
        low, steady, high = pulse([wav], rate)
        assert low == steady == high > 0.6
        assert pulse([0.1 * wav], rate)[1] == pytest.approx(steady, abs=0.05)
        assert pulse([anywhere], rate)[1] < steady - 0.3
    assert pulse([torch.zeros(1, 4 * 8000)], 8000) is None and pulse([wav[:, :8000]], 8000) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of_notes(tmp_path_factory.mktemp("notes"), [20_000] * 8)


@pytest.mark.parametrize("kind", ["mel", "melvq"])
def test_a_run_is_judged_beside_its_recordings(tmp_path, folder, kind):
    """Guards against sound compared at another rate, a floor or a ceiling that is left out, and JSON that is none."""
    settings = [f"frontend.{name}={value}" for name, value in tiny_settings(kind).items()]
    small = ["backbone.dim=8", "training.crop_frames=16", "training.sample_seconds=0.05", "data.held_out=0.4"]
    run = train(folder, tmp_path / "run", kind, "gru", steps=2, overrides=[*settings, *small])
    found = evaluate_folder(run, folder, generate=2)
    json.dumps(found, allow_nan=False)
    made = found["generated"]
    assert set(made["kad"]) == {"generated", "training", "noise", "backwards"} == set(made["frechet"])
    # An untrained model is no nearer to the recordings than the training recordings are.
    assert made["kad"]["training"]["value"] < made["kad"]["generated"]["value"]
    rows = dict(report_rows(found))
    assert "2 generated clips: KAD x 1000 to the recordings" in rows
    # Training measures four files, `evaluate` at most 16, and with `generate` all of them: one name for each.
    assert f"round trip of {found['files']} files: mel distance (0 is perfect)" in rows
    assert any("closer to training" in name for name in rows)
    assert "recordings" in rows["level"] and "recordings" in rows["change of a band's level within a second"]
    assert judge_generated(run, [], [torch.zeros(1, 100)], None)["kad"] is None
    assert "generated" not in evaluate_folder(run, folder)
