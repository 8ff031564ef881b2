"""Fixed contexts: training examples, draws, losses, and sounds joined with pauses."""

import math

import pytest
import torch
from corpus import RATE, tiny_frontend

from audiogen.course.fixed_context import bits, draw, examples, joined


def test_examples_are_each_code_with_the_ones_before_it():
    """Guards against contexts that reach into the previous file, and a first code that is never predicted."""
    contexts, following = examples([torch.tensor([[7, 4, 9]]), torch.tensor([[1]])], 3, 10)
    assert contexts.tolist() == [[11, 11, 10], [11, 10, 7], [10, 7, 4], [11, 11, 10]]
    assert following.tolist() == [7, 4, 9, 1]
    assert examples([torch.tensor([[7, 4]])], 1, 10)[0].tolist() == [[10], [7]]


def test_a_draw_sees_what_training_saw():
    """Guards against drawing from other contexts than those of `examples`. The model is certain that code = sum of the
    context modulo V."""

    def logits(contexts):
        return 100.0 * torch.nn.functional.one_hot(contexts.sum(dim=1) % 5, 5)

    codes = draw(logits, 3, 5, 12, torch.Generator().manual_seed(0))
    contexts, following = examples([codes[None]], 3, 5)
    assert len(codes) == 12 and torch.equal(contexts.sum(dim=1) % 5, following)
    flat = [draw(lambda x: torch.zeros(1, 5), 1, 5, 30, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])
    assert set(flat[0].tolist()) == {0, 1, 2, 3, 4}


def test_bits_are_those_of_each_code():
    """Guards against nats instead of bits, and a mean of batch means although the last batch is smaller."""
    contexts, following = torch.zeros(8193, 1, dtype=torch.int64), torch.zeros(8193, dtype=torch.int64)
    following[-1] = 1

    def logits(contexts):
        return torch.tensor([0.75, 0.25]).log().expand(len(contexts), 2)

    assert bits(logits, contexts, following) == pytest.approx((8192 * math.log2(4 / 3) + 2) / 8193, rel=1e-5)


def test_sounds_are_joined_with_pauses():
    """Guards against a pause before the first or after the last sound, and sounds without a pause between them."""
    frontend = tiny_frontend("mulaw")
    pieces = [torch.full((50,), 15), torch.full((30,), 15)]
    wav = joined(frontend, pieces, pause=0.01)[0]
    assert len(wav) == 50 + RATE // 100 + 30
    assert (wav[:50] > 0.5).all() and (wav[50:130] == 0).all() and (wav[130:] > 0.5).all()
