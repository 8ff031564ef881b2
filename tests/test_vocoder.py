"""The vocoder of the mel front-ends: what it learns, and that it is there wherever the front-end is."""

import os
import signal
from copy import deepcopy

import pytest
import torch
from corpus import RATE, TINY_VOCODER, folder_of_notes, note, tiny_frontend, tiny_settings

from audiogen.commands.train import train
from audiogen.commands.train_frontend import train_frontend
from audiogen.errors import ConfigError, DataError, RunError, TrainingError
from audiogen.frontends import load_frontend, save_frontend
from audiogen.frontends.neural import trainer as training

KINDS = ["mel", "melvq"]


@pytest.fixture(autouse=True)
def one_second_is_long(monkeypatch):
    monkeypatch.setattr("audiogen.frontends.neural.fit.CROP_SECONDS", 0.2)


def notes(count, num_samples=RATE // 2):
    return [torch.from_numpy(note(seed, num_samples)).float()[None] for seed in range(count)]


def tone(hertz, num_samples=RATE // 2):
    """(1, N)."""
    return 0.2 * torch.sin(2 * torch.pi * hertz / RATE * torch.arange(num_samples))[None]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_say_what_the_frames_say(kind):
    """Guards against a vocoder that is trained and not used, and one trained on frames that are not those it is given:
    tones that it has not heard must come out one above the other."""
    settings = {
        **tiny_settings(kind),
        "num_features": 12,
        "vocoder": {"dim": 32, "num_layers": 2, "steps": 100, "learning_rate": 3e-3},
    }
    if kind == "melvq":
        settings["codebook_size"] = 24
    frontend = load_frontend(kind, **settings)
    frontend.fit([tone(hertz) for hertz in range(300, 3600, 150)])
    centres = []
    for hertz in (500, 1700, 3100):
        power = torch.fft.rfft(frontend.decode(frontend.encode(tone(hertz)[None]))[0, 0]).abs().square()
        centres.append(float((power * torch.linspace(0, RATE / 2, len(power))).sum() / power.sum()))
    assert centres[0] + 200 < centres[1] < centres[2] - 200


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_codes_are_those_without_a_vocoder(kind):
    """Guards against a vocoder that changes what a model is trained on."""
    plain, spoken = tiny_frontend(kind), tiny_frontend(kind, vocoder=True)
    wav = notes(9)[-1][None]
    x = plain.encode(wav)
    assert torch.equal(x, spoken.encode(wav)) and torch.equal(x, spoken.without_vocoder().encode(wav))
    assert plain.fingerprint() != spoken.fingerprint()
    assert torch.equal(plain.decode(x), spoken.without_vocoder().decode(x))
    assert not torch.equal(plain.decode(x), spoken.decode(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_gives_the_same_and_a_failed_one_nothing(kind):
    """Guards against a fit that goes on from the last one's weights, and one that fails and leaves these in use."""
    frontend = deepcopy(tiny_frontend(kind, vocoder=True))
    prints = []
    for _ in range(2):
        frontend.fit(notes(4))
        prints.append(frontend.fingerprint())
    assert prints[0] == prints[1]
    with pytest.raises(DataError):
        frontend.fit([])
    assert not frontend.fitted


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_with_the_front_end(kind, tmp_path):
    """Guards against a vocoder that stays behind."""
    frontend = tiny_frontend(kind, vocoder=True)
    save_frontend(frontend, tmp_path)
    loaded, x = load_frontend(tmp_path), frontend.encode(notes(1)[0][None])
    assert torch.equal(loaded.decode(x), frontend.decode(x)) and loaded.fingerprint() == frontend.fingerprint()


def test_wild_frames_are_silence_or_loud():
    """Guards against a model's slip that becomes NaN where Griffin-Lim would have made sound of it."""
    frontend = tiny_frontend("mel", vocoder=True)
    for value in (1e20, -1e20):
        assert bool(torch.isfinite(frontend.decode(torch.full((1, 6, 5), value))).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_trained_for_a_time_is_a_front_end_for_later_runs(kind, tmp_path, monkeypatch):
    """Guards against a vocoder that can be listened to and not be trained upon or streamed, and a resumed one that is
    another."""
    folder = folder_of_notes(tmp_path / "a", [4000] * 6)
    settings = {
        **tiny_settings(kind),
        "vocoder": {**TINY_VOCODER, "adversarial_from": 0.5, "batch_size": 1, "discriminator_channels": 2},
    }
    trained = train_frontend(kind, [folder], tmp_path / "vocoder", settings, steps=4)
    assert trained.finished
    advance, due = training.Trainer.train_step, {2}

    def stopped_once(self, progress):
        record = advance(self, progress)
        if self.step in due:
            due.discard(self.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return record

    monkeypatch.setattr(training.Trainer, "train_step", stopped_once)
    assert not train_frontend(kind, [folder], tmp_path / "again", settings, steps=4).finished
    resumed = train_frontend(kind, [folder], tmp_path / "again", settings, steps=4, resume=True)
    assert resumed.finished and resumed.frontend.fingerprint() == trained.frontend.fingerprint()
    run = train(
        folder,
        tmp_path / "run",
        frontend=str(tmp_path / "vocoder"),
        backbone="bigram",
        steps=1,
        overrides=[
            "backbone.dim=8",
            "training.crop_frames=16",
            "training.batch_size=2",
            "training.evaluations=1",
            "training.sample_seconds=0.2",
        ],
    )
    assert run.frontend.fingerprint() == trained.frontend.fingerprint()
    whole = run.generate(seconds=0.1, seed=0)
    assert whole.shape == (1, 1, 800)
    torch.testing.assert_close(torch.cat(list(run.stream(seconds=0.1, seed=0)), dim=2), whole, rtol=0, atol=1e-5)


def test_other_files_are_not_gone_on_with(tmp_path):
    """Guards against a decoder that was trained at one loudness and speaks at another."""
    folder = folder_of_notes(tmp_path / "a", [4000] * 4)
    settings = {**tiny_settings("mel"), "vocoder": TINY_VOCODER}
    train_frontend("mel", [folder], tmp_path / "run", settings, steps=1)
    folder_of_notes(folder, [5000] * 5, seed=9)
    with pytest.raises(RunError, match="other files"):
        train_frontend("mel", [folder], tmp_path / "run", settings, steps=2, resume=True)


def test_in_float64_and_over_what_is_not_a_number():
    """Guards against a decoder that stays in float32, and a broken crop that is not stepped over."""
    frontend = load_frontend("mel", **{**tiny_settings("mel"), "vocoder": TINY_VOCODER}).double()
    frontend.fit([wav.double() for wav in notes(2)])
    assert frontend.decode(frontend.encode(notes(1)[0][None].double())).dtype == torch.float64
    trainer = frontend.trainer([wav.double() for wav in notes(2)])
    trainer.batch = lambda step: torch.full((1, 1, 1600), torch.nan)
    assert "rolled_back_to" in trainer.train_step(0.0)
    with pytest.raises(TrainingError, match="lower its learning_rate"):
        for _ in range(3):
            trainer.train_step(0.0)


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"steps": 0}, "vocoder.steps"),
        ({"dim": 0}, "vocoder.dim"),
        ({"num_layers": 0}, "vocoder.num_layers"),
        ({"dims": 8}, "vocoder.dims"),
        ({"learning_rate": 2.0}, "vocoder.learning_rate"),
    ],
)
def test_senseless_settings(settings, key):
    with pytest.raises(ConfigError, match=f"frontend.{key}"):
        load_frontend("mel", vocoder=settings)


def test_odd_hops_are_for_griffin_lim():
    with pytest.raises(ConfigError, match="frontend.hop_length"):
        load_frontend("mel", sample_rate=RATE, hop_length=63, vocoder=TINY_VOCODER)
    load_frontend("mel", sample_rate=RATE, hop_length=63)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_vocoder_can_not_train_one(kind):
    """Guards against a traceback of what is None."""
    with pytest.raises(ConfigError, match="frontend.vocoder"):
        load_frontend(kind, **tiny_settings(kind)).trainer(notes(2))
