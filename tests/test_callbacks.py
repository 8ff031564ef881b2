"""Callbacks and loggers of training."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from corpus import folder_of_notes

import audiogen
from audiogen.errors import ConfigError
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.callbacks import TensorBoard, choose_loggers

SMALL = [
    "backbone.dim=8",
    "training.crop_frames=64",
    "training.batch_size=2",
    "training.evaluations=4",
    "training.sample_seconds=0.05",
]


class Noted(audiogen.Callback):
    """Notes what is called, and asks to end at a step."""

    def __init__(self, last=None):
        self.called: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.last = last

    def on_start(self, folder, config, after):
        self.called.append("start")
        self.folder, self.config, self.after = folder, config, after

    def on_event(self, event):
        self.called.append(event["event"])
        self.events.append(event)
        return event.get("step", 0) == self.last

    def on_evaluation(self, model, step):
        assert isinstance(model, SequenceModel) and not model.training
        torch.rand(3)  # what a callback draws must change nothing
        self.called.append("evaluation")

    def on_audio(self, name, wav, sample_rate, step):
        assert wav.shape[1] == 0.05 * sample_rate
        self.called.append("audio")

    def on_end(self):
        self.called.append("end")


def train(tmp_path, name="run", steps=12, **options):
    folder = tmp_path / "corpus"
    if not folder.exists():
        folder_of_notes(folder, [1200] * 6)
    return audiogen.train(folder, tmp_path / name, "mulaw", "gru", steps, device="cpu", overrides=SMALL, **options)


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_callbacks_see_what_the_log_holds_and_change_nothing(tmp_path):
    """Guards against an event that only the file gets, a callback that is not closed, and a training that depends on
    who looks on."""
    noted, heard = Noted(), []
    run = train(tmp_path, callbacks=[noted, heard.append], loggers=["none"])
    assert noted.events == heard == logged(run.folder)
    assert noted.folder == run.folder and noted.after is None and noted.config["backbone"]["dim"] == 8
    assert noted.called[0] == "start" and noted.called[-1] == "end"
    assert noted.called.count("evaluation") == noted.called.count("held_out") == 4 and "audio" in noted.called
    assert not (run.folder / "tensorboard").exists()
    alone = train(tmp_path, "alone", loggers=["none"])
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, alone.model.state_dict()[name]), name


def test_a_callback_ends_training(tmp_path):
    """Guards against a run that is ended without an evaluation, so that it has no weights, and that can't go on."""
    noted = Noted(last=1)
    run = train(tmp_path, callbacks=[noted])
    steps = [event["step"] for event in noted.events if event["event"] == "held_out"]
    assert steps == [1] and run.step == 1 and noted.events[-1]["event"] == "final"
    assert run.generate(seconds=0.01).shape[0] == 1
    again = Noted()
    resumed = train(tmp_path, resume=True, callbacks=[again])
    assert again.after == 1 and max(event.get("step", 0) for event in again.events) == 12 and resumed.step > 1


def test_callbacks_are_functions_or_objects():
    """Guards against a class in place of its object, which fails after the folder has been encoded."""
    for wrong in (audiogen.Callback, "wandb", 3):
        with pytest.raises(ConfigError, match="callbacks: must be functions or objects"):
            audiogen.train("gone", "run", callbacks=[wrong])  # type: ignore


def test_loggers_are_chosen_by_name(monkeypatch):
    """Guards against a typo, or a missing package, that shows after an hour of encoding."""
    with pytest.raises(ConfigError, match="--logger: must be of tensorboard, wandb, or none, got 'tensorbord'"):
        choose_loggers(["tensorbord"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="--logger wandb: is not installed; run: pip install wandb"):
        audiogen.train("gone", "run", loggers=["wandb"])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert choose_loggers(None) == choose_loggers(["none"]) == []


def test_tensorboard_has_the_curves_and_sounds(tmp_path):
    """Guards against files that TensorBoard can't read, and a resumed run whose steps are shown twice."""
    pytest.importorskip("tensorboard")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tmp_path, steps=10)
    shown = reader.EventAccumulator(str(run.folder / "tensorboard")).Reload()
    losses = [(event["step"], event["loss"]) for event in logged(run.folder) if event["event"] == "held_out"]
    scalars = shown.Scalars("held_out/loss")
    assert [one.step for one in scalars] == [step for step, _ in losses]
    assert [one.value for one in scalars] == pytest.approx([loss for _, loss in losses])
    assert len(shown.Tags()["audio"]) == 4
    stereo = TensorBoard()
    stereo.on_start(tmp_path / "stereo", {}, None)
    stereo.on_audio("x", torch.zeros(2, 100), 8000, 1)
    stereo.on_end()


class FakeWandB:
    """What audiogen uses of the package wandb, with its rule that the step of its own counter never falls."""

    def __init__(self):
        self.runs: dict[str, SimpleNamespace] = {}
        self.Audio = lambda data, sample_rate: ("audio", data.shape, sample_rate)

    def init(self, dir, name, config, id, resume):
        id = id or f"id{len(self.runs)}"
        new = SimpleNamespace(id=id, name=name, config=config, logged=[], summary={}, finished=0, axes=[])
        run = self.runs.setdefault(id, new)
        run.log = run.logged.append
        run.define_metric = lambda name, step_metric: run.axes.append((name, step_metric))
        run.finish = lambda: setattr(run, "finished", run.finished + 1)
        return run


def test_wandb_gets_curves_settings_and_sounds(tmp_path, monkeypatch):
    """Guards against calls that wandb does not know, and a resumed run that begins a second curve."""
    wandb = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = train(tmp_path, steps=4, loggers=["wandb"])
    [one] = wandb.runs.values()
    assert one.name == str(run.folder) and one.config["backbone"]["dim"] == 8 and one.axes == [("*", "step")]
    held_out = [event["loss"] for event in logged(run.folder) if event["event"] == "held_out"]
    assert [event["held_out/loss"] for event in one.logged if "held_out/loss" in event] == held_out
    assert all("step" in event for event in one.logged) and "baselines/uniform" in one.summary
    sounds = [value for event in one.logged for value in event.values() if isinstance(value, tuple)]
    assert sounds == [("audio", (round(0.05 * run.sample_rate), 1), run.sample_rate)] * 4
    train(tmp_path, steps=6, loggers=["wandb"], resume=True)
    assert len(wandb.runs) == 1 and one.finished == 2 and one.logged[-1]["step"] == 6
    train(tmp_path, "other", steps=1, loggers=["wandb"])
    assert len(wandb.runs) == 2


def test_wandb_says_what_to_do_where_it_can_t_start(tmp_path, monkeypatch):
    """Guards against a traceback of wandb where nobody is logged in."""

    def refuse(**given):
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(ConfigError, match=r"--logger wandb: could not start \(api_key not configured \(no-tty\)\)"):
        train(tmp_path, steps=1, loggers=["wandb"])
