"""Each process holds a share of the weights: the bytes of one process, and checkpoints that any number can continue."""

import signal
from contextlib import contextmanager

import pytest
import torch
from corpus import folder_of_notes, tiny_settings
from loops import Walks, events
from ranks import Faulty, Ranks, command, reports, together, train_walks
from torch import nn

import audiogen
from audiogen.distributed import World
from audiogen.errors import ConfigError
from audiogen.runs.training_config import DistributedConfig
from audiogen.training.checkpoint import (
    Checkpoint,
    Rows,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_shares,
)
from audiogen.training.gradients import compiled, squares
from audiogen.utils.tensors import hash_tensors

SHARDED = DistributedConfig(kind="sharded", timeout=120)
GROUPS = DistributedConfig(kind="sharded", shards=2, timeout=120)
STEPS, ACCUMULATION = 4, 4
#: A quarter of each weight fills whole vectors, in which AdamW rounds in one way alone.
SIZE = 64


def train(folder, size, distributed=SHARDED, walks=None, check=True):
    walks = walks or Faulty(folder, None, 0, SIZE)
    ranks = Ranks(folder, size, train_walks, folder, walks, STEPS, ACCUMULATION, distributed)
    results = ranks.wait()
    assert not check or [result.code for result in results] == [0] * size, [result.err for result in results]
    return results, ranks


def found(folder):
    """The hash of all tensors of the newest checkpoint, however many files hold them, and what the metrics say."""
    tensors = load_checkpoint(folder / "checkpoints").tensors
    assert tensors.keys() == {"model", "average", "optimizer"}
    said = [
        {name: value for name, value in event.items() if name != "seconds"}
        for kind in ("train", "held_out")
        for event in events(folder, kind)
    ]
    return {name: hash_tensors(some) for name, some in tensors.items()}, said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(folder, 1)
    return folder, found(folder)


# ---- the same bytes


@pytest.mark.parametrize("size, distributed", [(4, SHARDED), (4, GROUPS)], ids=["4", "2 groups of 2"])
def test_shares_of_the_weights_are_trained_to_the_bytes_of_one_process(alone, tmp_path, size, distributed):
    """Guards against gloo's sums for means, sums in another order, a norm of a share, dropout or losses of another
    batch, and an average or a score of half of the weights."""
    train(tmp_path, size, distributed)
    assert found(tmp_path) == alone[1]
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json"}  # nothing that is unpickled
    written = {path.name for path in newest.glob("model*")}
    assert written == {f"model-{i}-of-{distributed.shards or size}.safetensors" for i in range(distributed.shards or 4)}


def test_a_run_continues_from_shares_to_whole_weights_and_back(alone, tmp_path):
    """Guards against checkpoints that only as many processes can continue as have written them, in the same way."""
    plan = [(4, SHARDED, 1), (2, SHARDED, 6), (1, SHARDED, 9), (4, GROUPS, None)]
    for size, distributed, stopped_at in plan:
        kind = "term" if stopped_at else None
        train(tmp_path, size, distributed, Faulty(tmp_path, kind, stopped_at, SIZE))
        some = {path.name for path in list_checkpoints(tmp_path / "checkpoints")[-1].glob("model*")}
        assert len(some) == (distributed.shards or size)
    assert found(tmp_path) == alone[1]


@pytest.mark.parametrize("shards", [None, 2])
def test_torchs_own_sums_and_weights_of_any_size_are_equal_within_rounding(tmp_path, shards):
    """Guards against gradients that are divided by the number of processes twice, or not at all. Of 9 rows, the last of
    four processes holds none."""
    train(tmp_path / "1", 1, walks=Faulty(tmp_path, None, 0))
    distributed = DistributedConfig(kind="sharded", shards=shards, exact=False, timeout=120)
    train(tmp_path / "4", 4, distributed, Faulty(tmp_path, None, 0))
    one, other = (events(tmp_path / name, "train") for name in ("1", "4"))
    assert one[0]["grad_norm"] == pytest.approx(other[0]["grad_norm"], rel=1e-5)
    mine, theirs = (load_checkpoint(tmp_path / name / "checkpoints").tensors["model"] for name in ("1", "4"))
    assert mine.keys() == theirs.keys()
    for name, x in mine.items():
        torch.testing.assert_close(x, theirs[name], rtol=1e-4, atol=1e-5)


# ---- checkpoints


class One(World):
    """A rank that writes when the others have, or are yet to."""

    def gather(self, x):
        return x

    def meet(self):
        pass

    def first_does(self, work):
        return work() if self.first else None


def shares(folder, step=1, of=3):
    """A checkpoint of a table of 7 rows, a short vector, and a number, by three ranks; the whole tensors."""
    whole = {"table": torch.randn(7, 2), "short": torch.randn(2), "number": torch.tensor(5.0)}
    for rank in (0, 2, 1, 0):  # the first rank begins and ends, as the others wait for it
        rows = {name: cut(len(whole[name]), rank, of) for name in ("table", "short")}
        own = {name: x[rows[name].start : rows[name].stop] if name in rows else x for name, x in whole.items()}
        world = Halfway(rank) if rank == 0 else One(rank, of)
        world.late = rank == 0 and (folder / f".step-{step}.tmp").exists()
        save_shares(folder, Checkpoint(step, {"model": own}, {"a": 1}, {"model": rows}), world, of)
    return whole


class Halfway(One):
    late = False

    def first_does(self, work):
        if self.late == (work.__name__ == "finish"):
            work()


def cut(rows, place, of):
    each = -(-rows // of)
    return Rows(min(rows, place * each), min(rows, (place + 1) * each), rows)


def test_shares_are_read_whole_or_cut_in_another_way(tmp_path):
    """Guards against rows that are lost, doubled or out of order where the cuts of writer and reader differ."""
    whole = shares(tmp_path)
    read = load_checkpoint(tmp_path).tensors["model"]
    assert read.keys() == whole.keys() and all(torch.equal(read[name], x) for name, x in whole.items())
    save_checkpoint(tmp_path / "plain", Checkpoint(1, {"model": whole}, {}))
    for folder in (tmp_path, tmp_path / "plain"):
        for of in (1, 2, 4, 9):
            layouts = [
                {"model": {name: cut(len(whole[name]), i, of) for name in ("table", "short")}} for i in range(of)
            ]
            parts = [load_checkpoint(folder, layout=layout).tensors["model"] for layout in layouts]
            for name in ("table", "short"):
                assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), (folder, of)
            assert all(part["number"] == 5 for part in parts)


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_share_is_found_and_the_checkpoint_before_is_used(tmp_path, damage):
    """Guards against a share whose loss leaves a smaller tensor, without a word."""
    shares(tmp_path, 1)
    shares(tmp_path, 2)
    path = tmp_path / "step-2" / "model-1-of-3.safetensors"
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert load_checkpoint(tmp_path).step == 1


# ---- what goes wrong


def test_a_killed_process_is_reported_in_one_line_and_a_restart_ends_with_the_same_bytes(alone, tmp_path):
    """Guards against a traceback of each process whose forward or backward pass can't exchange weights, and against a
    checkpoint of which the dead process has not written its share."""
    walks = Faulty(tmp_path, "kill", 14, SIZE)
    results, ranks = train(tmp_path, 4, GROUPS, walks, check=False)
    assert [result.code for result in results] == [1, 1, -signal.SIGKILL, 1]
    [line] = reports(results)
    assert "rank 2 (" in line and "of 4 processes ended; what was saved stays" in line
    assert not any("Traceback" in result.err for result in results)
    again = Ranks(
        tmp_path, 4, train_walks, tmp_path, walks, STEPS, ACCUMULATION, GROUPS, store=ranks.store, attempt=1
    ).wait()
    assert [result.code for result in again] == [0] * 4, [result.err for result in again]
    assert found(tmp_path) == alone[1]


@pytest.mark.parametrize(
    "size, batches, exact, advice",
    [(6, 12, True, "set it to 6, start a power of two"), (4, 6, True, "such as 4,"), (4, 6, False, "such as 4,")],
)
def test_what_can_not_be_shared_out_is_refused(size, batches, exact, advice):
    """Guards against sums in another order than one process's, and ranks that wait for batches that never come."""
    with pytest.raises(ConfigError, match=f"training.accumulation: {batches} .* {size} processes.* {advice}"):
        World(0, size).share(batches, exact, in_turn=True)


def test_processes_take_batches_in_turn():
    """Guards against shares whose sums over the ranks are not subtrees."""
    assert [list(World(rank, 4).share(8, in_turn=True)) for rank in range(4)] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert list(World(5, 6).share(6, in_turn=True)) == [5]
    assert list(World(1, 3).share(6, exact=False, in_turn=True)) == [1, 4]


def test_groups_that_do_not_fit_are_refused():
    """Guards against processes that are in no group, and sums in another order than one process's."""
    with pytest.raises(ConfigError, match="distributed.shards: 4 processes can't be divided into groups of 3"):
        World(0, 4).check_groups(3, exact=False)
    with pytest.raises(ConfigError, match="distributed.shards: exact sums need groups of a power of two"):
        World(0, 6).check_groups(3, exact=True)
    World(0, 6).check_groups(6, exact=True)
    World(0, 6).check_groups(3, exact=False)


# ---- the command

SETTINGS = [
    "backbone.dim=16",
    "backbone.num_layers=2",
    "backbone.num_heads=2",
    "backbone.dropout=0.3",
    "backbone.recompute=true",
    "training.crop_frames=16",
    "training.batch_size=2",
    "training.average=0.7",
    "training.evaluations=2",
    "training.sample_every=1",
    "training.sample_seconds=0.02",
    "training.scheduled_sampling=0.5",
    "training.precision=bf16",
    "sampling.temperature=1",
    "distributed.kind=sharded",
    "distributed.exact=false",
    *(f"frontend.{name}={value}" for name, value in tiny_settings("melvq").items()),
]


def test_the_command_makes_a_run_that_one_process_loads(tmp_path):
    """The whole way: scheduled sampling, samples in between, bfloat16, the kept weights and the report. Guards against
    parts that see a model of which the rest is elsewhere."""
    corpus, out = folder_of_notes(tmp_path / "corpus", [3000] * 5 + [700] * 3), tmp_path / "run"
    words = ["train", str(corpus), "--out", str(out), "--frontend", "melvq", "--backbone", "gpt", "--steps", "4"]
    chosen = [word for one in SETTINGS for word in ("--set", one)]
    first, other = together(tmp_path, 2, command, *words, *chosen)
    assert "listen: open" in first.err and other.err == other.out == ""
    run = audiogen.load_run(out)
    assert all(x.isfinite().all() for x in run.model.state_dict().values())
    assert run.generate(seconds=0.02, num=1).isfinite().all()
    assert {path.name for path in (out / "samples").glob("step-2*")}
    [again] = together(tmp_path, 1, command, *words[:-1], "6", "--resume", *chosen)
    assert "listen: open" in again.err


# ---- parts of a backbone


def test_weights_are_shared_out_from_some_number_on():
    """Guards against a model that needs all memory of a GPU because nobody knew of the setting."""
    automatic = DistributedConfig()
    assert automatic.sharded(500_000_001) and not automatic.sharded(500_000_000)
    assert DistributedConfig(kind="sharded").sharded(1) and not DistributedConfig(kind="replicas").sharded(10**12)


@contextmanager
def kept_for_backward():
    """The numbers that a forward pass keeps for the backward pass."""
    kept = []

    def pack(x):
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def test_activations_are_computed_again_with_the_same_result():
    """Guards against dropout that is drawn anew in the backward pass, and a setting that saves nothing."""
    walks, gradients, kept = Walks(), [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = walks.model("gpt", dropout=0.3, recompute=recompute).train()
        with kept_for_backward() as numbers:
            loss = model(walks.batch(0)[0]).sum()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        kept.append(sum(numbers))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 3


def test_blocks_are_compiled_one_by_one_and_the_model_is_not():
    """Guards against a compiled copy that trains weights of its own, and against generation that is compiled for each
    length."""
    model = Walks().model("gpt")
    twin = compiled(model)
    assert twin is not model and list(map(id, twin.parameters())) == list(map(id, model.parameters()))
    assert all(block._compiled_call_impl is not None for block in twin.backbone.blocks)
    assert all(block._compiled_call_impl is None for block in model.backbone.blocks)
    with torch.compiler.set_stance("force_eager"):
        batch = Walks().batch(0)[0]
        assert torch.equal(twin.eval()(batch), model.eval()(batch))


def test_the_norm_is_that_of_all_gradients():
    """Guards against a norm in float32, which depends on the parts in which squares are summed."""
    parameters = [nn.Parameter(torch.randn(n)) for n in (1000, 3)]
    for p in parameters:
        p.grad = p.detach() * 1e3
    wanted = torch.cat([p.grad for p in parameters]).double().square().sum()
    assert squares(parameters).dtype == torch.float64
    torch.testing.assert_close(squares(parameters), wanted, rtol=1e-12, atol=0)
