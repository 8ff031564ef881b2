"""Training the codec: discriminators, balanced losses, recovery from explosions, and exact resuming."""

import copy
import dataclasses
import json
import logging
import os
import signal

import pytest
import torch
from corpus import RATE, folder_of_notes, note

from audiogen.commands.train import train
from audiogen.commands.train_frontend import train_frontend
from audiogen.errors import ConfigError, RunError, TrainingError
from audiogen.frontends import Codec, load_frontend
from audiogen.frontends.neural import trainer as training
from audiogen.frontends.neural.balancer import Balancer
from audiogen.frontends.neural.discriminators import Discriminators, generator_losses, hinge_loss
from audiogen.runs.event_log import read_metrics

TINY = {
    "weights": "fit",
    "num_codebooks": 2,
    "codebook_size": 8,
    "hop_length": 64,
    "dim": 4,
    "latent_dim": 4,
    "batch_size": 2,
    "adversarial_from": 0.5,
    "discriminator_channels": 2,
    "discriminator_windows": (0.016, 0.008),
}


@pytest.fixture(autouse=True)
def one_second_is_long(monkeypatch):
    monkeypatch.setattr("audiogen.frontends.neural.fit.CROP_SECONDS", 0.2)


def tiny_trainer(**settings):
    codec = Codec(Codec.Config(sample_rate=RATE, **{**TINY, **settings}))
    return codec.trainer([torch.from_numpy(note(seed, RATE)).float()[None] for seed in range(4)])


def weights(trainer):
    return {name: value.clone() for name, value in trainer.modules.state_dict().items()}


def judgements(*values):
    return [(torch.full((1, 1, 2, 2), float(value)), [torch.full((1, 3), float(value))]) for value in values]


def test_hinge_losses_equal_their_definitions():
    """Guards against a wrong sign: discriminators trained to be fooled, or a codec trained to be detected."""
    assert float(hinge_loss(judgements(0, 0), judgements(0, 0))) == 2
    assert float(hinge_loss(judgements(1, 3), judgements(-1, -2))) == 0
    assert float(hinge_loss(judgements(0.5, 1), judgements(-1, 1))) == (0.5 + 0 + 0 + 2) / 2
    found = generator_losses(judgements(2, 4), judgements(-1, 3))
    assert float(found["adversarial"]) == (2 + 0) / 2
    assert float(found["features"]) == pytest.approx((3 / 2 + 1 / 4) / 2)


def test_discriminators_learn_to_tell_noise_from_tones():
    """Guards against discriminators that can't learn, or of which only some scales learn."""
    torch.manual_seed(0)
    adversaries = Discriminators(RATE, 4, (0.016, 0.008))
    optimizer = torch.optim.AdamW(adversaries.parameters(), 1e-2)
    tones = torch.stack([torch.from_numpy(note(seed, 800)).float()[None] for seed in range(4)])
    for step in range(80):
        noise = tones.std() * torch.randn(tones.shape, generator=torch.Generator().manual_seed(step))
        loss = hinge_loss(adversaries(tones), adversaries(noise))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1
    for (real, _), (fake, _) in zip(adversaries(tones), adversaries(noise), strict=True):
        assert float((real.mean() - fake.mean()).detach()) > 0


def test_the_balancer_gives_each_loss_its_share_of_the_gradient():
    """Guards against a loss that dominates because of its unit. Closed form: a gradient of any scale becomes a part of
    the norm, weight / (sum of weights)."""
    output = torch.randn(2, 1, 50, requires_grad=True)
    a, b = torch.randn(2, 1, 50), torch.randn(2, 1, 50)
    losses = {"a": 1e4 * (output * a).sum(), "b": 1e-5 * (output * b).sum()}
    balancer = Balancer({"a": 3.0, "b": 1.0, "unused": 9.0})
    expected = 0.75 * a / a.norm() + 0.25 * b / b.norm()
    for _ in range(3):
        torch.testing.assert_close(balancer.gradients([(losses, output)])[0], expected)
    louder = balancer.gradients([({**losses, "a": 2 * losses["a"]}, output)])[0] - 0.25 * b / b.norm()
    torch.testing.assert_close(louder, 0.75 * 2 / 1.01 * a / a.norm(), rtol=1e-4, atol=1e-5)


def test_the_phases_come_in_turn():
    """Guards against discriminators that start before the codebooks do, and codebooks that never start."""
    trainer = tiny_trainer()
    records = [trainer.train_step(step / 20) for step in range(20)]
    assert [("commitment" in record, "adversarial" in record) for record in records] == [
        (step >= 1, step >= 10) for step in range(20)
    ]
    figures = trainer.figures()
    assert all(1 <= value <= 8 for value in figures["perplexity"]) and all(0 < value <= 1 for value in figures["usage"])


def test_discriminators_that_are_sure_wait(monkeypatch):
    """Guards against discriminators that keep learning while their loss is below the pause threshold."""
    trainer = tiny_trainer()
    for step in range(3):
        trainer.train_step(0.4 + 0.1 * step)
    before = weights(trainer)
    monkeypatch.setattr(training, "DISC_PAUSE_LOSS", 3.0)
    trainer.train_step(0.7)
    waited = weights(trainer)
    monkeypatch.setattr(training, "DISC_PAUSE_LOSS", 0.0)
    trainer.train_step(0.7)
    learned = weights(trainer)
    names = [name for name in before if name.startswith("discriminators")]
    assert all(torch.equal(before[name], waited[name]) for name in names)
    assert not all(torch.equal(waited[name], learned[name]) for name in names)


def test_a_run_that_explodes_goes_back_and_calms_down(monkeypatch):
    """Guards against NaN that reaches the weights, and a rollback that restores only part of the state."""
    monkeypatch.setattr(training, "SNAPSHOT_EVERY", 4)
    trainer = tiny_trainer()
    for step in range(4):
        trainer.train_step(step / 20)
    before, state = weights(trainer), copy.deepcopy(trainer.state())
    healthy = trainer.batch
    for step in range(2):
        trainer.train_step((4 + step) / 20)
    trainer.batch = lambda step: healthy(step) * float("nan")
    record = trainer.train_step(6 / 20)
    assert record == {"rolled_back_to": 4.0, "exploded_at": 7.0, "lr_scale": 0.5}
    assert trainer.step == 4 and all(torch.equal(before[name], value) for name, value in weights(trainer).items())
    assert trainer.balancer.norms == state["norms"] and trainer.ema_loss == state["ema_loss"]
    trainer.batch = healthy
    rate = trainer.train_step(4 / 20)["learning_rate"]
    trainer.load(state)
    assert rate == pytest.approx(trainer.train_step(4 / 20)["learning_rate"] / 2)


def test_an_explosion_that_is_seen_later_has_changed_no_weight():
    """Guards against a GPU that trains on NaN until the losses are read, and a checkpoint of such weights."""
    trainer = tiny_trainer()
    trainer.looks_always = False
    records = [trainer.train_step(step / 20) for step in range(3)]
    assert records[0] and records[1:] == [{}, {}]
    healthy, before = trainer.batch, weights(trainer)
    trainer.batch = lambda step: healthy(step) * (float("nan") if step == 3 else 1)
    assert [trainer.train_step(0.5) for _ in range(4)] == [{}] * 4
    kept = [name for name in before if not name.startswith("learner")]
    assert all(torch.equal(before[name], weights(trainer)[name]) for name in kept)
    assert trainer.look() == {"rolled_back_to": 0.0, "exploded_at": 4.0, "lr_scale": 0.5}
    assert trainer.look() == {} and trainer.state()["ema_loss"] is None
    assert trainer.train_step(0.0)["loss"] < float("inf")


def test_a_loss_far_above_the_usual_is_an_explosion_too():
    """Guards against a finite explosion of the loss that is not rolled back."""
    trainer = tiny_trainer()
    trainer.train_step(0.0)
    healthy = trainer.batch
    trainer.batch = lambda step: 1e4 * healthy(step)
    assert "rolled_back_to" in trainer.train_step(0.0)


def test_a_run_that_explodes_for_ever_stops(monkeypatch):
    """Guards against a fit that never ends, or that saves weights after it failed."""
    monkeypatch.setattr(training, "EXPLODED", -1.0)
    codec = Codec(Codec.Config(sample_rate=RATE, **TINY))
    with pytest.raises(TrainingError, match="step 1, after 3 rollbacks: lower its learning_rate"):
        codec.fit([torch.from_numpy(note(0, RATE)).float()[None]])
    assert not codec.fitted


@pytest.mark.parametrize("stops", [(2,), (7, 13)])
def test_a_resumed_run_ends_with_the_very_weights(tmp_path, monkeypatch, stops):
    """Guards against a checkpoint without the optimizer's moments, the discriminators, the averages or the pool of
    vectors."""
    folders = [folder_of_notes(tmp_path / "a", [4000] * 5), folder_of_notes(tmp_path / "b", [3000] * 4, seed=7)]
    whole = train_frontend("codec", folders, tmp_path / "whole", TINY, steps=16)
    assert whole.finished
    advance, due = training.Trainer.train_step, set(stops)

    def stopped_at(self, progress):
        record = advance(self, progress)
        if self.step in due:
            due.discard(self.step)
            os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored where a shell started us behind
        return record

    monkeypatch.setattr(training.Trainer, "train_step", stopped_at)
    for _ in stops:
        assert not train_frontend("codec", folders, tmp_path / "parts", TINY, steps=16, resume=True).finished
    parts = train_frontend("codec", folders, tmp_path / "parts", TINY, steps=16, resume=True)
    assert parts.finished
    for name, value in whole.frontend.state_dict().items():
        assert torch.equal(value, parts.frontend.state_dict()[name]), name
    for name in ("train", "codebooks", "held_out"):
        first, second = (untimed(tmp_path / run, name) for run in ("whole", "parts"))
        assert first == second
    loaded = load_frontend(tmp_path / "parts")
    assert loaded.fingerprint() == whole.frontend.fingerprint()


def untimed(folder, name):
    return [
        {key: value for key, value in event.items() if key != "seconds"}
        for event in read_metrics(folder)
        if event["event"] == name
    ]


def test_a_run_folder_is_not_overwritten_and_not_resumed_with_other_settings(tmp_path):
    """Guards against losing hours of training to a repeated command."""
    folder = folder_of_notes(tmp_path / "a", [4000] * 3)
    train_frontend("codec", [folder], tmp_path / "run", TINY, steps=2)
    with pytest.raises(RunError, match="--resume"):
        train_frontend("codec", [folder], tmp_path / "run", TINY, steps=4)
    with pytest.raises(RunError, match="other settings"):
        train_frontend("codec", [folder], tmp_path / "run", {**TINY, "dim": 6}, steps=4, resume=True)
    with pytest.raises(ConfigError, match="one of them"):
        train_frontend("codec", [folder], tmp_path / "other", TINY)


def test_without_a_terminal_lines_tell_of_the_progress(tmp_path, caplog):
    """Guards against minutes of silence in a log: there, a progress bar is not shown."""
    with caplog.at_level(logging.INFO, logger="audiogen"):
        Codec(Codec.Config(sample_rate=RATE, **{**TINY, "fit_steps": 20})).fit(
            [torch.from_numpy(note(0, RATE)).float()[None]]
        )
        train_frontend("codec", [folder_of_notes(tmp_path / "a", [4000] * 3)], tmp_path / "run", TINY, steps=2)
    lines = [record.getMessage() for record in caplog.records]
    fitting = [line for line in lines if line.startswith("fitting the codec: step ")]
    assert len(fitting) == 10 and fitting[-1].endswith("step 20 of 20")
    (event,) = untimed(tmp_path / "run", "held_out")[-1:]
    assert any(f"held-out mel distance {event['mel_distance']:.3f}" in line for line in lines)


def test_held_out_files_are_not_trained_on(tmp_path):
    """Guards against a codec that is evaluated on its training files."""
    folder = folder_of_notes(tmp_path / "a", [4000, 4001, 4002])
    trained = train_frontend("codec", [folder], tmp_path / "run", TINY, steps=1)
    lengths = [sorted(wav.shape[1] for wav in side) for side in (trained.training, trained.held_out)]
    assert len(lengths[0]) == 2 and len(lengths[1]) == 1 and not set(lengths[0]) & set(lengths[1])


def test_rollbacks_are_written_down(tmp_path, monkeypatch):
    """Guards against rollbacks that are not logged."""
    folder = folder_of_notes(tmp_path / "a", [4000] * 3)
    step, hurt = training.Trainer._step, {2}

    def stumble(self, progress):
        losses = step(self, progress)
        if self.step in hurt:
            hurt.discard(self.step)
            self.exploded = torch.ones(())
        return losses

    monkeypatch.setattr(training.Trainer, "_step", stumble)
    train_frontend("codec", [folder], tmp_path / "run", TINY, steps=4)
    (event,) = (e for e in read_metrics(tmp_path / "run") if e["event"] == "rolled_back")
    assert event["exploded_at"] == 3 and event["rolled_back_to"] == 0 and event["lr_scale"] == 0.5


def test_the_checkpoint_holds_the_settings(tmp_path):
    """Guards against a checkpoint without the settings of the codec."""
    folder = folder_of_notes(tmp_path / "a", [4000] * 3)
    trained = train_frontend("codec", [folder], tmp_path / "run", TINY, steps=1)
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-1" / "state.json").read_text())
    assert state["config"]["dim"] == 4 and state["step"] == 1
    assert dataclasses.asdict(trained.frontend.config)["weights"] == "fit"


def test_a_run_folder_is_a_front_end_for_later_runs(tmp_path):
    """Guards against a trained codec that can't be used as a front-end."""
    folder = folder_of_notes(tmp_path / "a", [8000] * 6)
    codec = train_frontend("codec", [folder], tmp_path / "codec", TINY, steps=2).frontend
    run = train(
        folder,
        tmp_path / "run",
        frontend=str(tmp_path / "codec"),
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
    assert run.frontend.fingerprint() == codec.fingerprint()
    assert run.generate(seconds=0.1, seed=0).shape == (1, 1, 800)


def test_a_codec_in_float64_is_fitted_in_float64():
    """Guards against losses in float32 while the networks are in float64."""
    codec = Codec(Codec.Config(sample_rate=RATE, fit_steps=2, **{**TINY, "adversarial_from": 0.0}))
    codec.double().fit([torch.from_numpy(note(0, RATE)).float()[None]])
    assert codec.encode(torch.zeros(1, 1, 640).double()).shape == (1, 2, 10)


@pytest.mark.parametrize("budget", [{"steps": 0}, {"minutes": 0.0}, {"minutes": -1.0}, {"minutes": float("nan")}])
def test_a_budget_of_nothing_is_refused_before_anything_is_written(tmp_path, budget):
    """Guards against a division by zero after the folder is created, and a run that reports "stopped" before it
    started."""
    with pytest.raises(ConfigError, match=f"--{next(iter(budget))}: must be above 0"):
        train_frontend("codec", [tmp_path], tmp_path / "out", {"weights": "fit"}, **budget)
    assert not (tmp_path / "out").exists()
