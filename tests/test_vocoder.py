"""The vocoder of the mel front-ends: what it learns, and that it is there wherever the front-end is."""

import math
from copy import deepcopy

import pytest
import torch
from corpus import RATE, TINY_VOCODER, folder_of_notes, note, tiny_frontend, tiny_settings

from audiogen.errors import ConfigError
from audiogen.frontends import load_frontend, save_frontend
from audiogen.training.frontend import train_frontend
from audiogen.training.session import train

KINDS = ["mel", "melvq"]


@pytest.fixture(autouse=True)
def one_second_is_long(monkeypatch):
    monkeypatch.setattr("audiogen.frontends.learning.CROP_SECONDS", 0.2)


def notes(count, num_samples=RATE // 2):
    return [torch.from_numpy(note(seed, num_samples)).float()[None] for seed in range(count)]


def tone(hertz, num_samples=RATE // 2):
    """(1, N)."""
    return 0.2 * torch.sin(2 * math.pi * hertz / RATE * torch.arange(num_samples))[None]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_say_what_the_frames_say(kind):
    """Buries a vocoder that is trained and not used, and one trained on frames that are not those it is given: tones
    that it has not heard must come out one above the other."""
    settings = {**tiny_settings(kind), **TINY_VOCODER, "num_features": 12, "codebook_size": 24, "vocoder_dim": 32}
    if kind == "mel":
        del settings["codebook_size"]
    frontend = load_frontend(kind, **{**settings, "vocoder_steps": 250})
    frontend.fit([tone(hertz) for hertz in range(300, 3600, 150)])
    centres = []
    for hertz in (500, 1700, 3100):
        decoded = frontend.decode(frontend.encode(tone(hertz)[None]))[0, 0, :RATE // 2]
        power = torch.fft.rfft(decoded).abs().square()
        centres.append(float((power * torch.linspace(0, RATE / 2, len(power))).sum() / power.sum()))
    assert centres[0] + 200 < centres[1] < centres[2] - 200


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_codes_are_those_without_a_vocoder(kind):
    """Buries a vocoder that changes what a model is trained on."""
    plain, spoken = tiny_frontend(kind), tiny_frontend(kind, vocoder=True)
    wav = notes(9)[-1][None]
    assert torch.equal(plain.encode(wav), spoken.encode(wav))
    assert plain.fingerprint() != spoken.fingerprint()
    assert not torch.equal(plain.decode(plain.encode(wav)), spoken.decode(spoken.encode(wav)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_gives_the_same(kind):
    """Buries a fit that goes on from the last one's weights."""
    frontend = deepcopy(tiny_frontend(kind, vocoder=True))
    prints = []
    for _ in range(2):
        frontend.fit(notes(4))
        prints.append(frontend.fingerprint())
    assert prints[0] == prints[1]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_with_the_front_end(kind, tmp_path):
    """Buries a vocoder that stays behind."""
    frontend = tiny_frontend(kind, vocoder=True)
    save_frontend(frontend, tmp_path)
    loaded, x = load_frontend(tmp_path), frontend.encode(notes(1)[0][None])
    assert torch.equal(loaded.decode(x), frontend.decode(x)) and loaded.fingerprint() == frontend.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_trained_for_a_time_is_a_front_end_for_later_runs(kind, tmp_path):
    """Buries a vocoder that can be listened to and not be trained upon, and a resumed one that is another."""
    folder = folder_of_notes(tmp_path / "a", [4000] * 6)
    settings = {**tiny_settings(kind), **TINY_VOCODER}
    trained = train_frontend(kind, [folder], tmp_path / "vocoder", settings, steps=3)
    assert trained.finished
    train_frontend(kind, [folder], tmp_path / "again", settings, steps=3)
    resumed = train_frontend(kind, [folder], tmp_path / "again", settings, steps=3, resume=True)
    assert resumed.frontend.fingerprint() == trained.frontend.fingerprint()
    run = train(folder, tmp_path / "run", frontend=str(tmp_path / "vocoder"), backbone="bigram", steps=1,
                overrides=["backbone.dim=8", "training.crop_frames=16", "training.batch_size=2",
                           "training.evaluations=1", "training.sample_seconds=0.2"])
    assert run.frontend.fingerprint() == trained.frontend.fingerprint()
    assert run.generate(seconds=0.1, seed=0).shape == (1, 1, 800)


@pytest.mark.parametrize("settings", [{"hop_length": 63, "vocoder_steps": 1}, {"vocoder_steps": -1}, {"vocoder_dim": 0},
                                      {"vocoder_layers": 0}])
def test_senseless_settings(settings):
    with pytest.raises(ConfigError, match=f"frontend.{next(iter(settings))}"):
        load_frontend("mel", **settings)
    load_frontend("mel", sample_rate=RATE, hop_length=63)       # Griffin-Lim takes odd ones
