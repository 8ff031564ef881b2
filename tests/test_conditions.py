"""Conditions and guidance mean the same for every backbone, pattern and spec (contracts 10 and 11)."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny import (
    BACKBONES,
    SPEC_CASES,
    TOKENS,
    random_conditions,
    random_input,
    tiny_backbone,
    tiny_conditioner,
    tiny_model,
)

from audiogen.errors import ConfigError
from audiogen.generation import generate as generate_module
from audiogen.generation.engines.eager import Eager
from audiogen.generation.generate import generate, stream
from audiogen.generation.request import Request
from audiogen.models.batch import Batch
from audiogen.models.conditioning import CONDITIONS, STRENGTH, Conditioner, Label, Number, positions, waves_of
from audiogen.models.patterns import PATTERNS
from audiogen.models.sequence_model import SequenceModel
from audiogen.testing import lively

every_model = pytest.mark.parametrize("kind", BACKBONES)
every_spec = pytest.mark.parametrize("spec, pattern", SPEC_CASES)
T = 17


def nats(model, x, conditions):
    """(B, rows, T)"""
    with torch.no_grad():
        return model(Batch(x, conditions))


def one_item(conditions, item):
    return {name: values[item : item + 1] for name, values in conditions.items()}


@every_model
@every_spec
def test_a_dropped_condition_is_one_that_is_not_given(spec, pattern, kind):
    """Guards against a null that differs from what dropout trains (contract 10), and against a mask that is ignored."""
    model, x = tiny_model(spec, kind, pattern, conditions=True), random_input(spec, 2, T)
    conditions = random_conditions(2, T)
    for name in conditions:
        rest = {other: values for other, values in conditions.items() if other != name}
        dropped = {**rest, name: torch.full_like(conditions[name], math.nan)}
        expected = nats(model, x, rest)
        torch.testing.assert_close(nats(model, x, dropped), expected, rtol=0, atol=1e-12)
        assert not torch.allclose(nats(model, x, conditions), expected)
    torch.testing.assert_close(nats(model, x, None), nats(model, x, {}), rtol=0, atol=0)


@every_model
@every_spec
def test_a_frame_listens_to_its_own_condition_and_none_that_comes_later(spec, pattern, kind):
    """Guards against conditions that are one step late or early (contract 11): of any pattern, whole and in chunks."""
    model, conditions = tiny_model(spec, kind, pattern, conditions=True), random_conditions(1, T)
    changes = [(name, t) for name in conditions for t in (0, 5, T - 1)]
    # Item 0 has all conditions; of each other item, one is changed at one frame.
    conditions = {name: values.repeat(len(changes) + 1, 1, 1) for name, values in conditions.items()}
    for item, (name, t) in enumerate(changes, start=1):
        conditions[name][item, :, t] = math.nan
    seq = model.pattern.apply(random_input(spec, 1, T), model.hole).repeat(len(changes) + 1, 1, 1)

    def steps(lengths):
        found, state, start = [], None, 0
        for chunk in seq.split(lengths, dim=2):
            stop = start + chunk.shape[2]
            nll, state = model.nll_of_steps(chunk, state, model.added(conditions, start, stop))
            found.append(nll)
            start = stop
        return torch.cat(found, dim=2)  # (items, rows, S)

    with torch.no_grad():
        whole, chunks = steps(seq.shape[2]), steps([1] * seq.shape[2])
    torch.testing.assert_close(chunks[0], whole[0], rtol=0, atol=1e-10)
    for found in (whole, chunks):
        differ = (found[1:] - whole[0]).abs().amax(dim=1) > 1e-9  # (changes, S)
        for (name, t), steps_that_differ in zip(changes, differ, strict=True):
            first = int(model.pattern.step_index(t, t + 1).min())
            assert int(steps_that_differ.int().argmax()) == first and steps_that_differ[first], (name, t)


@every_spec
def test_the_newest_frame_is_that_of_the_patterns_table(spec, pattern):
    """Guards against a shortcut that knows other patterns than the table."""
    pattern = PATTERNS[pattern](spec.num_rows)
    table, newest = pattern.frame_index(T), pattern.newest_frame(0, pattern.num_steps(T))
    assert (table <= newest).all()
    assert torch.equal(newest[pattern.step_index(0, T).amin(dim=0)], torch.arange(T))
    assert torch.equal(pattern.newest_frame(4, 9), newest[4:9])


@every_model
@every_spec
def test_what_is_added_is_what_a_slow_loop_adds(spec, pattern, kind):
    """Guards against a condition that is added twice, to the wrong item, or not at all: compared with one embedding at
    a time, looked up in the weights."""
    model, conditions = tiny_model(spec, kind, pattern, conditions=True), random_conditions(2, T)
    steps, parts = model.pattern.num_steps(T), model.conditioner.parts
    expected = torch.zeros(2, steps, model.backbone.dim, dtype=torch.float64)
    for b in range(2):
        for s in range(steps):
            frame = min(s // model.pattern.stride, T - 1)
            at = {name: values[b, :, frame].double() for name, values in conditions.items()}
            expected[b, s] += parts["label"].table[int(at["label"])]
            u = (at["number"] - 60) / 120
            waves = torch.cat([(math.pi * k * u) for k in range(1, 9)])
            expected[b, s] += parts["number"].linear(torch.cat([waves.sin(), waves.cos()]))
            pitch = float(at["pitch"])
            below, part = int(pitch), pitch - int(pitch)
            weight = parts["pitch"].linear.weight.double()
            expected[b, s] += (1 - part) * weight[:, below] + part * weight[:, min(below + 1, 127)]
            waves = torch.cat([math.pi * k * at["pitch"] / 127 for k in range(1, 9)])
            expected[b, s] += weight[:, 128:] @ torch.cat([waves.sin(), waves.cos()]) + parts["pitch"].linear.bias
            v = (at["loudness"] + 80) / 80
            waves = torch.cat([(math.pi * k * v) for k in range(1, 9)])
            expected[b, s] += parts["loudness"].linear(torch.cat([waves.sin(), waves.cos()]))
            expected[b, s] += parts["melody"].linear(at["melody"])
            expected[b, s] += parts["timbre"].linear(at["timbre"])
            expected[b, s] += parts["frames"].linear(at["frames"])
            tables = parts["codes"].table.view(3, 5, -1)
            expected[b, s] += sum(tables[row, int(code)] for row, code in enumerate(at["codes"]))
            near = [math.exp(-float(at["position"][edge]) / 4**power) for edge in range(2) for power in range(6)]
            expected[b, s] += parts["position"].linear(torch.tensor(near, dtype=torch.float64))
            letters = at["text"][~at["text"].isnan()].long()[None]  # one text by itself, without padding
            read, _ = parts["text"].encoder(parts["text"].table(letters))
            expected[b, s] += parts["text"].linear(read[0].mean(dim=0))
    expected *= STRENGTH * model.head.emphasis
    torch.testing.assert_close(model.added(conditions, 0, steps), expected, rtol=0, atol=1e-9)
    constant = {name: values[:, :, :1] for name, values in conditions.items()}
    held = {name: values.expand(-1, -1, T) for name, values in constant.items()}
    assert model.added(constant, 0, steps).shape[1] == 1
    torch.testing.assert_close(
        model.added(constant, 0, steps).expand(-1, steps, -1), model.added(held, 0, steps), rtol=0, atol=1e-12
    )


@every_model
@every_spec
def test_an_item_does_not_listen_to_the_conditions_of_others(spec, pattern, kind):
    """Guards against conditions that leak between items, in training and in generation (contract 10)."""
    model, x, conditions = (
        tiny_model(spec, kind, pattern, conditions=True),
        random_input(spec, 3, T),
        random_conditions(3, T),
    )
    conditions["label"][1] = math.nan  # padding of an item that gives less
    together = nats(model, x, conditions)
    request = Request(seeds=[1, 2, 3], conditions=conditions, guidance=2.0)
    drawn = generate(model, T, request).x
    for item in range(3):
        alone = one_item(conditions, item)
        torch.testing.assert_close(nats(model, x[item : item + 1], alone)[0], together[item], rtol=0, atol=1e-10)
        own = generate(model, T, Request(seeds=[item + 1], conditions=alone, guidance=2.0)).x
        torch.testing.assert_close(own[0], drawn[item], rtol=0, atol=1e-9)


@every_model
@every_spec
def test_new_conditions_change_nothing_yet(spec, pattern, kind):
    """Guards against conditions that disturb a model which was trained without them, and against other initial weights
    for the same seed."""
    torch.manual_seed(5)
    plain = SequenceModel(spec, tiny_backbone(kind), PATTERNS[pattern](spec.num_rows)).double().eval()
    torch.manual_seed(5)
    backbone = tiny_backbone(kind)
    model = SequenceModel(spec, backbone, PATTERNS[pattern](spec.num_rows), tiny_conditioner()).double().eval()
    x, conditions = random_input(spec, 2, T), random_conditions(2, T)
    assert torch.equal(nats(model, x, conditions), nats(plain, x, None))
    expected = generate(plain, T, Request(seeds=[1])).x
    asked = one_item(conditions, 0)
    assert torch.equal(generate(model, T, Request(seeds=[1], conditions=asked)).x, expected)
    guided = generate(model, T, Request(seeds=[1], conditions=asked, guidance=3.0)).x
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-9)


@every_model
@every_spec
def test_every_weight_of_the_conditions_learns(spec, pattern, kind):
    """Guards against a condition behind no_grad, as audiocraft had for months: each weight has a gradient.

    Last layers start at zero, so those before them are given a gradient by large weights."""
    backbone = tiny_backbone(kind)
    conditioner = lively(tiny_conditioner())
    model = SequenceModel(spec, backbone, PATTERNS[pattern](spec.num_rows), conditioner).double()
    conditions = random_conditions(8, T)
    for values in conditions.values():
        values[:2] = math.nan  # so that null vectors have one too
    model(Batch(random_input(spec, 8, T), conditions)).sum().backward()
    for name, parameter in model.conditioner.named_parameters():
        learned = parameter.grad.abs() > 0
        if name.endswith("text.table.weight"):
            learned = learned[conditions["text"][2:].unique().nan_to_num(97).long()]  # bytes that occur
        if name.endswith("pitch.linear.weight"):
            near = (conditions["pitch"][2:] - torch.arange(128)[:, None, None, None]).abs().amin((1, 2, 3)) < 1
            learned = torch.cat([learned[:, :128][:, near], learned[:, 128:]], dim=1)  # pitches that occur, and waves
        assert learned.all(), name


@every_model
@every_spec
def test_guidance_of_one_is_none_and_of_zero_is_without_conditions(spec, pattern, kind, monkeypatch):
    """Guards against guidance that costs or changes something where nobody asks for it, to the bit (contract 10)."""
    model, conditions = tiny_model(spec, kind, pattern, conditions=True), random_conditions(2, T)
    without = generate(model, T, Request(seeds=[1, 2])).x
    given = generate(model, T, Request(seeds=[1, 2], conditions=conditions)).x
    assert not torch.equal(given, without)
    zero = generate(model, T, Request(seeds=[1, 2], conditions=conditions, guidance=0.0)).x
    torch.testing.assert_close(zero, without, rtol=0, atol=1e-9)
    monkeypatch.setattr(model.head, "combine", None)
    assert torch.equal(generate(model, T, Request(seeds=[1, 2], conditions=conditions, guidance=1.0)).x, given)
    assert torch.equal(generate(model, T, Request(seeds=[1, 2], guidance=3.0)).x, without)  # nothing to be guided by


@every_model
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_guidance_goes_from_the_null_distribution_through_the_given_one(kind, pattern, scale):
    """Guards against the caller's scale being ignored, as in one of audiocraft's two branches, and against another
    formula: compared with log-probabilities of two whole forwards, combined by hand."""
    model, x, conditions = (
        tiny_model(TOKENS, kind, pattern, conditions=True),
        random_input(TOKENS, 2, T),
        random_conditions(2, T),
    )
    seq = model.pattern.apply(x, model.hole)
    S = seq.shape[2]
    logs = []
    for asked in (conditions, {}):
        first = model.bos.expand(2, 1, -1)
        with torch.no_grad():
            h, _ = model.backbone(torch.cat([first, model.embed(seq[:, :, :-1])], dim=1) + model.added(asked, 0, S))
            logs.append(model.head.logits(h).log_softmax(dim=-1))
    expected = (logs[1] + scale * (logs[0] - logs[1])).log_softmax(dim=-1)
    engine = Eager(model, Request(batch_size=2, conditions=conditions, guidance=scale))
    got = torch.empty(2, S, 3, 7, dtype=torch.float64)
    engine.prefill(seq[:, :, :4])
    numbers = torch.full((2, S, 3), 0.5, dtype=torch.float64)
    engine.decode(seq[:, :, 4:].clone(), torch.ones(3, S - 4, dtype=torch.bool), numbers, got[:, 4:])
    torch.testing.assert_close(got[:, 4:].log_softmax(dim=-1), expected[:, 4:], rtol=0, atol=1e-9)


@every_model
@every_spec
def test_a_stream_follows_its_conditions_as_the_whole_does(spec, pattern, kind, monkeypatch):
    """Guards against conditions that begin anew with each window, or are shifted by the prompt."""
    model, conditions = tiny_model(spec, kind, pattern, conditions=True), random_conditions(2, T)
    request = Request(random_input(spec, 2, 5), seeds=[3, 4], conditions=conditions, guidance=1.5)
    whole = generate(model, T - 5, request).x
    monkeypatch.setattr(generate_module, "WINDOW", 3)
    torch.testing.assert_close(torch.cat(list(stream(model, T - 5, request)), dim=2), whole, rtol=0, atol=1e-9)


@every_model
@every_spec
def test_conditions_that_end_early_say_nothing_more(spec, pattern, kind):
    """Guards against a melody whose last note is held to the end: as if NaN followed, whole and as a stream."""
    model, conditions = tiny_model(spec, kind, pattern, conditions=True), random_conditions(2, T)
    short = {name: x[:, :, :9] for name, x in conditions.items()}
    for x in conditions.values():
        x[:, :, 9:] = math.nan
    expected = generate(model, T, Request(seeds=[1, 2], conditions=conditions, guidance=2.0)).x
    request = Request(seeds=[1, 2], conditions=short, guidance=2.0)
    assert torch.equal(generate(model, T, request).x, expected)
    assert torch.equal(torch.cat(list(stream(model, T, request)), dim=2), expected)


@every_model
@every_spec
def test_a_stream_takes_new_conditions_from_the_next_frame_on(spec, pattern, kind):
    """Guards against a change that is heard before its frame or a frame late (contract 11): compared with conditions
    for each frame. They are asked for before each chunk of five frames, after the prompt."""
    model, later = tiny_model(spec, kind, pattern, conditions=True), random_conditions(2, 2)
    values = [one_frame(later, 0), {"number": later["number"][:1, :, 1:]}, one_frame(later, 1)]
    request = Request(random_input(spec, 2, 2), seeds=[1, 2], conditions=values[0], guidance=2.0)
    got = torch.cat(list(stream(model, 15, replace(request, changes=iter(values[1:])))), dim=2)
    nothing = {name: torch.full_like(x, math.nan) for name, x in values[0].items()}
    rows = [values[0]] * 8 + [values[1]] * 5 + [values[2]] * 4
    frames = {name: torch.cat([{**nothing, **row}[name].expand(2, -1, 1) for row in rows], dim=2) for name in nothing}
    expected = generate(model, 15, replace(request, conditions=frames)).x
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    same = replace(request, changes=itertools.repeat(values[0]))
    assert torch.equal(torch.cat(list(stream(model, 15, same)), dim=2), generate(model, 15, request).x)


def one_frame(conditions, frame):
    return {name: values[:, :, frame : frame + 1] for name, values in conditions.items()}


@every_model
def test_the_prompt_is_continued_as_if_it_had_been_drawn_under_the_conditions(kind):
    """Guards against conditions of frame 0 that are asked of the first new frame."""
    model, conditions = tiny_model(TOKENS, kind, "delay", conditions=True), random_conditions(1, T)
    whole = generate(model, T, Request(seeds=[3], conditions=conditions, guidance=1.5)).x
    # Draws go by the step, so that a prompt of whole frames is continued by the very draws that made the rest.
    again = generate(model, T - 6, Request(whole[:, :, :6], seeds=[3], conditions=conditions, guidance=1.5)).x
    assert torch.equal(again, whole)


def test_the_same_take_with_another_label_has_the_same_uniform_numbers():
    """Guards against draws that depend on what is asked for: labels that do nothing change nothing."""
    model = tiny_model(TOKENS, "gpt", "delay", conditions=True)
    with torch.no_grad():
        model.conditioner.parts["label"].table[1] = model.conditioner.parts["label"].table[0]
    takes = [
        generate(model, T, Request(seeds=[9], conditions={"label": torch.tensor([[[place]]])})).x
        for place in (0.0, 1.0, 2.0)
    ]
    assert torch.equal(takes[0], takes[1]) and not torch.equal(takes[0], takes[2])


# ---- values


def test_case_and_spaces_make_no_other_label():
    """Guards against "Kick" and "kick " as two prompts, a question that users of MusicGen never got answered."""
    label = Label(Label.Config(("Kick", "Straße")), 4)
    assert [int(label.parse("drum", text)) for text in ("kick", " KICK ", "Kick", "STRASSE")] == [0, 0, 0, 1]
    assert label.describe(label.parse("drum", "kick")) == "Kick"
    with pytest.raises(ConfigError, match=r"drum: there is no 'kik', did you mean Kick\?; choose one of Kick, Straße"):
        label.parse("drum", "kik")
    with pytest.raises(ConfigError, match="case"):
        Label.Config(("Kick", "kick"))


def test_numbers_are_those_of_the_training_files():
    """Guards against a tempo that no file has, which the model would answer with anything."""
    number = Number(Number.Config(60.0, 180.0), 4)
    assert float(number.parse("tempo", "120")) == 120.0 and number.describe(number.parse("tempo", 90)) == "90"
    for bad in (59, "fast", math.nan, None):
        with pytest.raises(ConfigError, match="tempo: must be a number from 60 to 180"):
            number.parse("tempo", bad)


def test_neighbouring_pitches_differ_as_much_as_their_gap_asks_for():
    """Guards against a pitch whose code hardly differs from that of the next semitone, so the model can't tell them."""
    coarse, fine = Number(Number.Config(23, 107), 4), Number(Number.Config(23, 107, gap=1), 4)
    assert coarse.linear.weight.shape == (4, 2 * 8) and fine.linear.weight.shape == (4, 2 * 11)  # 8, 16, 32 and 64

    def alike(octaves):
        one, two = waves_of(torch.tensor([[[60.0, 61.0]]]), 23, 107, octaves)[0]
        return float(torch.cosine_similarity(one, two, dim=0))

    assert alike(coarse.octaves) > 0.95 and alike(fine.octaves) < 0.8
    with pytest.raises(ConfigError, match="gap: must be 0 or more"):
        Number.Config(0, 1, gap=-1)


def test_positions_count_from_both_ends():
    """Guards against a file that ends one frame early."""
    assert positions(4).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


@pytest.mark.parametrize("name", ["type", "float", "keys", "forward", "parts", "null"])
def test_a_condition_may_have_any_name(name):
    """Guards against a column of a CSV that is called like a method of torch's modules."""
    conditioner = Conditioner({name: Label(Label.Config(("a",)), 4)})
    assert conditioner({name: torch.zeros(1, 1, 1)}, torch.arange(3)).shape == (1, 1, 4)
    copy.deepcopy(conditioner).load_state_dict(conditioner.state_dict())


@pytest.mark.parametrize(
    "conditions, message",
    [
        ({"labl": torch.zeros(1, 1, 1)}, "this model has no 'labl'; it has label, number"),
        ({"frames": torch.zeros(1, 3, T)}, r"frames must have the shape \(items, 4, frames or 1\), got \(1, 3, 17\)"),
        ({"label": torch.zeros(2, 1, 1)}, "one label per item is needed, or one for all 3, got 2"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(conditions, message):
    """Guards against a traceback about shapes, and a condition that is ignored in silence."""
    model = tiny_model(TOKENS, "bigram", "parallel", conditions=True)
    with pytest.raises(ConfigError, match=message):
        generate(model, T, Request(seeds=[1, 2, 3], conditions=conditions))
    with pytest.raises(ConfigError, match="trained without any"):
        generate(
            tiny_model(TOKENS, "bigram", "parallel"), T, Request(seeds=[1], conditions={"label": torch.zeros(1, 1, 1)})
        )


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_a_scale_out_of_range_is_refused(scale):
    """Guards against guidance by NaN."""
    with pytest.raises(ConfigError, match="guidance: must be from 0 to 100"):
        Request(seeds=[1], guidance=scale)


def test_every_kind_is_tested():
    """Guards against a condition that is registered and that no contract here sees."""
    assert set(tiny_conditioner().parts) == set(CONDITIONS) == set(random_conditions(1, 1))
