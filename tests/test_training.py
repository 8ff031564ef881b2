"""The training loop: what a step does, when it stops, and what it says of itself."""

import json
import math
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from corpus import folder_of_notes
from loops import Walks, events, losses, settings, trainer, weights
from processes import Command

from audiogen.commands import train as session
from audiogen.commands.defaults import resolve_precision
from audiogen.errors import AudiogenError, ConfigError, TrainingError
from audiogen.evaluation.scores import Score, held_out_score
from audiogen.models.batch import Batch
from audiogen.runs.event_log import Metrics, read_metrics
from audiogen.runs.training_config import TrainingConfig
from audiogen.spec import FrameSpec
from audiogen.training import trainer as loop
from audiogen.training.checkpoint import load_checkpoint
from audiogen.training.schedule import learning_rate, make_optimizer
from audiogen.training.trainer import Trainer


@pytest.fixture(autouse=True)
def terminal():
    """Ctrl-C works as it does in a terminal, also where the tests run in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# ---- the schedule and the optimizer


def test_schedule_rises_in_a_line_and_falls_in_half_a_cosine():
    """Guards against a schedule that starts at nothing, jumps where its halves meet, or ends somewhere else than it
    says."""
    config = settings(learning_rate=0.1, warmup=0.2, final_learning_rate=0.25)
    rate = [learning_rate(i / 100, config) for i in range(101)]
    assert rate[0] == pytest.approx(0.001)  # 1 % of the top: the first step moves too
    assert rate[10] == pytest.approx(0.05)
    assert rate[20] == pytest.approx(0.1)
    assert rate[60] == pytest.approx(0.1 * (0.25 + 0.75 / 2))  # half-way down
    assert rate[100] == pytest.approx(0.025)
    assert all(a < b for a, b in zip(rate[:20], rate[1:21], strict=True))
    assert all(a > b for a, b in zip(rate[20:], rate[21:], strict=False))
    assert max(abs(a - b) for a, b in zip(rate, rate[1:], strict=False)) < 0.006


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_schedule_at_its_edges(warmup):
    """Guards against a division by a warm-up of nothing, and by a decay of nothing."""
    config = settings(learning_rate=0.1, warmup=warmup)
    assert all(0 < learning_rate(progress, config) <= 0.1 for progress in (0.0, 1e-9, 0.5, 1.0))


def test_fine_tuning_of_few_steps_does_not_lose_what_the_base_model_has_learned():
    """Guards against the full rate at the second step of a run of eight, which is what two minutes are on a slow
    machine: its held-out loss rose from -462 to 2703 nats per frame. Runs of many steps have the schedule they had."""
    few = settings(learning_rate=1e-3, warmup=0.1, start="base")
    assert [learning_rate(i / 8, few, i) for i in range(4)] == pytest.approx([1e-5, 5e-5, 7.5e-5, 1e-4])
    assert learning_rate(1, few, 8) == pytest.approx(5e-5)  # still ends where the schedule does
    new = settings(learning_rate=1e-3, warmup=0.1)  # new weights have nothing to lose
    for i in range(1000):
        assert learning_rate(i / 1000, few, i) == learning_rate(i / 1000, new, i) == learning_rate(i / 1000, new)
    assert learning_rate(0.25, new, 2) == learning_rate(0.25, new)


def test_the_loop_tells_the_schedule_how_many_steps_it_has_taken(tmp_path, clock):
    """Guards against a warm-up of steps that the loop does not count, or counts anew after a resume."""
    config = settings(minutes=10 / 60, learning_rate=0.01, warmup=0.1, start="base")
    trainer(tmp_path, config, SlowWalks(clock)).run(Metrics(tmp_path))
    rates = [event["learning_rate"] for event in events(tmp_path, "train")]
    assert rates == pytest.approx([learning_rate(i / 10, config, i) for i in range(10)])
    assert max(rates) < 0.01 / 4


def test_only_matrices_decay():
    """Guards against weight decay that pulls norms, biases and `bos` to zero. Without a gradient, AdamW can only
    decay."""
    model = Walks().model("gpt")
    config = settings(learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    before = weights(model)
    model.zero_grad(set_to_none=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kinds = set()
    for name, parameter in model.named_parameters():
        kinds.add(parameter.ndim)
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.ndim >= 2 else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)
    assert kinds == {1, 2}
    assert len({id(p) for group in optimizer.param_groups for p in group["params"]}) == len(list(model.parameters()))


class Parts(Walks):
    """Each batch of `Walks` in equal parts, one after the other."""

    parts = 4

    def loader(self, numbers, num_workers=0):
        for number in numbers:
            batch, files = self.batch(number // self.parts)
            size = len(files) // self.parts
            at = number % self.parts * size
            yield Batch(batch.x[at : at + size]), files[at : at + size]


def test_accumulation_equals_the_big_batch(tmp_path):
    """Guards against gradients that are summed instead of averaged, a clip of every part, a step for every part, and a
    loss that reports the last part alone."""
    trained = []
    for walks, accumulation in ((Walks(batch_size=8), 1), (Parts(batch_size=8), 4)):
        torch.manual_seed(0)
        model = walks.model("gpt").double()
        # A clip that bites, and steps large enough to see it.
        config = settings(steps=5, accumulation=accumulation, gradient_clip=0.05, learning_rate=0.05)
        folder = tmp_path / str(accumulation)
        trainer(folder, config, walks, model).run(Metrics(folder))
        trained.append((weights(model), events(folder, "train")))
    (whole, said), (parts, said_of_parts) = trained
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-9)
    for a, b in zip(said, said_of_parts, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-9)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], abs=1e-9)
        assert a["grad_norm"] > 0.05


def test_the_loss_that_is_logged_is_in_the_units_of_the_spec(tmp_path):
    """Guards against nats that are called bits: a fresh model of 8 codes is at 3 bits."""
    trainer(tmp_path, settings(steps=1), Walks(size=8)).run(Metrics(tmp_path))
    assert events(tmp_path, "train")[0]["loss"] == pytest.approx(3.0, abs=0.1)


# ---- what is kept


def test_averaged_weights_are_the_ones_judged_and_kept(tmp_path):
    """Guards against an average that is made but not used, one of stale weights, and one that training goes on from."""
    walks, judged, kept, raw = Walks(), [], [], []
    model = walks.model()
    it = trainer(
        tmp_path,
        settings(steps=5, evaluations=5, average=0.75, learning_rate=0.1),
        walks,
        model,
        evaluate=lambda weighed: (
            judged.append(weights(weighed)),
            raw.append(weights(model)),
            Score(-len(raw), "bits", 0.0, None, 1, 1.0),
        )[-1],
        keep=lambda weighed, progress: kept.append(weights(weighed)),
    )
    it.run(Metrics(tmp_path))
    expected = raw[0]
    for step in range(5):
        if step:
            expected = {name: 0.75 * x + 0.25 * raw[step][name] for name, x in expected.items()}
        for name, x in expected.items():
            torch.testing.assert_close(judged[step][name], x, rtol=1e-5, atol=1e-6)
            assert torch.equal(kept[step][name], judged[step][name])
    assert not torch.equal(judged[4]["bos"], raw[4]["bos"])

    torch.manual_seed(0)
    plain = Walks().model()
    torch.manual_seed(0)
    averaged = Walks().model()
    trainer(tmp_path / "a", settings(), model=plain).run(Metrics(tmp_path / "a"))
    trainer(tmp_path / "b", settings(average=0.9), model=averaged).run(Metrics(tmp_path / "b"))
    assert all(torch.equal(x, averaged.state_dict()[name]) for name, x in plain.state_dict().items())


def test_early_stopping_keeps_the_best_weights_and_stops(tmp_path, impatient):
    """Guards against a stop that counts evaluations that were not in a row, keeps the last weights, or is off by
    one."""
    kept, model = [], Walks().model()
    seen, found = [], losses(5, 4, 4.5, 3, 3.2, 3, 3.1, 2)

    def evaluate(weighed):
        seen.append(weights(weighed))
        return found(weighed)

    it = trainer(
        tmp_path,
        settings(steps=8, evaluations=8, patience=3, learning_rate=0.1),
        model=model,
        evaluate=evaluate,
        keep=lambda weighed, progress: kept.append((progress.step, weights(weighed))),
    )
    outcome = it.run(Metrics(tmp_path))
    assert outcome.stopped == "early"
    assert outcome.progress.step == 7  # an equal loss is no better: 3.2, 3 and 3.1 are three in a row
    assert (outcome.progress.best_step, outcome.progress.best_loss) == (4, 3)
    assert [step for step, _ in kept] == [1, 2, 4]
    assert all(torch.equal(x, seen[3][name]) for name, x in kept[-1][1].items())
    assert [event["best"] for event in events(tmp_path, "held_out")] == [True, True, False, True, False, False, False]


def test_the_newest_weights_are_kept_where_the_loss_is_a_bound(tmp_path, impatient, monkeypatch):
    """Guards against weights from the middle of a run, at a high learning rate, and one that is never a number."""
    model, kept = Walks().model(), []
    monkeypatch.setattr(type(model.head), "bounds", True)
    it = trainer(
        tmp_path,
        settings(steps=5, evaluations=5, patience=2),
        model=model,
        evaluate=losses(5, 4, 6, 7, math.nan),
        keep=lambda weighed, progress: kept.append(progress.step),
    )
    assert it.run(Metrics(tmp_path)).stopped == "finished" and kept == [1, 2, 3, 4]


def test_few_steps_stop_nothing(tmp_path):
    """Guards against a slow model that is given up after a handful of steps, evaluated several times in a second."""
    it = trainer(tmp_path, settings(steps=8, evaluations=8, patience=3), evaluate=losses(3, *range(4, 11)))
    assert it.run(Metrics(tmp_path)).stopped == "finished"


def test_a_loss_that_rises_at_first_stops_nothing(tmp_path, impatient):
    """Guards against a run that a slow machine ends after seconds, with the weights that it began with."""
    it = trainer(tmp_path, settings(steps=12, evaluations=12, patience=2), evaluate=losses(5, 6, 7, 6, 4, *[3] * 7))
    assert it.run(Metrics(tmp_path)).stopped == "early" and it.progress.step > 5 and it.progress.best_loss == 3


def test_patience_null_never_stops(tmp_path):
    """Guards against a null that is read as 0."""
    it = trainer(tmp_path, settings(steps=8, evaluations=8), evaluate=losses(*range(8)))
    assert it.run(Metrics(tmp_path)).stopped == "finished"
    assert it.progress.step == 8


def test_a_held_out_loss_that_is_no_number_is_never_the_best(tmp_path, impatient):
    """Guards against weights that were kept because nan compares false, and metrics that no JSON reader takes."""
    kept = []
    it = trainer(
        tmp_path,
        settings(steps=3, evaluations=3, patience=2),
        evaluate=losses(math.nan, math.inf, 1),
        keep=lambda weighed, progress: kept.append(progress.step),
    )
    assert it.run(Metrics(tmp_path)).stopped == "early"
    assert kept == []

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["event"] for line in lines] == ["train", "held_out", "held_out"]


def test_a_run_without_a_single_held_out_loss_says_why(tmp_path, monkeypatch):
    """Guards against advice to go on with --resume where nothing would ever come of it."""
    monkeypatch.setattr(session, "held_out_score", lambda model, *given, **how: losses(math.nan)(model))
    with pytest.raises(TrainingError, match="run: the held-out loss was never finite, so no weights were kept"):
        session.train(
            folder_of_notes(tmp_path / "corpus", [900] * 3),
            tmp_path / "run",
            "mulaw",
            "bigram",
            steps=1,
            overrides=["backbone.dim=4", "training.crop_frames=16", "training.evaluations=1"],
        )


def test_evaluations_take_at_most_so_many_frames():
    """Guards against an evaluation that takes longer than the training between two of them, because one file is
    long."""
    files = [torch.full((2, length), length) for length in (30, 50, 70, 10)]

    def some(sequences, most_frames, places=None):
        return session._some(sequences, range(len(sequences)) if places is None else places, most_frames)

    assert [x.shape[1] for x in some(files, 100)[0]] == [20, 30, 50]
    assert [x.shape[1] for x in some(files, 20)[0]] == [20]
    assert [x.shape[1] for x in some(files, 10_000)[0]] == [10, 30, 50, 70]
    assert some(files, 10_000)[1] == [3, 0, 1, 2] and some(files, 10_000, [2, 1])[1] == [1, 2]
    least = session.LEAST_SHARE
    long = [torch.zeros(1, 9 * least), torch.zeros(1, 5), torch.zeros(1, 9 * least)]
    assert [x.shape[1] for x in some(long, 3 * least)[0]] == [5, least, least], "the first is not all there is"


@pytest.mark.parametrize(
    "steps, evaluations, at", [(7, 3, [3, 5, 7]), (2, 5, [1, 2]), (6, 1, [6]), (4, 4, [1, 2, 3, 4])]
)
def test_evaluations_are_spread_evenly_and_the_last_step_has_one(tmp_path, steps, evaluations, at):
    """Guards against a run whose last steps are never judged, and so never kept."""
    it = trainer(tmp_path, settings(steps=steps, evaluations=evaluations))
    it.run(Metrics(tmp_path))
    assert [event["step"] for event in events(tmp_path, "held_out")] == at


# ---- the budget in minutes


class Clock:
    """Time that passes only where the test says so."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


class SlowWalks(Walks):
    """A batch takes a second to fetch."""

    def __init__(self, clock, **more):
        super().__init__(**more)
        self.clock = clock

    def loader(self, *arguments):
        for batch in super().loader(*arguments):
            self.clock.now += 1
            yield batch


@pytest.fixture
def clock(monkeypatch):
    """A clock of the loop's own, and a line of metrics for each step."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    return clock


def test_minutes_count_training_time_only_and_the_schedule_follows_them(tmp_path, clock):
    """Guards against a budget that evaluation and saving eat up, and a schedule of steps that nobody knows the number
    of."""

    def evaluate(model):
        clock.now += 500
        return Score(1.0, "bits", 0.0, None, 1, 1.0)

    config = settings(minutes=10 / 60, evaluations=5, learning_rate=0.01, warmup=0.3)
    it = trainer(tmp_path, config, SlowWalks(clock), evaluate=evaluate)
    it.run(Metrics(tmp_path))
    trained = events(tmp_path, "train")
    assert [event["seconds"] for event in trained] == list(range(1, 11))
    for number, event in enumerate(trained):
        assert event["learning_rate"] == pytest.approx(learning_rate(number / 10, config))
    assert [event["step"] for event in events(tmp_path, "held_out")] == [2, 4, 6, 8, 10]


def test_minutes_survive_a_resume(tmp_path, clock):
    """Guards against a budget that begins anew with every resume, and a schedule that warms up twice."""
    config, found = settings(minutes=10 / 60, learning_rate=0.01, evaluations=10), losses(*range(9, 0, -1))

    def evaluate(model):
        if first.progress.step == 4:
            signal.raise_signal(signal.SIGTERM)
        return found(model)

    first = trainer(tmp_path, config, SlowWalks(clock), evaluate=evaluate)
    assert first.run(Metrics(tmp_path)).stopped == "interrupted"
    clock.now += 9999  # the machine slept in between
    second = trainer(tmp_path, config, SlowWalks(clock))
    second.resume()
    assert (second.progress.step, second.progress.seconds) == (4, 4)
    assert second.run(Metrics(tmp_path, second.progress.step)).stopped == "finished"
    trained = events(tmp_path, "train")
    assert [event["step"] for event in trained] == list(range(1, 11))
    for number, event in enumerate(trained):
        assert event["learning_rate"] == pytest.approx(learning_rate(number / 10, config))


def test_a_long_run_saves_between_evaluations(tmp_path, clock, monkeypatch):
    """Guards against hours that are lost to a power cut because the next evaluation was far away."""
    saved = []
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 2.5)
    monkeypatch.setattr(Trainer, "save", lambda self: saved.append(self.progress.step))
    trainer(tmp_path, settings(minutes=10 / 60), SlowWalks(clock)).run(Metrics(tmp_path))
    assert saved == [3, 6, 9, 10]


# ---- losses that are not numbers


class Poisoned(Walks):
    """Frames; at one step they are so large that no loss can be computed."""

    def __init__(self, poisoned, **more):
        super().__init__(**more)
        self.poisoned, self.spec = poisoned, FrameSpec(8000, 80, 2)

    def batch(self, step):
        x = torch.randn(self.batch_size, 2, self.num_frames, generator=torch.Generator().manual_seed(step))
        if step == self.poisoned:
            x[-1, 0, 5] = 1e30
        return Batch(x), [[f"take-{step}-{i}.wav"] for i in range(self.batch_size)]


def test_a_nan_loss_stops_before_the_step_and_names_the_files(tmp_path):
    """Guards against a step that spreads one bad batch over all weights, and a checkpoint written after it."""
    walks = Poisoned(3)
    model, at_evaluation = walks.model(), []
    it = trainer(
        tmp_path,
        settings(steps=9, evaluations=9, learning_rate=0.01),
        walks,
        model,
        evaluate=lambda weighed: (at_evaluation.append(weights(weighed)), losses(1)(weighed))[1],
    )
    with pytest.raises(TrainingError, match="step 4: the loss is not a number.*take-3-0.wav.*take-3-3.wav.*checkpoint"):
        it.run(Metrics(tmp_path))
    assert all(torch.equal(x, at_evaluation[-1][name]) for name, x in model.state_dict().items())
    saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved.step == 3
    assert all(torch.equal(x, saved.tensors["model"][name]) for name, x in model.state_dict().items())
    assert all(x.isfinite().all() for x in saved.tensors["optimizer"].values())


def test_a_nan_loss_that_is_seen_later_has_changed_nothing(tmp_path):
    """Guards against a GPU that goes on with NaN until the next line of metrics, and a report of the files of another
    step."""
    walks = Poisoned(3)
    model, at_evaluation = walks.model(), []
    it = trainer(
        tmp_path,
        settings(steps=9, evaluations=3, learning_rate=0.01, average=0.9),
        walks,
        model,
        evaluate=lambda weighed: (at_evaluation.append(weights(model)), losses(1)(weighed))[1],
    )
    it.looks_always = False
    with pytest.raises(TrainingError, match="step 4: the loss is not a number.*take-3-0.wav.*take-3-3.wav; no step"):
        it.run(Metrics(tmp_path))
    assert it.progress.step == 6 and len(at_evaluation) == 1
    assert all(torch.equal(x, at_evaluation[0][name]) for name, x in model.state_dict().items())
    assert all(x.isfinite().all() for x in it.average.state_dict().values())
    assert load_checkpoint(tmp_path / "checkpoints").step == 3


def test_with_accumulation_all_files_of_the_step_are_named(tmp_path):
    """Guards against a report on the last part of a batch when the trouble was in the first."""
    walks = Poisoned(2, batch_size=2)
    with pytest.raises(TrainingError, match="step 2.*take-2-0.wav, take-2-1.wav"):
        trainer(tmp_path, settings(accumulation=2), walks).run(Metrics(tmp_path))
    model = (walks := Poisoned(None, batch_size=2)).model()
    model.bos.register_hook(lambda gradient: gradient * math.nan)
    names = ", ".join(f"take-{step}-{i}.wav" for step in range(2) for i in range(2))
    with pytest.raises(TrainingError, match=f"step 1: the gradient.*{names}"):
        trainer(tmp_path / "gradient", settings(accumulation=2), walks, model).run(Metrics(tmp_path / "gradient"))


def test_a_gradient_that_is_no_number_stops_before_the_step(tmp_path):
    """Guards against a clip by nan, which makes all weights nan though the loss was finite."""
    model = Walks().model()
    before = weights(model)
    model.bos.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match="the gradient is not a number.*walk-0-0"):
        trainer(tmp_path, settings(), model=model).run(Metrics(tmp_path))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_message_about_many_files_stays_a_line(tmp_path):
    """Guards against a screenful of file names."""
    with pytest.raises(TrainingError, match="and 12 more;") as caught:
        trainer(tmp_path, settings(), Poisoned(0, batch_size=20)).run(Metrics(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_loop_calls_the_model_itself(tmp_path):
    """Guards against a step that goes round the model's `forward`, so that the hooks by which DDP and FSDP2 work never
    fire."""
    walks = Walks()
    model, seen = walks.model(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    trainer(tmp_path, settings(), walks, model, evaluate=losses(1.0)).run(Metrics(tmp_path))
    assert len(seen) == 4
    assert all(isinstance(batch, Batch) for (batch,) in seen)


# ---- precision


def test_bf16_trains_as_well_as_fp32(tmp_path):
    """Guards against losses, softmax or weights held in 8 bits: the held-out loss must stay within 1 %."""
    found, dtypes = {}, {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        walks = Walks(size=16, batch_size=8, num_frames=32)
        model = walks.model("gpt")
        seen = dtypes.setdefault(precision, {True: set(), False: set()})
        model.backbone.blocks[0].up.register_forward_hook(
            lambda module, x, y, seen=seen: seen[module.training].add(y.dtype)
        )
        folder = tmp_path / precision
        trainer(folder, settings(steps=120, learning_rate=0.02), walks, model, precision=precision).run(Metrics(folder))
        found[precision] = held_out_score(model, walks.held_out()).loss
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert found["fp32"] < 2.0  # from 4 bits at the start, towards log2(3)
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.01)
    assert dtypes["fp32"] == {True: {torch.float32}, False: {torch.float32}}
    assert dtypes["bf16"] == {True: {torch.bfloat16}, False: {torch.float32}}  # judged in fp32 alike


@pytest.mark.parametrize(
    "device, hardware, asked, expected",
    [
        ("cpu", False, "auto", "fp32"),
        ("cpu", True, "auto", "bf16"),
        ("cpu", True, "fp32", "fp32"),
        ("cpu", False, "bf16", "bf16"),
        ("cuda", True, "auto", "bf16"),
        ("cuda", False, "auto", "fp32"),
        ("cuda", True, "fp32", "fp32"),
    ],
)
def test_precision_auto_asks_the_hardware(monkeypatch, device, hardware, asked, expected):
    """Guards against bfloat16 that is emulated, ten times slower, and a setting that is overruled."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: hardware)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    # A V100 (7, 0) and a T4 (7, 5) only emulate it; torch.cuda.is_bf16_supported() says yes to them too.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if hardware else (7, 5))
    assert resolve_precision(asked, torch.device(device)) == expected


@pytest.mark.parametrize("changed", ["seed", "step"])
def test_dropout_depends_on_seed_and_step(tmp_path, changed):
    """Guards against a seed in bits that the CPU's generator does not read: every run would drop the same units."""
    masks = set()
    for number in range(3):
        one = trainer(tmp_path / str(number), settings(seed=number if changed == "seed" else 3))
        one.progress.step = 5 if changed == "seed" else number
        one._step(one.batches.loader([one.progress.step]))
        masks.add(tuple(torch.rand(64).gt(0.5).tolist()))  # what comes next of the generator that the step seeded
    assert len(masks) == 3


def test_compiling_is_not_training_time(tmp_path, monkeypatch, clock):
    """Guards against minutes of budget that the compiler spends, at the start and again after every resume."""

    class Slow(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.called = model, False

        def forward(self, x):
            if not self.called:
                clock.now += 500
            self.called = True
            return self.model(x)

    monkeypatch.setattr(loop.torch, "compile", Slow)
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        walks = SlowWalks(clock)
        model = walks.model("mlp", dim=8, context=2, hidden_dim=8, batch_norm=True)
        one = trainer(tmp_path / str(compiled), settings(minutes=4 / 60, compile=compiled), walks, model)
        one.run(Metrics(tmp_path))
        assert one.progress.step == 4
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]), "nothing was learned on the way"


# ---- metrics


def test_metrics_are_lines_of_json_and_cut_back_on_resume(tmp_path):
    """Guards against steps that are told twice after a resume, a report that speaks of older weights, and a file that
    one torn line makes unreadable."""
    metrics = Metrics(tmp_path)
    metrics.write("baselines", uniform=3.0, unit="bits")
    for step in (1, 2, 3):
        metrics.write("train", step=step, loss=1.5)
        metrics.write("held_out", step=step, loss=1.5, best=True)
    metrics.write("final", step=2, loss=1.5)
    metrics.close()
    with open(metrics.path, "ab") as file:
        file.write(b'17\n[]\n{"event": "train", "step": 1, "lo\xff\x00')
    assert len(read_metrics(tmp_path)) == 8
    Metrics(tmp_path, after=2).close()
    kept = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert [(event["event"], event.get("step")) for event in kept] == [
        ("baselines", None),
        ("train", 1),
        ("held_out", 1),
        ("train", 2),
        ("held_out", 2),
    ]
    Metrics(tmp_path).close()
    assert metrics.path.read_text() == ""


def test_metrics_without_tensorboard(tmp_path, monkeypatch):
    """Guards against training that needs a package which is not among the requirements."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    metrics = Metrics(tmp_path)
    metrics.write("train", step=1, loss=1.0)
    metrics.audio("x", torch.zeros(1, 10), 8000, 1)
    metrics.close()
    assert not (tmp_path / "tensorboard").exists()
    assert read_metrics(tmp_path) == [{"event": "train", "step": 1, "loss": 1.0}]


def test_a_full_disk_is_told_by_the_metrics_too(tmp_path):
    """Guards against a traceback of the smallest of writes. (A write to /dev/full fails as on a full disk.)"""
    metrics = Metrics(tmp_path)
    metrics.path = Path("/dev/full")
    with pytest.raises(AudiogenError, match=r"/dev/full: can't be written \(the disk is full, \d+ bytes written\)"):
        metrics.write("train", step=1, loss=1.0)


# ---- settings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 5}, "either steps or minutes"),
        ({"steps": None, "minutes": None}, "either steps or minutes"),
        ({"steps": 0, "minutes": None}, "training.steps.*1 or more.*0"),
        ({"batch_size": 0}, "training.batch_size"),
        ({"seed": -1}, "training.seed"),
        ({"seed": 2**31}, "training.seed"),
        ({"minutes": math.inf}, "training.minutes"),
        ({"learning_rate": math.nan}, "training.learning_rate"),
        ({"warmup": 1.5}, "training.warmup"),
        ({"average": -0.1}, "training.average"),
        ({"gradient_clip": 0.0}, "training.gradient_clip"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    """Guards against settings that fail, or train nonsense, an hour later."""
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**changes)


def test_the_largest_seed_trains(tmp_path):
    """Guards against a seed that overflows where it is joined with the step."""
    trainer(tmp_path, settings(steps=1, seed=2**31 - 1)).run(Metrics(tmp_path))


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_saves_and_says_how_to_resume(tmp_path, number):
    """Guards against a Ctrl-C that loses the work, tears a step in two, leaves a traceback, or passes for success."""
    corpus, run = folder_of_notes(tmp_path / "corpus", [2000] * 4), tmp_path / "run"
    command = Command(
        tmp_path,
        "train",
        corpus,
        "--out",
        run,
        "--frontend",
        "mulaw",
        "--backbone",
        "bigram",
        "--steps",
        "1000000",
        "--set",
        "training.evaluations=1000",
        "--set",
        "backbone.dim=4",
        "--set",
        "training.crop_frames=16",
    )
    assert command.wait_until(lambda: any(event["event"] == "train" for event in read_metrics(run)))
    command.send(number)
    result = command.wait()
    assert result.code == 130
    told = re.search(r"stopped at step (\d+) and saved; continue with the same command and --resume", result.err)
    assert told, result.err
    assert "Traceback" not in result.err
    assert load_checkpoint(run / "checkpoints").step == int(told[1])


def test_the_signal_handlers_are_given_back(tmp_path):
    """Guards against a program that can't be interrupted any more once it has trained."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer(tmp_path, settings()).run(Metrics(tmp_path))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_ignored_signal_stays_ignored(tmp_path):
    """Guards against a run that was sent to the background with nohup and is stopped by a Ctrl-C meant for another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    it = trainer(
        tmp_path,
        settings(evaluations=4),
        evaluate=losses(4, 3, 2, 1),
        keep=lambda model, progress: signal.raise_signal(signal.SIGINT),
    )
    assert it.run(Metrics(tmp_path)).stopped == "finished"
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_second_interrupt_acts_at_once(tmp_path):
    """Guards against an evaluation of an hour that nothing but SIGKILL can end."""

    def evaluate(model):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, settings(steps=2, evaluations=2), evaluate=evaluate).run(Metrics(tmp_path))
