"""Several processes train one model: the same bytes as one process, and one line for whatever goes wrong."""

import hashlib
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from corpus import TINY_VOCODER, folder_of_notes, tiny_settings
from loops import events
from processes import audiogen as run_audiogen
from ranks import Faulty, Poisoned, Ranks, command, reports, together, train_walks

from audiogen.commands.train_frontend import train_frontend
from audiogen.data import is_cache
from audiogen.distributed import TreeSum, World, of_slurm
from audiogen.errors import ConfigError
from audiogen.frontends.neural import fit
from audiogen.runs.training_config import DistributedConfig
from audiogen.training.checkpoint import list_checkpoints

CPU = torch.device("cpu")


def digests(folder):
    """SHA-256 of the newest weights, average and optimizer, and all that the metrics say but the time."""
    newest = list_checkpoints(folder / "checkpoints")[-1]
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in newest.glob("*.safetensors")}
    assert sums.keys() >= {"model.safetensors", "average.safetensors", "optimizer.safetensors"}
    said = [
        {name: value for name, value in event.items() if name != "seconds"}
        for kind in ("train", "held_out")
        for event in events(folder, kind)
    ]
    return newest.name, sums, said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process ends with, for each number of batches per step."""
    found = {}
    for accumulation in (4, 12):
        folder = tmp_path_factory.mktemp(f"alone-{accumulation}")
        together(folder, 1, train_walks, folder, Faulty(folder, None, 0), 5, accumulation)
        found[accumulation] = digests(folder)
    return found


# ---- the order of sums


def test_the_tree_is_the_one_that_is_drawn():
    """Guards against another order of additions, which rounds differently, and against buffers for all summands."""
    for number in range(1, 40):
        x = torch.randn(number, 100) * 10 ** torch.randn(number, 1)
        total = TreeSum()
        for row in x:
            total.add([row.clone()])
            assert len(total._sums) <= 6
        rows = list(x)
        while len(rows) > 1:  # level by level
            pairs = [a + b for a, b in zip(rows[::2], rows[1::2], strict=False)]
            rows = pairs + rows[2 * len(pairs) :]
        assert torch.equal(total.result()[0], rows[0]), number


@pytest.mark.parametrize("size, batches", [(2, 8), (4, 8), (8, 8), (3, 12), (5, 20), (7, 28)])
def test_shares_are_subtrees(size, batches):
    """Guards against shares whose sums, added up, are another tree than that of one process."""
    x, ranks = torch.randn(batches, 100), TreeSum()
    for rank in range(size):
        own = TreeSum()
        for number in World(rank, size).share(batches):
            own.add([x[number].clone()])
        ranks.add(own.result())
    whole = TreeSum()
    for row in x:
        whole.add([row.clone()])
    assert torch.equal(ranks.result()[0], whole.result()[0])
    assert [number for rank in range(size) for number in World(rank, size).share(batches)] == list(range(batches))


@pytest.mark.parametrize("size, batches, advice", [(3, 4, "as 3"), (2, 1, "as 2"), (2, 6, "as 8"), (4, 12, "as 16")])
def test_what_can_not_be_shared_out_is_refused(size, batches, advice):
    """Guards against ranks of which some wait for batches that never come, and sums that depend on the number."""
    with pytest.raises(ConfigError, match=f"training.accumulation: {batches} .* {size} processes; .* such {advice},"):
        World(0, size).share(batches)


def test_what_need_not_be_exact_is_shared_out_in_any_equal_parts():
    """Guards against a rule of exact sums where torch sums in an order of its own."""
    assert list(World(1, 2).share(6, exact=False)) == [3, 4, 5]
    with pytest.raises(ConfigError, match="training.accumulation"):
        World(1, 2).share(5, exact=False)


# ---- the same bytes


@pytest.mark.parametrize("size, accumulation", [(2, 4), (4, 4), (3, 12)])
def test_any_number_of_processes_gives_the_same_bytes(alone, tmp_path, size, accumulation):
    """Guards against sums, dropout, losses, scores or clips that depend on who computes them."""
    together(tmp_path, size, train_walks, tmp_path, Faulty(tmp_path, None, 0), 5, accumulation)
    assert digests(tmp_path) == alone[accumulation]


def test_a_run_may_change_the_number_of_processes(alone, tmp_path):
    """Guards against a checkpoint that only as many processes can continue as have written it."""
    for size, stopped_at in ((4, 1), (2, 6), (1, 13), (4, None)):
        walks = Faulty(tmp_path, "term" if stopped_at else None, stopped_at)
        together(tmp_path, size, train_walks, tmp_path, walks, 5, 4)
    assert digests(tmp_path) == alone[4]


def test_torchs_own_sum_is_equal_within_rounding(alone, tmp_path):
    """Guards against a gradient that DDP divides by the number of processes, and we do again."""
    together(tmp_path, 2, train_walks, tmp_path, Faulty(tmp_path, None, 0), 5, 4, DistributedConfig(exact=False))
    step, _, said = digests(tmp_path)
    assert step == alone[4][0]
    for one, other in zip(said, alone[4][2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def train_codec(corpus, out):
    fit.CROP_SECONDS = 0.2
    small = {**tiny_settings("codec"), "adversarial_from": 0.4, "discriminator_channels": 2}
    train_frontend("codec", [corpus], out, small, steps=8, resume=True, accumulation=4)


def test_a_codec_is_trained_with_the_same_bytes(corpus, tmp_path):
    """Guards against codebooks, balanced losses or discriminators that see a share of the step, and against statistics
    that depend on who takes them."""
    found = []
    for size in (1, 2, 4):
        out = tmp_path / str(size) / "codec"
        together(tmp_path / str(size), size, train_codec, corpus, out)
        newest = list_checkpoints(out / "checkpoints")[-1]
        files = {path.name: path.read_bytes() for path in (*out.glob("*.safetensors"), *newest.glob("*.safetensors"))}
        found.append((newest.name, files))
    assert found[0][0] == "step-8"
    assert found[0][1].keys() >= {"learner.safetensors", "discriminators_optimizer.safetensors"}
    assert found[0] == found[1] == found[2]


def train_vocoder(corpus, out):
    small = {**tiny_settings("mel"), "vocoder": {**TINY_VOCODER, "discriminator_channels": 2, "adversarial_from": 0.4}}
    train_frontend("mel", [corpus], out, small, steps=6, resume=True, accumulation=2)


def test_a_vocoder_is_trained_with_the_same_bytes(corpus, tmp_path):
    """Guards against statistics of frames, losses or discriminators of one process's share."""
    found = []
    for size in (1, 2):
        out = tmp_path / str(size) / "vocoder"
        together(tmp_path / str(size), size, train_vocoder, corpus, out)
        newest = list_checkpoints(out / "checkpoints")[-1]
        files = {path.name: path.read_bytes() for path in (*out.glob("*.safetensors"), *newest.glob("*.safetensors"))}
        found.append((newest.name, files))
    assert found[0][0] == "step-6" and len(found[0][1]) > 2
    assert found[0] == found[1]


def train_semantic_encoder(corpus, out, *more):
    small = [f"--set=frontend.{name}={value}" for name, value in tiny_settings("semantic").items()]
    sys.argv = ["semantic_encoder.py", str(corpus), "--out", str(out), "--accumulation", "2", *small, *more]
    runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "semantic_encoder.py"), run_name="__main__")


def test_a_semantic_encoder_is_trained_with_the_same_bytes(tmp_path):
    """Guards against batches that several processes draw alike, and units of the second round that differ."""
    for seed, kind in enumerate(("low", "high")):
        folder_of_notes(tmp_path / "corpus" / kind, [6000 + 1000 * seed] * 3)
    found = []
    for size in (1, 2):
        out = tmp_path / str(size) / "encoder"
        for steps in (3, 5):  # continued
            together(
                tmp_path / str(size), size, train_semantic_encoder, tmp_path / "corpus", out, "--steps", str(steps)
            )
        newest = list_checkpoints(out / "checkpoints")[-1]
        found.append(
            {path.name: path.read_bytes() for path in (*out.glob("*.safetensors"), *newest.glob("*.safetensors"))}
        )
    assert found[0].keys() >= {"encoder.safetensors", "optimizer.safetensors", "units.safetensors"}
    assert newest.name == "step-5" and found[0] == found[1]


# ---- what goes wrong


@pytest.mark.parametrize("at", [1, 14])
def test_a_killed_rank_is_reported_in_one_line_and_a_restart_ends_with_the_same_bytes(alone, tmp_path, at):
    """Guards against ranks that hang, a traceback each, addresses of the dead that the store kept, and half a step."""
    walks = Faulty(tmp_path, "kill", at)
    ranks = Ranks(tmp_path, 4, train_walks, tmp_path, walks, 5, 4)
    results = ranks.wait()
    assert (tmp_path / f"faulted-{at}").exists()
    dead = at % 4
    assert [result.code for result in results] == [-signal.SIGKILL if rank == dead else 1 for rank in range(4)]
    [line] = reports(results)
    assert f"rank {dead} (" in line and "of 4 processes ended; what was saved stays" in line
    assert not any("Traceback" in result.err for result in results)
    again = Ranks(tmp_path, 4, train_walks, tmp_path, walks, 5, 4, store=ranks.store, attempt=1).wait()
    assert [result.code for result in again] == [0] * 4, [result.err for result in again]
    assert digests(tmp_path) == alone[4]


@pytest.mark.parametrize("at, dead", [(4, 0), (6, 2)])
def test_without_torchrun_a_lost_rank_is_named_and_no_other(tmp_path, at, dead):
    """Guards against each of the others being called lost, by each of them, where the store has ended with the first
    rank, as in a step of srun."""
    walks = Faulty(tmp_path, "kill", at)
    results = Ranks(tmp_path, 4, train_walks, tmp_path, walks, 5, 4, torchrun=False).wait()
    assert [result.code for result in results] == [-signal.SIGKILL if rank == dead else 1 for rank in range(4)]
    [line] = reports(results)
    assert f"rank {dead}" in line and "of 4 processes ended; what was saved stays" in line
    assert not any(f"rank {other}" in line for other in range(4) if other != dead)


def test_an_error_of_one_rank_is_reported_by_that_rank_alone(tmp_path):
    """Guards against three ranks that speak of lost connections beside the one that knows why."""
    results = Ranks(tmp_path, 4, train_walks, tmp_path, Faulty(tmp_path, "error", 6), 5, 4).wait()
    assert [result.code for result in results] == [1] * 4
    assert "ValueError: made up" in results[2].err
    assert reports(results) == [] and sum("Traceback" in result.err for result in results) == 1


def test_a_rank_that_hangs_is_named_after_the_timeout(alone, tmp_path):
    """Guards against a run that stands still for good, and other weights after a restart."""
    walks, config = Faulty(tmp_path, "hang", 11), DistributedConfig(timeout=8)
    ranks = Ranks(tmp_path, 2, train_walks, tmp_path, walks, 5, 4, config)
    ranks.processes[0].join(240)
    ranks.send(1, signal.SIGKILL)
    results = ranks.wait()
    [line] = reports(results)
    assert "rank 1 (" in line and "did not answer for 8 s" in line and results[0].code == 1
    again = Ranks(tmp_path, 2, train_walks, tmp_path, walks, 5, 4, store=ranks.store, attempt=1).wait()
    assert [result.code for result in again] == [0] * 2, [result.err for result in again]
    assert digests(tmp_path) == alone[4]


def waits_for_first(seconds):
    with World.join() as world, world.connected(CPU, 4.0):
        world.first_does(lambda: time.sleep(seconds))
        print("done")
        world.first_does(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_first_rank_may_take_its_time_but_not_die_while_the_others_wait(tmp_path):
    """Guards against ranks that wait for good for a checkpoint of one that was killed, and that give up on one which
    encodes a large folder."""
    results = Ranks(tmp_path, 3, waits_for_first, 6.0).wait()
    assert [result.code for result in results] == [-signal.SIGKILL, 1, 1]
    assert [result.out for result in results[1:]] == ["done\n"] * 2
    [line] = reports(results)
    assert "rank 0 (" in line and "of 3 processes did not answer for 4 s" in line


def test_a_loss_that_is_no_number_stops_all_ranks_with_one_line(tmp_path):
    """Guards against ranks that wait for one that has stopped, a line from each of them, and a step that was taken."""
    walks = Poisoned(tmp_path, 9)
    ranks = Ranks(tmp_path, 4, train_walks, tmp_path, walks, 5, 4)
    results = ranks.wait()
    assert [result.code for result in results] == [1] * 4
    [line] = reports(results)
    assert "step 3: the loss is not a number" in line and "take-9.wav; no step" in line
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step-2"
    again = Ranks(tmp_path, 4, train_walks, tmp_path, walks, 5, 4, store=ranks.store, attempt=1).wait()
    assert [result.code for result in again] == [0] * 4, [result.err for result in again]
    together(tmp_path / "alone", 1, train_walks, tmp_path / "alone", Poisoned(tmp_path, None), 5, 4)
    assert digests(tmp_path) == digests(tmp_path / "alone")


def test_a_signal_to_one_rank_stops_all_after_the_step(alone, tmp_path):
    """Guards against a signal that only the first rank hears, and a checkpoint of half the ranks."""
    walks = Faulty(tmp_path, "term", 9)
    results = together(tmp_path, 2, train_walks, tmp_path, walks, 5, 4)
    assert {result.out for result in results} == {"interrupted 3\n"}
    together(tmp_path, 2, train_walks, tmp_path, walks, 5, 4)
    assert digests(tmp_path) == alone[4]


# ---- the command

SMALL = [
    "backbone.dim=8",
    "backbone.num_layers=1",
    "backbone.num_heads=2",
    "backbone.dropout=0.3",
    "training.crop_frames=16",
    "training.batch_size=2",
    "training.average=0.7",
    "training.evaluations=2",
    "training.sample_seconds=0.02",
    "sampling.temperature=1",
    *(f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()),
]


def words(corpus, out, *more):
    chosen = [*SMALL, *more]
    fixed = ["train", str(corpus), "--out", str(out), "--frontend", "melvq", "--backbone", "gpt", "--steps", "4"]
    return [*fixed, "--resume", *(word for setting in chosen for word in ("--set", setting))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return folder_of_notes(tmp_path_factory.mktemp("corpus"), [3000] * 5 + [700] * 3)


def test_the_command_trains_with_two_processes_as_with_one(corpus, tmp_path):
    """The whole way: scan, fit, encode, split, train, evaluate, samples and report. Guards against a second process
    that writes, prints, or trains on other files, and a config that holds the number of processes."""
    found = []
    for size in (1, 2):
        out = tmp_path / str(size) / "run"
        first, *others = together(tmp_path / str(size), size, command, *words(corpus, out, "training.accumulation=2"))
        assert "listen: open" in first.err
        assert all(result.err == result.out == "" for result in others)
        names = {path.relative_to(out).as_posix() for path in out.rglob("*") if "tensorboard" not in str(path)}
        contents = {name: (out / name).read_bytes() for name in names if name.endswith((".wav", ".safetensors"))}
        found.append(
            (names, contents, digests(out), (out / "config.json").read_text(), (out / "split.json").read_bytes())
        )
    assert found[0] == found[1]


def test_without_a_number_each_process_adds_a_batch(corpus, tmp_path):
    """Guards against a command that only works if one knows what to set. And against a folder that can't be used, or a
    setting that does not fit, reported by each process, or after the run has begun."""
    out = tmp_path / "run"
    first, *_ = together(tmp_path, 2, command, *words(corpus, out))
    assert "2 processes train together, with 1 batches each per step" in first.err
    assert '"accumulation": 2' in (out / "config.json").read_text()
    for size, typed, expected in (
        (2, words(tmp_path / "gone", out), "gone: there is no such folder"),
        (3, words(corpus, tmp_path / "new", "training.accumulation=4"), "can't be shared out among 3 processes"),
        (3, words(corpus, out), "can't be shared out among 3 processes"),
    ):
        results = Ranks(tmp_path / "refused", size, command, *typed).wait()
        [line] = reports(results)
        assert expected in line
        assert all(result.err == "" and result.code != 0 for result in results[1:])
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank in /proc")
def test_torchrun_restarts_after_a_kill(corpus, tmp_path):
    """The whole way with torchrun itself. Guards against its own options taking ours, and its one store for all
    attempts."""
    cache, out, whole = tmp_path / "cache", tmp_path / "run", tmp_path / "whole"
    settings_of = [word for setting in SMALL if setting.startswith("frontend.") for word in ("--set", setting)]
    run_audiogen(tmp_path, "tokenize", corpus, cache, "--frontend", "melvq", *settings_of)
    assert is_cache(cache)
    more = [setting for setting in SMALL if not setting.startswith("frontend.")]
    typed = ["--backbone", "gpt", "--steps", "40", "--resume", "--set", "training.accumulation=2"]
    typed += [word for setting in more for word in ("--set", setting)]
    assert run_audiogen(tmp_path, "train", cache, "--out", whole, *typed).code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*torchrun, "--max-restarts", "2", "-m", "audiogen", "train", str(cache), "--out", str(out), *typed],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    killed = False
    while process.poll() is None and not killed:
        if list_checkpoints(out / "checkpoints"):
            os.kill(rank_of(process.pid, 1), signal.SIGKILL)
            killed = True
        else:
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                pass
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and killed, err
    assert [line for line in err.splitlines() if line.startswith("audiogen: ")] == [
        line for line in err.splitlines() if "rank 1 (" in line and "of 2 processes ended" in line
    ]
    assert digests(out) == digests(whole)


def rank_of(agent, rank):
    """The process id of a rank that torchrun has started."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        if f"RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"there is no rank {rank}")


# ---- who is in the world


def test_one_process_is_alone(monkeypatch):
    """Guards against a run that waits for others because it was started from a batch script, or by torchrun for one."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")):
        monkeypatch.setenv(name, value)
        with World.join() as world:
            assert (world.rank, world.size, world.first) == (0, 1, True)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert of_slurm(os.environ) == {}


@pytest.mark.parametrize(
    "nodes, first", [("gpu[003-010,12]", "gpu003"), ("a,b", "a"), ("node7", "node7"), ("x-1-[2,4]", "x-1-2")]
)
def test_a_step_of_slurm_is_a_world(nodes, first):
    """Guards against ranks that look for each other on a login node, or on node names that Slurm abbreviates."""
    step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "81234567"}
    found = of_slurm({**step, "SLURM_STEP_NODELIST": nodes, "SLURM_NTASKS": "16"})
    assert (found["MASTER_ADDR"], found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == (first, "5", "8", "1")
    assert 1024 < int(found["MASTER_PORT"]) < 65536
    assert of_slurm({**step, "SLURM_STEP_NODELIST": nodes, "MASTER_ADDR": "here"})["MASTER_ADDR"] == "here"
    assert of_slurm({**step, "RANK": "0"}) == {}  # torchrun in a step
