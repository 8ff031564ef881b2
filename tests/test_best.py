"""Best of several: the draw that is kept says most clearly what was asked for."""

import math

import pytest
import torch
from tiny import BACKBONES, SPEC_CASES, TOKENS, random_conditions, random_input, tiny_model

from audiogen.errors import ConfigError
from audiogen.generation import best as best_module
from audiogen.generation.best import evidence, generate_best
from audiogen.generation.generate import generate
from audiogen.generation.request import Request, Until
from audiogen.models.batch import Batch
from audiogen.models.conditioning import positions

T = 9


def asked(batch_size: int) -> dict[str, torch.Tensor]:
    """The conditions of a tiny model, but for those that an option of their own gives."""
    return {name: x for name, x in random_conditions(batch_size, T).items() if name != "position"}


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("spec, pattern", SPEC_CASES)
def test_evidence_is_the_difference_of_two_losses(spec, pattern, kind, monkeypatch):
    """Guards against a sign, a prompt that counts, and chunks that forget what was before them."""
    model, x, given = tiny_model(spec, kind, pattern, conditions=True), random_input(spec, 2, T), asked(2)
    with torch.no_grad():
        expected = (model(Batch(x)) - model(Batch(x, given)))[:, :, 3:].sum(dim=(1, 2))
    torch.testing.assert_close(evidence(model, x, given, {}, 3), expected.double(), rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(best_module, "WINDOW", 4)
    torch.testing.assert_close(evidence(model, x, given, {}, 3), expected.double(), rtol=1e-9, atol=1e-9)


def test_what_follows_the_end_of_a_sound_does_not_count():
    """Guards against a short hit judged by the noise that fills its row of the batch."""
    model, x, given = tiny_model(TOKENS, "gpt", "delay", conditions=True), random_input(TOKENS, 1, T), asked(1)
    place = torch.full((1, 2, T), math.nan, dtype=torch.float64)
    place[:, :, :5] = positions(5)
    with torch.no_grad():
        nats = [model(Batch(x, {**more, "position": place})) for more in ({}, given)]
    expected = (nats[0] - nats[1])[:, :, :5].sum(dim=(1, 2))
    found = evidence(model, x, {**given, "position": place}, {"position": place}, 0)
    torch.testing.assert_close(found, expected.double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec, pattern", SPEC_CASES)
def test_the_draw_of_most_evidence_is_kept(spec, pattern):
    """Guards against the last, the first or the worst one, and against seeds that do not repeat what was kept."""
    model, given, firsts = tiny_model(spec, "gpt", pattern, conditions=True), asked(8), range(0, 80, 10)
    request = Request(seeds=firsts, conditions=given, guidance=2.0, best_of=4)
    made = generate_best(model, T, request)
    tries = [
        generate(model, T, Request(seeds=[first + k for first in firsts], conditions=given, guidance=2.0))
        for k in range(4)
    ]
    most = torch.stack([evidence(model, one.x, given, {}, 0) for one in tries]).argmax(dim=0).tolist()
    assert len(set(most)) > 1  # else the test would not tell items from each other
    for item, (first, k) in enumerate(zip(firsts, most, strict=True)):
        assert made.seeds[item] == first + k
        torch.testing.assert_close(made.x[item], tries[k].x[item], rtol=0, atol=0)


@pytest.mark.parametrize("conditions", [None, {"position": positions(T)[None].double()}])
def test_nothing_asked_is_nothing_to_be_said(conditions):
    """Without a label, likelihood alone would choose the dullest sound: silence."""
    model = tiny_model(TOKENS, "gpt", "parallel", conditions=True)
    with pytest.raises(ConfigError, match="best_of: nothing is asked for"):
        generate_best(model, T, Request(seeds=[1], conditions=conditions, best_of=2))


def test_items_of_varying_length_are_refused():
    """Draws of other lengths can't take each other's place: a traceback of torch."""
    model = tiny_model(TOKENS, "gpt", "parallel", conditions=True)
    until = Until(5, lambda codes: torch.ones(len(codes), codes.shape[2], dtype=torch.int64))
    with pytest.raises(ConfigError, match="best_of: needs a front-end with a constant frame rate"):
        generate_best(model, T, Request(seeds=[1], conditions=asked(1), best_of=2, until=until))


@pytest.mark.parametrize("count", [0, 65])
def test_a_number_out_of_range_is_refused(count):
    """A typo that would take hours."""
    with pytest.raises(ConfigError, match="best_of: must be from 1 to 64"):
        Request(seeds=[1], best_of=count)
