"""Engines mean the same as the plain loop (contract 7), each registered one on each backbone that it runs."""

import copy
import dataclasses
import itertools
import logging
import math
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from replay import GraphOnCPU, Recorder
from tiny import (
    BACKBONE_CASES,
    FRAMES,
    TOKENS,
    lively,
    random_conditions,
    random_input,
    tiny_backbone,
    tiny_conditioner,
    tiny_model,
)
from torch import nn

from audiogen import testing
from audiogen.errors import ConfigError, GenerationError
from audiogen.generation import generate as generate_module
from audiogen.generation.engines import ENGINES, PRECISIONS, choose
from audiogen.generation.engines.base import log_once
from audiogen.generation.engines.cpu.base import KernelEngine
from audiogen.generation.engines.cpu.rounded_loop import RoundedLoop
from audiogen.generation.engines.cuda_graph import GraphEngine
from audiogen.generation.engines.eager import Eager
from audiogen.generation.generate import generate, stream
from audiogen.generation.request import Request
from audiogen.models.backbones import BACKBONES
from audiogen.models.backbones.gpt import GPT
from audiogen.models.flow_matching import FlowMatchingHead
from audiogen.models.patterns import PATTERNS
from audiogen.models.sampling import Sampling, uniforms
from audiogen.models.sequence_model import FRAME_HEADS, SequenceModel
from audiogen.spec import FrameSpec, TokenSpec
from audiogen.testing import true_logits, verify_engine

CASES = [
    pytest.param(name, *case.values, id=f"{name}-{case.id}")
    for name, kind in ENGINES.items()
    for case in BACKBONE_CASES
    if issubclass(BACKBONES[case.values[0]], kind.backbone)
]
PLAIN_CASES = [case for case in CASES if not case.values[2]]  # the small settings alone
every_case = pytest.mark.parametrize("name, kind, changes", CASES)
every_engine = pytest.mark.parametrize("name, kind, changes", PLAIN_CASES)
every_kernel = pytest.mark.parametrize(
    "name, kind, changes", [case for case in PLAIN_CASES if issubclass(ENGINES[case.values[0]], KernelEngine)]
)


@pytest.fixture(autouse=True)
def graph_on_the_cpu(monkeypatch, request):
    """Where a test is of the engine for GPUs, it runs here, on all that the others would else be chosen for."""
    if hasattr(request.node, "callspec") and request.node.callspec.params.get("name") == "graph":
        use_alone(monkeypatch, GraphOnCPU)


def use_alone(monkeypatch, kind):
    for other in list(ENGINES):
        monkeypatch.delitem(ENGINES, other)
    monkeypatch.setitem(ENGINES, "graph", kind)


def small_model(kind, changes, pattern="delay"):
    """In float32, as engines want it, with its head turned up so that no margin is a matter of rounding."""
    return tiny_model(TOKENS, kind, pattern, **changes).float()


def plain(monkeypatch):
    monkeypatch.setattr(generate_module, "choose", Eager)


def assert_same_luck(model, got, expected, seeds, sampling=Sampling()):
    """The same of frames (B, K, T)."""
    got, expected = (model.pattern.apply(x, model.hole) for x in (got, expected))
    testing.assert_same_luck(model, got, expected, seeds, sampling)


def test_every_engine_runs_something():
    """Guards against an engine that refuses every model, and so passes every test."""
    assert {case.values[0] for case in CASES} == set(ENGINES)


@every_case
@pytest.mark.parametrize("batch_size", [1, 6])
def test_teacher_forced_logits_are_the_models(name, kind, changes, batch_size):
    """Contract 7. Guards against a weight in the wrong place, a ring one step off, a scale forgotten: over 10,000
    codes, in batches that fill fours and leave a rest. Greedy codes are equal wherever the margin exceeds 1e-3."""
    model = small_model(kind, changes)
    codes = 1_000 if name == "graph" and batch_size == 1 else 10_000  # whose steps are torch's own, and slow on a CPU
    seq = model.pattern.apply(random_input(TOKENS, batch_size, codes // (3 * batch_size) + 1), model.hole)
    testing.check_logits(ENGINES[name](model, Request(batch_size=batch_size)), seq)  # holes are observed as well


@pytest.mark.parametrize("name, kind, changes", {case.values[0]: case for case in PLAIN_CASES}.values())
def test_every_engine_is_verified(name, kind, changes):
    """Contract 7 as those call it who keep an engine elsewhere: each engine on one backbone."""
    verify_engine(ENGINES[name], small_model(kind, changes))


@pytest.mark.parametrize("prompt_frames", [0, 1, 5, 40])
@pytest.mark.parametrize(
    "name, kind, changes, pattern",
    [
        pytest.param(*case.values, pattern, id=f"{case.id}-{pattern}")
        for case in CASES
        for pattern in (PATTERNS if case in PLAIN_CASES else ["delay"])  # rings know nothing of patterns
    ],
)
def test_draws_are_those_of_the_plain_loop(monkeypatch, name, kind, changes, pattern, prompt_frames):
    """Guards against a prompt that is taken over one step off or with its rings turned wrongly, holes that are drawn,
    rows of the prompt that are drawn again, and uniform numbers of another step."""
    model = small_model(kind, changes, pattern)
    seeds = [3, 1, 4, 1, 5]
    prompt = random_input(TOKENS, 5, prompt_frames)
    got = generate(model, 60, Request(prompt=prompt, seeds=seeds)).x
    assert torch.equal(got[:, :, :prompt_frames], prompt)
    plain(monkeypatch)
    assert_same_luck(model, got, generate(model, 60, Request(prompt=prompt, seeds=seeds)).x, seeds)


@every_engine
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.0),
        Sampling(0.5),
        Sampling(top_k=2),
        Sampling(top_p=0.6),
        Sampling(min_p=0.3),
        Sampling(1.3, 5, 0.9, 0.1),
    ],
    ids=str,
)
def test_filters_are_those_of_the_plain_loop(monkeypatch, name, kind, changes, sampling):
    """Guards against a filter that an engine leaves out, or applies in another order."""
    model = small_model(kind, changes)
    got = generate(model, 100, Request(batch_size=2, seeds=[8, 9], sampling=sampling)).x
    plain(monkeypatch)
    expected = generate(model, 100, Request(batch_size=2, seeds=[8, 9], sampling=sampling)).x
    if sampling.temperature == 0:
        assert torch.equal(got, expected)
    else:
        assert_same_luck(model, got, expected, [8, 9], sampling)


@every_engine
def test_an_item_is_what_it_would_be_alone(name, kind, changes):
    """Guards against state shared between items (contract 6)."""
    model = small_model(kind, changes)
    prompt = random_input(TOKENS, 6, 4)
    together = generate(model, 80, Request(prompt=prompt, seeds=range(6))).x
    for item in range(6):
        alone = generate(model, 80, Request(prompt=prompt[item : item + 1], seeds=[item])).x
        assert_same_luck(model, alone, together[item : item + 1], [item])


@pytest.mark.parametrize("name, precision", [("wavenet", "bf16"), ("wavenet", "int8"), ("gpt", "int8")])
def test_rounded_weights_give_an_item_the_very_same_alone(name, precision):
    """Guards against a seed that makes another sound where four items are generated at once: what is rounded
    differently there is enough, with int8, to draw another code within the first second."""
    model = small_model(name, {})
    seq, known = random_input(TOKENS, 6, 50), torch.ones(3, 50, dtype=torch.bool)
    numbers = torch.full((6, 50, 3), 0.5, dtype=torch.float64)

    def logits(hidden, state, items):
        request = Request(batch_size=len(items), precision=precision)
        found, engine = torch.empty(len(items), 50, 3, TOKENS.codebook_size), ENGINES[name](model, request)
        engine.set_state(
            hidden[items].clone(),
            [
                {key: value[items].clone() if value.ndim else value.clone() for key, value in layer.items()}
                for layer in state
            ],
        )
        engine.decode(seq[items].clone(), known, numbers[items], found)
        return found

    with torch.inference_mode():
        start = model.start(6)  # by torch, which may round by the size of a batch
        together = logits(*start, list(range(6)))
        for item in range(6):
            assert torch.equal(logits(*start, [item]), together[item : item + 1])


@every_engine
def test_blocks_do_not_matter(monkeypatch, name, kind, changes):
    """Guards against a step lost or seen twice where one block ends and the next begins; pieces come as promised."""
    model = small_model(kind, changes)
    whole = generate(model, 50, Request(batch_size=2, seeds=[1, 2])).x
    pieces = list(stream(model, 50, Request(batch_size=2, seeds=[1, 2])))
    assert len(pieces) > 5
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    monkeypatch.setattr(generate_module, "WINDOW", 7)
    assert torch.equal(generate(model, 50, Request(batch_size=2, seeds=[1, 2])).x, whole)


@every_engine
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_only_read(name, kind, changes, precision):
    """Guards against an engine that works in the memory of the model: the hidden that a bigram starts from is its
    bos."""
    model = small_model(kind, changes)
    before, request = copy.deepcopy(model.state_dict()), Request(seeds=[1], precision=precision)
    first = generate(model, 30, request).x
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert torch.equal(generate(model, 30, request).x, first)


@every_engine
def test_weights_are_never_stale(name, kind, changes):
    """Guards against an engine that goes on with the weights of yesterday, after load_state_dict or a change in
    place."""
    model, other = small_model(kind, changes), small_model(kind, changes)
    first = generate(model, 40, Request(seeds=[1])).x
    wanted = generate(other, 40, Request(seeds=[1])).x
    assert not torch.equal(first, wanted)
    before = copy.deepcopy(model.state_dict())
    model.load_state_dict(other.state_dict())
    assert torch.equal(generate(model, 40, Request(seeds=[1])).x, wanted)
    with torch.no_grad():
        for parameter, value in zip(model.state_dict().values(), before.values(), strict=True):
            parameter.copy_(value)
    assert torch.equal(generate(model, 40, Request(seeds=[1])).x, first)


@every_engine
@pytest.mark.parametrize("precision", [precision for precision in PRECISIONS if precision != "fp32"])
def test_reduced_precision_costs_less_than_a_hundredth(name, kind, changes, precision):
    """Guards against bits packed in the wrong order, or a scale for the wrong column: judged by bits of codes that the
    model itself drew, which a wrong weight would not find likely. The weights of the model stay as they are."""
    torch.manual_seed(1)
    model = small_model(kind, {**changes, "dim": 64})
    codes = generate(model, 700, Request(batch_size=5, seeds=range(5))).x
    seq = model.pattern.apply(codes, model.hole)
    before = copy.deepcopy(model.state_dict())

    if (reason := ENGINES[name].unsupported_reason(model)) is not None:
        pytest.skip(reason)
    logits = ENGINES[name](model, Request(batch_size=5, precision=precision)).logits(seq)
    exact, total = true_logits(model, seq), {}
    for which, x in (("exact", exact), ("rounded", logits)):
        total[which] = float(
            torch.nn.functional.cross_entropy(
                x.flatten(0, 2).double(), seq.transpose(1, 2).flatten(), ignore_index=TOKENS.codebook_size
            )
        )
    assert abs(total["rounded"] / total["exact"] - 1) < 0.01
    if any(isinstance(module, nn.Linear) for module in model.backbone.modules()):
        assert float((logits - exact).abs().max()) > 1e-4  # it was rounded at all
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


@every_engine
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("steps", [0, 1, 50])
def test_a_prompt_seen_at_once_is_as_if_seen_step_by_step(name, kind, changes, precision, steps):
    """Guards against a prompt that is lost, one step off, or laid into the rings wrongly, where its length or its
    rounding (bf16 throughout, not the weights alone) takes another way; 50 steps go once round the ring."""
    model = small_model(kind, changes)
    seq, numbers = random_input(TOKENS, 3, 60), torch.full((3, 60, 3), 0.5, dtype=torch.float64)
    known = torch.ones(3, 60, dtype=torch.bool)
    engine = ENGINES[name](model, Request(batch_size=3, precision=precision))
    expected = engine.logits(seq)[:, steps:]
    got = torch.empty_like(expected).contiguous()
    engine.prefill(seq[:, :, :steps])
    engine.decode(seq[:, :, steps:].clone(), known[:, steps:], numbers[:, steps:], got)
    error = (got - expected).abs().max() / expected.abs().max()
    assert float(error) < (1e-5 if precision == "fp32" else 0.03)


# ---- conditions


def conditioned(kind, changes, guidance=2.0, items=2, frames=60, constant=False):
    """A small model and what is asked of it, by one value for each item or another for each frame."""
    model = tiny_model(TOKENS, kind, "delay", conditions=True, **changes).float()
    conditions = random_conditions(items, frames)
    if constant:
        conditions = {name: values[:, :, :1] for name, values in conditions.items()}
    return model, Request(seeds=range(items), conditions=conditions, guidance=guidance)


@every_engine
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_conditions_and_guidance_are_those_of_the_model(monkeypatch, name, kind, changes, guidance, constant):
    """Guards against an engine in which conditions are left out, one step late, or guide with another scale."""
    model, request = conditioned(kind, changes, guidance, constant=constant)
    seq = model.pattern.apply(random_input(TOKENS, 2, 50), model.hole)
    testing.check_logits(ENGINES[name](model, request), seq)
    got = generate(model, 50, request).x
    plain(monkeypatch)
    expected = generate(model, 50, request).x
    same = (got == expected).all(dim=1).all(dim=0)
    assert bool(same[:25].all()), "draws are others"


@every_engine
def test_conditions_do_not_depend_on_blocks(monkeypatch, name, kind, changes):
    """Guards against frames of conditions that are counted from the block."""
    model, request = conditioned(kind, changes)
    whole = generate(model, 50, request).x
    monkeypatch.setattr(generate_module, "WINDOW", 7)
    assert torch.equal(generate(model, 50, request).x, whole)


@every_engine
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_conditions_change_while_a_stream_plays(monkeypatch, name, kind, changes, guidance):
    """Guards against an engine that keeps its first conditions, or changes them at other frames than the plain loop
    (contract 7): compared with conditions for each frame. One that never changes is the same to the bit."""
    model, request = conditioned(kind, changes, guidance, constant=True)
    values = [request.conditions, *({name: random_conditions(2, 1)[name]} for name in ("label", "text"))]
    following = [values[1], values[1], {}, values[2]]  # before the chunks that begin with the frames 5, 10, 15 and 20
    got = torch.cat(list(stream(model, 40, dataclasses.replace(request, changes=iter(following)))), dim=2)
    frames = [values[0]] * 6 + [values[1]] * 10 + [{}] * 5 + [values[2]] * 19
    nothing = {name: torch.full_like(x, math.nan) for name, x in values[0].items()}
    framewise = {name: torch.cat([{**nothing, **x}[name] for x in frames], dim=2) for name in nothing}
    whole = dataclasses.replace(request, conditions=framewise)
    assert torch.equal(got, generate(model, 40, whole).x)
    constant = dataclasses.replace(request, changes=itertools.repeat(request.conditions))
    assert torch.equal(torch.cat(list(stream(model, 40, constant)), dim=2), generate(model, 40, request).x)
    plain(monkeypatch)
    assert torch.equal(got, generate(model, 40, dataclasses.replace(request, changes=iter(following))).x)


@every_engine
def test_no_guidance_is_what_it_is_without_a_second_row(name, kind, changes):
    """Guards against guidance of 1 that is not free, to the bit (contract 10)."""
    model, request = conditioned(kind, changes, guidance=1.0)
    engine = ENGINES[name](model, request)
    assert engine.rows == 2
    asked = Request(seeds=range(2), conditions=request.conditions)
    assert torch.equal(generate(model, 40, request).x, generate(model, 40, asked).x)


@every_kernel
@pytest.mark.parametrize("precision", [precision for precision in PRECISIONS if precision != "fp32"])
def test_guidance_in_reduced_precision_is_close(name, kind, changes, precision):
    """Guards against rows that are mixed up where weights are rounded."""
    model, request = conditioned(kind, {**changes, "dim": 64})
    seq = model.pattern.apply(random_input(TOKENS, 2, 50), model.hole)
    exact = true_logits(model, seq, request)
    engine = ENGINES[name](model, dataclasses.replace(request, precision=precision))
    error = (engine.logits(seq).double().log_softmax(dim=-1) - exact.log_softmax(dim=-1)).abs()
    assert float(error.mean() / exact.log_softmax(dim=-1).std()) < 0.05


# ---- a graph


def test_a_step_is_captured_once_and_serves_all_blocks():
    """Guards against a capture for each block, or none at all, and a graph that reads where the state has been before
    `set_state` began anew."""
    model = small_model("gpt", {})
    request, seq = Request(batch_size=2), torch.full((2, 3, 700), model.hole)
    engine, known = GraphOnCPU(model, request), torch.zeros(3, 700, dtype=torch.bool)
    numbers = uniforms([1, 2], 0, 700, 3)
    found = []
    for _ in range(2):
        engine.prefill(seq[:, :, :0])
        found.append(seq.clone())
        engine.decode(found[-1][:, :, :300], known[:, :300], numbers[:, :300])
        engine.decode(found[-1][:, :, 300:], known[:, 300:], numbers[:, 300:])
    assert engine.captures == 1
    assert torch.equal(found[0], found[1])
    eager, wanted = Eager(model, request), seq.clone()
    eager.prefill(seq[:, :, :0])
    eager.decode(wanted, known, numbers)
    assert torch.equal(found[0], wanted)


@pytest.mark.parametrize("name", ["graph"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_frames_go_through_a_graph_too(monkeypatch, name, kind):
    """Guards against a step for codes alone: uniform numbers of a density, and holes that are no number."""
    model = tiny_model(FRAMES, kind, "parallel").float()
    prompt = random_input(FRAMES, 2, 3).float()
    got = generate(model, 40, Request(prompt=prompt, seeds=[1, 2])).x
    plain(monkeypatch)
    torch.testing.assert_close(got, generate(model, 40, Request(prompt=prompt, seeds=[1, 2])).x, rtol=1e-4, atol=1e-4)


def test_what_can_not_be_captured_runs_by_itself_and_says_so_once(monkeypatch, caplog):
    """Guards against a model that can't be run on a GPU at all, since a step of it waits for the host."""

    class Refused(GraphEngine):
        device = "cpu"

    @contextmanager
    def graph(*_, **__):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        except RuntimeError:  # torch tells the cause in this way
            raise RuntimeError("operation failed due to a previous error during capture") from None
        yield

    model, streams = small_model("mlp", {}), []
    wanted = generate(model, 50, Request(seeds=[1])).x
    for name, fake in {
        "CUDAGraph": object,
        "graph": graph,
        "current_stream": lambda device: "before",
        "Stream": lambda device: "own",
        "set_stream": streams.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(GraphEngine, "broken", None)  # both are put back afterwards
    monkeypatch.setattr(GraphEngine, "_failed", None)
    use_alone(monkeypatch, Refused)
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="audiogen"):
        for _ in range(3):
            assert torch.equal(generate(model, 50, Request(seeds=[1])).x, wanted)
        assert type(choose(model, Request(seeds=[1]))) is Eager
    assert streams == ["before"]
    assert [record.getMessage() for record in caplog.records] == [
        "the engine graph can't run this model (a CUDA graph can't be captured: operation not permitted when stream is "
        "capturing), so the plain loop does"
    ]


def test_the_stand_in_notices_what_a_graph_could_not_do():
    """Guards against a recorder under which all is well: a value that the host looks at must not pass."""
    x = torch.ones(3)
    for look in (
        lambda: int(x.sum()),
        lambda: bool(x.any()),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: torch.tensor([1.0]),
    ):
        with torch.inference_mode(), pytest.raises(RuntimeError, match="can't be captured"), Recorder():
            look()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind, changes", BACKBONE_CASES)
def test_on_a_gpu_draws_are_those_of_the_plain_loop(monkeypatch, caplog, kind, changes):
    """The graph itself, captured and replayed."""
    model = small_model(kind, changes).cuda()
    prompt = random_input(TOKENS, 3, 4, "cuda")
    with caplog.at_level(logging.INFO, logger="audiogen"):
        got = generate(model, 300, Request(prompt=prompt, seeds=[1, 2, 3])).x
    assert not caplog.records  # it was captured
    plain(monkeypatch)
    expected = generate(model, 300, Request(prompt=prompt, seeds=[1, 2, 3])).x
    assert_same_luck(model.cpu(), got.cpu(), expected.cpu(), [1, 2, 3])


# ---- no numbers

NUMBERS = [
    *(("eager", kind, "fp32") for kind in BACKBONES),
    *((name, name, precision) for name in ("wavenet", "gpt") for precision in PRECISIONS),
    *(("graph", kind, precision) for kind in BACKBONES for precision in ("fp32", "bf16")),
]


def use_engine(monkeypatch, name):
    monkeypatch.setattr(generate_module, "choose", Eager if name == "eager" else ENGINES[name])


@pytest.mark.parametrize("scale", [1e30, 3e38])
@pytest.mark.parametrize("name, kind, precision", NUMBERS)
def test_weights_that_have_run_away_are_reported(monkeypatch, name, kind, precision, scale):
    """Guards against silence, a constant, or a traceback about a division by zero, where the model gives NaN."""
    model = small_model(kind, {})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.sign() * scale)
    use_engine(monkeypatch, name)
    with pytest.raises(GenerationError, match=r"^step \d+: .*not a number") as caught:
        generate(model, 20, Request(seeds=[1, 2], precision=precision))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, kind, precision", NUMBERS)
def test_the_step_is_named(monkeypatch, name, kind, precision):
    """Guards against NaN that a kernel clamps or rounds to a number, and a step that is counted from the block: here
    one code's embedding is infinite, so that the step after its first draw can't be drawn."""
    spec = TokenSpec(8000, 80, 1, 7)
    model = lively(SequenceModel(spec, tiny_backbone(kind), PATTERNS["parallel"](1))).eval()
    use_engine(monkeypatch, name)
    request = Request(torch.zeros(1, 1, 3, dtype=torch.int64), seeds=[1, 2, 3], precision=precision)
    drawn = generate(model, 40, request).x[:, 0, 3:]
    first = {code: 3 + int((drawn == code).any(dim=0).int().argmax()) for code in drawn.unique().tolist() if code}
    code = max(first, key=first.get)  # not that of the prompt
    with torch.no_grad():
        model.embed.table.weight[code] = math.inf
    pieces = stream(model, 40, request)
    with pytest.raises(GenerationError, match=f"^step {first[code] + 1}: "):
        for piece in pieces:
            assert (piece < spec.codebook_size).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_frames_that_are_no_numbers_are_reported(value, temperature):
    """Guards against NaN frames, which the front-end would take for holes, and infinite ones, which the head would
    clamp."""
    model = tiny_model(FRAMES, "gpt", "parallel")
    M = model.head.NUM_COMPONENTS
    with torch.no_grad():  # means of component 0, or deviations of all
        model.head.linear.bias[M:].view(M, 2, -1)[:, 0 if temperature == 0 else 1] = value
    with pytest.raises(GenerationError, match="^step 0: "):
        generate(model, 3, Request(seeds=[1], sampling=Sampling(temperature)))


def test_a_density_has_no_logits():
    """Guards against an AttributeError from an engine that is asked for the logits of frames."""
    model = tiny_model(FRAMES, "bigram", "parallel")
    with pytest.raises(TypeError, match="density"):
        Eager(model, Request()).model.head.logits(torch.zeros(1, 8))


# ---- which engine


@every_engine
def test_choose_takes_the_engine(name, kind, changes):
    """Guards against an engine that is registered and never chosen."""
    assert type(choose(small_model(kind, changes), Request())) is ENGINES[name]


@every_kernel
def test_what_no_engine_runs_goes_the_plain_way_and_says_so_once(caplog, name, kind, changes):
    """Guards against a silent fallback, a line for every batch, and an engine that takes models it does not mean:
    of other types, watched by hooks, or edited."""

    def reset():
        log_once.cache_clear()
        caplog.clear()

    model = small_model(kind, changes)
    watched = []
    handle = model.backbone.register_forward_hook(lambda *_: watched.append(1))
    with caplog.at_level(logging.INFO, logger="audiogen"):
        reset()
        for _ in range(2):
            generate(model, 4, Request(seeds=[0]))
        assert watched
        assert len(caplog.records) == 1 and "so the plain loop does" in caplog.text and "hooks" in caplog.text
        handle.remove()

        reset()
        assert type(choose(small_model(kind, changes).double(), Request())) is Eager
        assert "float32" in caplog.text

        reset()

        class Edited(type(model.backbone)):
            def forward(self, x, state=None):
                y, state = super().forward(x, state)
                return -y, state

        model.backbone.__class__ = Edited
        assert type(choose(model, Request(seeds=[1]))) is Eager


@every_kernel
def test_compiling_is_told_of_where_it_happens(caplog, name, kind, changes):
    """Guards against ten seconds of silence before the first sound, and a line each time although nothing is
    compiled."""
    from numba import njit

    @njit  # kept nowhere, and so compiled here
    def nothing(*arguments):
        return None

    model = small_model(kind, changes)
    engine = ENGINES[name](model, Request(seeds=[0]))  # given, so that no line tells which was drawn
    seq, said = random_input(TOKENS, 1, 2), f"compiling the engine for {type(model.backbone).__name__}"
    with caplog.at_level(logging.INFO, logger="audiogen"), torch.inference_mode():
        engine.set_state(*model.start(1))
        engine._run = nothing
        for _ in range(2):
            engine.decode(seq, torch.zeros(3, 2, dtype=torch.bool), torch.full((1, 2, 3), 0.5, dtype=torch.float64))
    assert [said in record.message for record in caplog.records] == [True]


def test_what_is_not_rounded_says_so(caplog):
    """Guards against `--precision int8` of a model that no engine runs, which changes nothing and told nobody."""
    model = tiny_model(TOKENS, "bigram", "delay").float()
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="audiogen"):
        for _ in range(2):
            generate(model, 4, Request(seeds=[0], precision="int8"))
    assert [record.getMessage() for record in caplog.records] == [
        "this model runs in the plain loop, which does not round weights to int8"
    ]


def test_an_unknown_precision_is_refused():
    """Guards against a precision that is spelt wrongly and silently passed over."""
    with pytest.raises(ConfigError, match="precision.*int4.*fp32, bf16, int8"):
        Request(precision="int4")


# ---- frames

#: Sizes that are no multiples of what the kernels unroll, and a window that wraps around.
FRAME_GPT = {"dim": 24, "num_layers": 3, "num_heads": 2, "window": 11}
every_head = pytest.mark.parametrize("head", FRAME_HEADS)


def frame_model(head, seed=0):
    torch.manual_seed(seed)
    spec = FrameSpec(8000, 80, num_features=7)
    with patch.multiple(FlowMatchingHead, WIDTH=20, WAVES=3, BLOCKS=2):
        model = SequenceModel(spec, GPT(GPT.Config(**FRAME_GPT)), PATTERNS["parallel"](1), head=head)
    with torch.no_grad():  # so that each part of the head matters
        for name, weight in model.named_parameters():
            weight.add_((0.1 if name.startswith("head") else 0.05) * torch.randn_like(weight))
        if head == "density":
            model.head.keep.mul_(0.5)
        model.head.fit([2 * torch.rand(7, 5) - 1])  # a range that some draws leave
    return model.eval()


def frames_drawn(kind, model, num_frames, monkeypatch, **request):
    monkeypatch.setattr(generate_module, "choose", kind)
    return generate(model, num_frames, Request(**request)).x


@every_head
@pytest.mark.parametrize("prompt", [0, 1, 13])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0), Sampling(0.6, top_p=0.8)])
def test_frames_of_the_engine_are_those_of_the_plain_loop(monkeypatch, head, prompt, sampling):
    """Contract 7. Guards against a component chosen by another number, factors or correlations left out or transposed,
    a modulation of another step, a frame before that is one step late, and rings that are read beyond the window."""
    model = frame_model(head)
    asked = {"seeds": [3, 4, 5, 6, 7], "sampling": sampling}
    if prompt:
        asked["prompt"] = random_input(model.spec, 5, prompt)
    expected = frames_drawn(Eager, model, 40, monkeypatch, **asked)
    got = frames_drawn(ENGINES["gpt"], model, 40, monkeypatch, **asked)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    alone = {**asked, "seeds": [4]} | ({"prompt": asked["prompt"][1:2]} if prompt else {})
    torch.testing.assert_close(
        frames_drawn(ENGINES["gpt"], model, 40, monkeypatch, **alone)[0], got[1], rtol=0, atol=1e-4
    )


@every_head
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_weights_change_frames_little(monkeypatch, head, precision):
    """Guards against weights of the wrong layer or scale, which rounding could hide."""
    model, asked = frame_model(head), {"seeds": range(5), "sampling": Sampling(0.0 if head == "density" else 1.0)}
    exact = frames_drawn(ENGINES["gpt"], model, 20, monkeypatch, **asked)
    rounded = frames_drawn(ENGINES["gpt"], model, 20, monkeypatch, precision=precision, **asked)
    assert 0 < float((rounded - exact).abs().max()) < 0.1


@every_head
def test_a_stream_of_frames_is_the_whole(head):
    """Guards against a hidden or a frame before that is lost between two calls of the kernel (contract 8)."""
    model, request = frame_model(head), Request(seeds=[1, 2])
    whole = generate(model, 30, request).x
    assert torch.equal(torch.cat(list(stream(model, 30, request)), dim=2), whole)


@pytest.mark.parametrize(
    "head, where",
    [
        ("density", "head.linear.weight"),
        ("density", "head.below"),
        ("density", "backbone.norm.weight"),
        ("flow", "head.out.bias"),
        ("flow", "head.gain.weight"),
        ("flow", "head.blocks.0.up.weight"),
        ("flow", "backbone.norm.weight"),
    ],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engine_reports_frames_that_are_no_numbers(monkeypatch, head, where, precision):
    """Guards against NaN that a clamp, rounding or fastmath turns into a number."""
    model = frame_model(head)
    with torch.no_grad():
        model.get_parameter(where).fill_(math.nan)
    with pytest.raises(GenerationError, match="step 0|step 1"):
        frames_drawn(ENGINES["gpt"], model, 5, monkeypatch, seeds=[0], precision=precision)


@every_head
def test_frames_run_in_the_engine_unless_their_head_is_another(head):
    """Guards against an engine that is there but never chosen, and one that runs a head that it does not know."""
    model = frame_model(head)
    assert type(choose(model, Request(seeds=[0]))) is ENGINES["gpt"]

    class Other(FRAME_HEADS[head]):
        pass

    model.head.__class__ = Other
    assert type(choose(model, Request(seeds=[0]))) is Eager


@pytest.mark.parametrize("items, guided", [(9, False), (5, True)])
def test_large_batches_of_a_flow_run_in_the_plain_loop(monkeypatch, items, guided):
    """Guards against a kernel that takes a batch which the plain loop runs faster, counts items instead of rows, or
    leaves a batch in full precision where the processor rounds for speed."""
    model = frame_model("flow")
    model.conditioner = lively(tiny_conditioner(FRAME_GPT["dim"]))
    asked: dict = {
        "seeds": range(items),
        "conditions": random_conditions(items, 20),
        "guidance": 1.5 if guided else 1.0,
    }
    assert type(choose(model, Request(**asked))) is Eager
    assert type(choose(model, Request(**{**asked, "seeds": [0], "conditions": {}}))) is ENGINES["gpt"]
    for pays, kind in ((False, Eager), (True, RoundedLoop)):
        monkeypatch.setattr("audiogen.generation.engines.bf16_pays", lambda device, pays=pays: pays)
        assert type(choose(model, Request(**asked, precision="int8"))) is kind
    before = copy.deepcopy(model.state_dict())
    exact = frames_drawn(Eager, model, 10, monkeypatch, **asked)
    rounded = frames_drawn(RoundedLoop, model, 10, monkeypatch, **asked)
    assert 0 < float((rounded - exact).abs().mean()) < 0.02  # some values are clamped in both
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


@every_head
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_frames_of_the_engine_follow_conditions(monkeypatch, head, scale):
    """Guards against what conditions add left out, or guidance that mixes the frames before."""
    model = frame_model(head)
    torch.manual_seed(1)
    model.conditioner = lively(tiny_conditioner(FRAME_GPT["dim"]))
    for parameter in model.conditioner.parameters():
        parameter.data.div_(model.head.emphasis)
    asked = {"seeds": [3, 4], "guidance": scale, "conditions": random_conditions(2, 40)}
    expected = frames_drawn(Eager, model, 30, monkeypatch, **asked)
    got = frames_drawn(ENGINES["gpt"], model, 30, monkeypatch, **asked)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    other = frames_drawn(ENGINES["gpt"], model, 30, monkeypatch, **{**asked, "conditions": {}})
    assert float((other - got).abs().max()) > 0.01
