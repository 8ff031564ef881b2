"""Resuming: whatever a run is stopped by, it goes on to the very same weights."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from corpus import folder_of_notes, tiny_settings
from loops import events, losses, settings, trainer
from processes import Command
from safetensors.torch import load_file, save_file

from audiogen.commands.tokenize import tokenize
from audiogen.commands.train import train
from audiogen.data import Crops
from audiogen.errors import AudiogenError, ConfigError, RunError
from audiogen.frontends import load_frontend, save_frontend
from audiogen.models.sampling import Sampling
from audiogen.runs.event_log import Metrics, read_metrics
from audiogen.runs.folder import holds_run
from audiogen.runs.run import load_run
from audiogen.training import checkpoint
from audiogen.training import trainer as loop
from audiogen.training.checkpoint import list_checkpoints, load_checkpoint
from audiogen.utils import files

STEPS = 12
#: Everything that has a state or draws at random: dropout, averaging, accumulation, a fitted front-end, early stopping.
OVERRIDES = [
    "backbone.dim=8",
    "backbone.num_layers=1",
    "backbone.num_heads=2",
    "backbone.dropout=0.3",
    "training.crop_frames=16",
    "training.batch_size=2",
    "training.accumulation=2",
    "training.average=0.7",
    "training.evaluations=4",
    "training.learning_rate=0.02",
    "training.sample_seconds=0.02",
    *(f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()),
]


def start(corpus, out, overrides=(), **more):
    return train(
        corpus,
        out,
        **{"frontend": "melvq", "backbone": "gpt", "steps": STEPS, "overrides": [*OVERRIDES, *overrides], **more},
    )


def tensors(path):
    return {name: x.tolist() for name, x in load_file(path).items()}


def outcome(run: Path):
    """All that must not depend on where a run was stopped: everything but times, in a form that compares."""
    newest = list_checkpoints(run / "checkpoints")[-1]
    state = json.loads((newest / "state.json").read_text())
    return {
        "weights": tensors(run / "model.safetensors"),
        "checkpoint": {path.name: tensors(path) for path in newest.glob("*.safetensors")},
        "state": {name: value for name, value in state.items() if name != "seconds"},
        "metrics": [{name: value for name, value in event.items() if name != "seconds"} for event in read_metrics(run)],
        "sound": {path.name: path.read_bytes() for path in (run / "samples").glob("*.wav")},
    }


def assert_same(run, whole):
    found = outcome(run)
    for part, expected in whole.items():
        assert found[part] == expected, f"the {part} differ from the uninterrupted run's"


@pytest.fixture(scope="module", autouse=True)
def same_conditions():
    """The same number of threads here and in the processes: it decides in which order sums are added up. And Ctrl-C
    works as in a terminal, also where the tests run in the background and it is ignored."""
    before = torch.get_num_threads(), signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    signal.signal(signal.SIGINT, before[1])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return folder_of_notes(tmp_path_factory.mktemp("corpus"), [3000] * 5 + [700] * 3)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    start(corpus, run)
    return run


def interrupt_at(monkeypatch, *batches):
    """Ctrl-C arrives while these batches are drawn, once each."""
    batch, rest = Crops.batch, set(batches)

    def drawn(self, step):
        if step in rest:
            rest.remove(step)
            signal.raise_signal(signal.SIGINT)
        return batch(self, step)

    monkeypatch.setattr(Crops, "batch", drawn)


# ---- the same weights


def test_a_run_can_be_repeated(corpus, whole, tmp_path):
    """Guards against chance that is left to the clock or the order of a set: what follows would say nothing."""
    start(corpus, tmp_path / "run")
    assert_same(tmp_path / "run", outcome(whole))
    start(corpus, tmp_path / "other", seed=1)
    assert outcome(tmp_path / "other")["weights"] != outcome(whole)["weights"]


@pytest.mark.parametrize("batches", [[0], [7], [8, 15], [4, 9, 10, 23]])
def test_resuming_continues_to_the_very_same_weights(corpus, whole, tmp_path, monkeypatch, batches):
    """Guards against a resume that forgets the optimizer, the average, the dropout, the crops or the best loss so far,
    that takes a step twice, or that leaves one out. (Two batches a step: also interrupts in the middle of one.)"""
    run = tmp_path / "run"
    interrupt_at(monkeypatch, *batches)
    steps = []
    for attempt in range(len(set(batch // 2 for batch in batches)) + 1):
        try:
            start(corpus, run, resume=attempt > 0)
        except KeyboardInterrupt:
            steps.append(load_checkpoint(run / "checkpoints").step)
    assert steps == sorted({batch // 2 + 1 for batch in batches} - {STEPS})
    assert_same(run, outcome(whole))


def test_loader_processes_change_nothing(corpus, whole, tmp_path):
    """Guards against batches in the order in which they became ready, and workers that draw from training's own
    numbers."""
    found = start(corpus, tmp_path / "run", ["data.num_workers=2"])
    assert found.config.data.num_workers == 2
    assert_same(tmp_path / "run", outcome(whole))


def test_saving_more_often_changes_nothing(corpus, whole, tmp_path, monkeypatch):
    """Guards against a save that draws random numbers, or that moves weights about."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    start(corpus, tmp_path / "run")
    assert_same(tmp_path / "run", outcome(whole))


def test_a_finished_run_is_finished(corpus, whole, tmp_path):
    """Guards against a resume that trains on past the end, and a second final report beside the first."""
    run = shutil.copytree(whole, tmp_path / "run")
    start(corpus, run, resume=True)
    assert_same(run, outcome(whole))


def test_a_larger_budget_goes_on(corpus, whole, tmp_path):
    """Guards against a budget that can't be raised: the one setting that a resume may change."""
    run = shutil.copytree(whole, tmp_path / "run")
    train(corpus, run, steps=STEPS + 4, resume=True)
    assert load_checkpoint(run / "checkpoints").step == STEPS + 4
    assert json.loads((run / "config.json").read_text())["training"]["steps"] == STEPS + 4
    assert [event["step"] for event in events(run, "held_out")] == [3, 6, 9, 12, 16]
    assert len(events(run, "final")) == 1


def test_the_state_of_early_stopping_survives(tmp_path, impatient):
    """Guards against a patience that every resume renews: a run resumed often enough would never stop."""
    found = losses(5, 3, 3.5, 3.4)

    def evaluate(model):
        if first.progress.step == 4:
            signal.raise_signal(signal.SIGINT)
        return found(model)

    config = settings(steps=9, evaluations=9, patience=4)
    first = trainer(tmp_path, config, evaluate=evaluate)
    assert first.run(Metrics(tmp_path)).stopped == "interrupted"
    kept = []
    second = trainer(
        tmp_path, config, evaluate=losses(3.3, 3.2, 1), keep=lambda model, progress: kept.append(progress.step)
    )
    second.resume()
    assert second.run(Metrics(tmp_path, 4)).stopped == "early"
    assert (second.progress.step, second.progress.best_step, second.progress.best_loss) == (6, 2, 3)
    assert kept == []

    third = trainer(tmp_path, config, evaluate=losses())
    third.resume()
    assert third.run(Metrics(tmp_path, 6)).stopped == "early"
    assert third.progress.step == 6


def test_checkpoints_without_their_config_are_left_alone(corpus, whole, tmp_path):
    """Guards against a new run that quietly goes on from the weights of an old one, whose config.json is gone."""
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "config.json").unlink()
    for resume in (False, True):
        with pytest.raises(RunError, match="holds checkpoints without the config.json"):
            start(corpus, run, resume=resume)


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_anew(corpus, whole, tmp_path):
    """Guards against a half-made folder that can be neither resumed nor begun: only `config.json` says that there is a
    run."""
    for gone in ("config.json", "split.json", "model.safetensors", "frontend.safetensors"):
        run = shutil.copytree(whole, tmp_path / gone)
        shutil.rmtree(run / "checkpoints")
        (run / gone).unlink()
        if gone in ("config.json", "model.safetensors"):
            start(corpus, run, resume=True)
            assert_same(run, outcome(whole))
        else:
            with pytest.raises(RunError, match=gone if "safetensors" in gone else "files are not those"):
                start(corpus, run, resume=True)


# ---- damage


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(corpus, whole, tmp_path, damage):
    """Guards against two checkpoints of which the second is never used, and damage that nobody notices."""
    run = shutil.copytree(whole, tmp_path / "run")
    newest = list_checkpoints(run / "checkpoints")[-1]
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-9", "step-12"]
    file = newest / ("manifest.json" if damage == "manifest" else "optimizer.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data[:-100] if damage in ("cut", "manifest") else data)
    if damage == "gone":
        file.unlink()
    assert load_checkpoint(run / "checkpoints").step == 9
    start(corpus, run, resume=True)
    assert_same(run, outcome(whole))
    assert load_checkpoint(run / "checkpoints").step == 12


def test_no_sound_checkpoint_is_one_clear_error(corpus, whole, tmp_path):
    """Guards against a run that silently begins anew, over what may still be saved by hand."""
    run = shutil.copytree(whole, tmp_path / "run")
    for path in list_checkpoints(run / "checkpoints"):
        (path / "state.json").write_text("{}")
    with pytest.raises(RunError, match="step-9/state.json: is damaged .*SHA-256.*no older"):
        start(corpus, run, resume=True)


def rewrite(folder, change):
    """Changes a checkpoint's state or tensors, and its manifest so that it fits."""
    state = json.loads((folder / "state.json").read_text())
    parts = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    change(state, parts)
    (folder / "state.json").write_text(json.dumps(state))
    for name, part in parts.items():
        save_file(part, folder / f"{name}.safetensors")
    sums = {path.name: checkpoint.sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "sha256": sums}))


@pytest.mark.parametrize(
    "change",
    [
        lambda state, parts: state.update(seconds="long"),
        lambda state, parts: state.update(step="12"),
        lambda state, parts: state.update(more=1),
        lambda state, parts: parts["model"].pop("bos"),
        lambda state, parts: parts["model"].update(bos=torch.zeros(3)),
        lambda state, parts: parts["optimizer"].pop("0.exp_avg"),
        lambda state, parts: parts["optimizer"].update({"0.exp_avg": torch.zeros(2)}),
        lambda state, parts: parts["optimizer"].update({"x": torch.zeros(2)}),
        lambda state, parts: parts["average"].clear(),
    ],
    ids=[
        "ill-typed",
        "ill-typed-step",
        "unknown",
        "no-tensor",
        "shape",
        "no-moment",
        "moment-shape",
        "foreign-moment",
        "no-average",
    ],
)
def test_a_strangers_checkpoint_can_at_worst_fail_to_load(corpus, whole, tmp_path, change):
    """Guards against tracebacks, and optimizers that go on with a state that is not theirs, where every sum is right
    but the content is of something else."""
    run = shutil.copytree(whole, tmp_path / "run")
    newest = list_checkpoints(run / "checkpoints")[-1]
    shutil.rmtree(run / "checkpoints" / "step-9")
    rewrite(newest, change)
    with pytest.raises(RunError, match="step.12") as caught:
        start(corpus, run, resume=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_newer_format_asks_for_an_upgrade(corpus, whole, tmp_path):
    """Guards against a newer checkpoint taken for a damaged one, and an older one trained on in its place."""
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "checkpoints" / "step-12" / "manifest.json").write_text('{"format": 2, "more": {}}')
    with pytest.raises(RunError, match="step-12/manifest.json: has format 2.*upgrade"):
        start(corpus, run, resume=True)


def test_a_sampling_that_was_typed_is_not_tuned_and_may_change(corpus, tmp_path, monkeypatch):
    """Guards against `--set sampling.temperature=0.8` that train refuses, or overwrites by a temperature of its own."""
    monkeypatch.setattr(
        "audiogen.commands.after_training.choose_sampling", lambda *_: pytest.fail("the sampling is tuned")
    )
    for steps, temperature in ((1, 0.8), (2, 0.5)):
        typed = [f"sampling.temperature={temperature}", "sampling.top_p=0.9"]
        run = start(corpus, tmp_path / "run", typed, steps=steps, resume=steps > 1)
        assert run.sampling == Sampling(temperature, top_p=0.9) == load_run(tmp_path / "run").config.sampling
    with pytest.raises(ConfigError, match="sampling.temprature: unknown.*sampling.temperature"):
        start(corpus, tmp_path / "other", ["sampling.temprature=1"])


# ---- what a resume refuses


def test_a_resume_keeps_to_the_settings_it_was_begun_with(corpus, whole, tmp_path):
    """Guards against a resume that ignores what it is told, or that obeys and ruins the run."""
    for more, key in (
        ({"overrides": ["training.learning_rate=0.5"]}, "training.learning_rate"),
        ({"overrides": ["backbone.dim=16"]}, "backbone.dim"),
        ({"backbone": "mlp"}, "backbone.kind"),
        ({"frontend": "mulaw"}, "frontend.kind"),
        ({"seed": 5}, "training.seed"),
        ({"overrides": ["frontend.codebook_size=4"]}, "frontend.codebook_size"),
    ):
        with pytest.raises(ConfigError, match=f"{key}: .* was started with .*can't change"):
            train(corpus, whole, resume=True, **more)
    with pytest.raises(ConfigError, match="training.learning_rat: unknown.*training.learning_rate"):
        train(corpus, whole, resume=True, overrides=["training.learning_rat=0.5"])
    with pytest.raises(RunError, match="holds a run already.*--resume"):
        train(corpus, whole)


def test_a_resume_keeps_to_the_files_it_was_begun_with(corpus, whole, tmp_path):
    """Guards against held-out files that wander into training, and a run's cache lost to a mistyped folder."""
    run = shutil.copytree(whole, tmp_path / "run")
    cache = (run / "cache" / "index.json").read_bytes()
    others, fewer = folder_of_notes(tmp_path / "other", [3000] * 8, seed=50), shutil.copytree(corpus, tmp_path / "few")
    for folder in (others, fewer):
        (folder / "note-00.wav").unlink()
        with pytest.raises(RunError, match="files are not those that .* was started with"):
            train(folder, run, resume=True)
        assert (run / "cache" / "index.json").read_bytes() == cache
    more = shutil.copytree(corpus, tmp_path / "more")
    folder_of_notes(more / "new", [3000], seed=60)
    with pytest.raises(RunError, match="files are not those that .* was started with"):
        train(more, run, resume=True)
    start(corpus, run, resume=True)
    assert_same(run, outcome(whole))


def test_names_decide_nothing_when_a_run_is_resumed(corpus, whole, tmp_path):
    """Guards against a run that looks for its held-out files under the names that they had."""
    for cached in (True, False):
        run, moved = shutil.copytree(whole, tmp_path / f"run-{cached}"), tmp_path / f"moved-{cached}"
        shutil.copytree(corpus, moved / "below")
        for number, path in enumerate(sorted((moved / "below").iterdir())):
            path.rename(moved / f"renamed-{9 - number}.wav")
        if not cached:
            shutil.rmtree(run / "cache")
        shutil.rmtree(run / "checkpoints" / "step-12")
        start(moved, run, resume=True)
        assert tensors(run / "model.safetensors") == tensors(whole / "model.safetensors")


def test_a_resume_takes_the_very_words_that_it_was_begun_with(corpus, tmp_path):
    """Guards against settings of a group of its own that are refused the second time, and a front-end that is named by
    its folder and ignored."""
    small = ["backbone.dim=8", "training.crop_frames=16", "training.batch_size=2", "training.sample_seconds=0.02"]
    words = {
        "frontend": "bpe",
        "backbone": "bigram",
        "overrides": ["frontend.base.kind=mulaw", "frontend.base.bits=3", "frontend.num_merges=4", *small],
    }
    train(corpus, tmp_path / "run", steps=1, **words)
    train(corpus, tmp_path / "run", steps=2, resume=True, **words)
    with pytest.raises(ConfigError, match="frontend.num_merges: .* was started with 4"):
        train(corpus, tmp_path / "run", steps=2, resume=True, frontend="bpe", overrides=["frontend.num_merges=5"])
    train(corpus, tmp_path / "other", "mulaw", "bigram", steps=1, overrides=["frontend.bits=3", *small])
    train(corpus, tmp_path / "run", str(tmp_path / "run"), steps=2, resume=True)
    with pytest.raises(RunError, match="other: is not the front-end that .*run was started with"):
        train(corpus, tmp_path / "run", str(tmp_path / "other"), steps=2, resume=True)


def test_a_front_end_that_was_saved_by_itself_is_not_trained_over(corpus, whole, tmp_path):
    """Guards against a fit of hours that `--out` takes for a run that was just begun."""
    save_frontend(load_frontend(whole), tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    with pytest.raises(RunError, match="mine: holds a saved front-end"):
        train(corpus, tmp_path / "mine", "mulaw", "bigram", steps=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


def test_a_signal_to_the_whole_group_is_saved_with_loader_processes_too(corpus, tmp_path):
    """Guards against loader processes that die of a SIGTERM to all (timeout, a batch system) and take the save with
    them."""
    (tmp_path / "loop.py").write_text(GROUP)
    done = subprocess.run(
        [sys.executable, tmp_path / "loop.py", corpus, tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )
    assert "continue with the same command and --resume" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.returncode == 0, done.stderr
    assert list_checkpoints(tmp_path / "run" / "checkpoints")


#: Trains with a loader process, and sends SIGTERM to its whole group once ten steps are done.
GROUP = """
import logging, os, signal, sys
from audiogen.training import trainer as loop
from audiogen.commands.tokenize import tokenize
from audiogen.commands.train import train
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    step = loop.Trainer._step
    def watched(self, loader):
        if self.progress.step == 10:
            os.killpg(0, signal.SIGTERM)
        return step(self, loader)
    loop.Trainer._step = watched
    try:
        train(sys.argv[1], sys.argv[2], "mulaw", "bigram", steps=10_000, overrides=[
            "data.num_workers=1", "backbone.dim=8", "training.crop_frames=16", "training.batch_size=2"])
    except KeyboardInterrupt:
        pass
"""


def test_ctrl_c_after_training_says_how_to_get_the_rest(corpus, whole, tmp_path, monkeypatch, caplog):
    """Guards against a trained run that looks lost, and against one that gets no report and samples afterwards."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch, caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        patch.setattr(sys.modules["audiogen.commands.train"], "report", lambda *_: signal.raise_signal(signal.SIGINT))
        start(corpus, run)
    assert "training is finished and saved" in caplog.text and "--resume" in caplog.text
    assert not (run / "samples" / "generated-0.wav").exists()
    start(corpus, run, resume=True)
    assert (run / "samples" / "generated-0.wav").exists()
    assert_same(run, outcome(whole))


def test_a_lost_cache_is_made_again(corpus, whole, tmp_path):
    """Guards against a run that can't be resumed because someone made room by removing its cache."""
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "cache")
    shutil.rmtree(run / "checkpoints" / "step-12")
    start(corpus, run, resume=True)
    assert_same(run, outcome(whole))


def test_a_cache_of_another_front_end_is_refused(corpus, whole, tmp_path):
    """Guards against a run resumed on codes that mean something else."""
    tokenize(corpus, tmp_path / "cache", "mulaw", overrides=["frontend.bits=3"])
    with pytest.raises(RunError, match="encoded by another front-end"):
        train(tmp_path / "cache", whole, resume=True)


# ---- a full disk


def full_disk(monkeypatch, number, failing):
    """The named file is cut short half-way, as on a full disk."""
    write_bytes = Path.write_bytes

    def write(path, data):
        if path.name.startswith(failing):
            write_bytes(path, data[: len(data) // 2])
            raise OSError(number, os.strerror(number))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_earlier_checkpoints_good(corpus, whole, tmp_path, monkeypatch, number):
    """Guards against the last good checkpoint removed to make room for one that never came, half of one left behind to
    fill the disk, and a message that names neither path nor bytes."""
    run = tmp_path / "run"
    interrupt_at(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        start(corpus, run)
    with monkeypatch.context() as patch:
        full_disk(patch, number, "optimizer")
        with pytest.raises(AudiogenError, match=r"step-6: .*the disk is full, \d{4,} bytes written.*--resume"):
            start(corpus, run, resume=True)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-3", "step-5"}
    assert load_checkpoint(run / "checkpoints").step == 5
    start(corpus, run, resume=True)
    assert_same(run, outcome(whole))


def test_a_disk_that_fills_up_while_the_best_weights_are_kept(corpus, whole, tmp_path, monkeypatch):
    """Guards against best weights written over by half a file, and safetensors' own error, which is no OSError."""
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-12")
    before = (run / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        full_disk(patch, errno.ENOSPC, ".model-")
        with pytest.raises(
            AudiogenError, match=r"model.safetensors: can't be written \(the disk is full, \d{4,} bytes"
        ):
            start(corpus, run, resume=True)
    assert (run / "model.safetensors").read_bytes() == before
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    start(corpus, run, resume=True)
    assert_same(run, outcome(whole))


# ---- SIGKILL


#: As above, but that every step is judged and saved.
FREQUENT = [item for item in OVERRIDES if "evaluations" not in item] + [
    f"training.evaluations={STEPS}",
    "training.patience=null",
]


class Killed:
    """A run that is started, killed and resumed in processes of its own."""

    def __init__(self, corpus: Path, run: Path, log: Path):
        self.run, self.log = run, log
        self.arguments = [
            "train",
            corpus,
            "--out",
            run,
            "--frontend",
            "melvq",
            "--backbone",
            "gpt",
            "--resume",
            "--steps",
            str(STEPS),
            *(word for item in FREQUENT for word in ("--set", item)),
        ]

    def half_written(self) -> set[tuple[str, int]]:
        """What a save has begun and has not ended, with the time of its last change: a kill leaves it behind."""
        found = set()
        for path in [
            *(self.run / "checkpoints").glob(".step-*.tmp"),
            *self.run.glob(".model-*.tmp.*"),
            *self.run.glob(".tmp*"),
        ]:
            with contextlib.suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_ctime_ns))
        return found

    def to_the_end(self) -> float:
        """Runs until it is finished -> the seconds that took."""
        began = time.monotonic()
        result = Command(self.log, *self.arguments).wait()
        assert result.code == 0, result.err
        return time.monotonic() - began

    def kill(self, seconds: float | None, dice: random.Random) -> str:
        """Starts or resumes it and kills it after so many seconds, or, if None, while it saves -> "saving",
        "elsewhere", or "finished" if that was too late."""
        before = self.half_written()
        command = Command(self.log, *self.arguments)
        if seconds is None:
            for _ in range(dice.randint(1, 3)):  # which save of this start it is
                command.wait_until(lambda: not self.half_written() - before)
                command.wait_until(lambda: bool(self.half_written() - before))
            time.sleep(dice.choice((0, 0.003, 0.03)) * dice.random())  # disks differ in how long a save takes
        else:
            time.sleep(seconds)
        if command.process.exitcode is None:
            command.send(signal.SIGKILL)
        result = command.wait()
        assert result.code in (0, -signal.SIGKILL), result.err
        if result.code == 0:
            return "finished"
        return "saving" if self.half_written() - before else "elsewhere"


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_nothing(corpus, tmp_path):
    """Guards against a save that is not all or nothing: after 20 kills at random moments, 10 of them in the middle of a
    save, the run resumes each time and ends with the weights, the metrics and the sound of a run left in peace."""
    dice, log = random.Random(0), tmp_path / "log"
    peaceful = Killed(corpus, tmp_path / "peaceful", log)
    peaceful.to_the_end()  # the first process has much to import
    whole, count = outcome(peaceful.run), {"saving": 0, "elsewhere": 0}
    seconds = Killed(corpus, tmp_path / "again", log).to_the_end()
    for number in range(30):
        run, ended = Killed(corpus, tmp_path / f"run-{number}", log), False
        while not ended and count != {"saving": 10, "elsewhere": 10}:
            anywhere = count["saving"] == 10 or count["elsewhere"] < 10 and dice.random() < 0.5
            where = run.kill(dice.uniform(0, seconds) if anywhere else None, dice)
            ended = where == "finished"
            if not ended:
                count[where] = min(10, count[where] + 1)
        run.to_the_end()
        assert_same(run.run, whole)
        assert not [path for path in run.run.rglob("*") if ".tmp" in path.name], "half-written files were left behind"
        if count == {"saving": 10, "elsewhere": 10}:
            return
    pytest.fail(f"only {count} kills in 30 runs")


def test_two_processes_do_not_train_into_one_folder(corpus, tmp_path):
    """Guards against a second `--resume` beside a first that had not stopped: each deleted what the other saved, and
    both lost their time. Killed, the first leaves the folder free; what it held is gone on with."""
    out = tmp_path / "run"
    first = Command(
        tmp_path,
        "train",
        corpus,
        "--out",
        out,
        "--frontend",
        "melvq",
        "--backbone",
        "gpt",
        "--steps",
        "1000000",
        *(word for override in OVERRIDES for word in ("--set", override)),
    )
    assert first.wait_until(lambda: holds_run(out))
    with pytest.raises(RunError, match="run: another process is writing to it"):
        train(corpus, out, steps=1, resume=True)
    first.send(signal.SIGKILL)
    first.wait()
    assert train(corpus, out, steps=2, resume=True).config.training.steps == 2
    assert not (out / ".lock").exists()


def test_a_lock_leaves_nothing_behind(tmp_path):
    """Guards against an empty folder made for a command that was refused; what was there stays, and a file is left
    alone."""
    with pytest.raises(ConfigError), files.alone_in(tmp_path / "new" / "run"):
        raise ConfigError("refused")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with files.alone_in(tmp_path / "old"):
        assert (tmp_path / "old" / ".lock").exists()
    assert not any((tmp_path / "old").iterdir())
    (tmp_path / "file").write_text("mine")
    with files.alone_in(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
