"""Counting with constants added, and what a table of transitions says. The models themselves: test_evaluation.py."""

import math

import numpy as np
import pytest
import torch

from audiogen.evaluation.ngram import Bigram, cross_entropy, row_entropies


def chain(length: int, size: int, seed: int = 0) -> np.ndarray:
    """A walk that stays, or goes one or two codes on."""
    return np.cumsum(np.random.default_rng(seed).choice([0, 1, 1, 2], size=length)) % size


def counted(*sequences: np.ndarray, size: int = 6) -> Bigram:
    model = Bigram(size)
    for codes in sequences:
        model.add(codes)
    return model


@pytest.mark.parametrize("added", [0.0, 0.125, 1, 40.0])
def test_added_counts_equal_a_slow_loop(added):
    """Guards against a constant that is added to the pairs and not to their sum, and counts that are changed in
    passing."""
    a, b = chain(50, 6), chain(20, 6, seed=1)
    model = counted(a, b)
    pairs = [pair for codes in (a, b) for pair in zip(codes[:-1], codes[1:], strict=True)]
    expected = [
        [(pairs.count((i, j)) + added) / (sum(pair[0] == i for pair in pairs) + 6 * added) for j in range(6)]
        for i in range(6)
    ]
    before = model.counts.copy()
    np.testing.assert_allclose(model.with_added(added), expected, rtol=1e-12)
    np.testing.assert_array_equal(model.counts, before)


def test_an_unseen_row_is_uniform():
    """Guards against 0 / 0: a code that only ever ends a file is followed by nothing."""
    model = counted(np.array([0, 1, 0, 2]), size=3)
    assert model.with_added(0)[2].tolist() == [1 / 3] * 3
    np.testing.assert_allclose(model.with_added(0).sum(axis=1), 1, rtol=1e-12)


def test_many_added_counts_leave_the_uniform_model():
    """Guards against a smoothing that goes towards anything else, such as the unigram."""
    model, other = counted(chain(100, 6)), counted(chain(100, 6, seed=2))
    losses = [cross_entropy(other.counts, model.with_added(added)) for added in (1, 1e3, 1e9)]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(math.log2(6), abs=1e-6)


def test_cross_entropy_is_the_mean_over_the_pairs():
    """Guards against nats called bits, a mean over cells instead of pairs, and a table read by its columns."""
    model, codes = counted(chain(200, 6)), chain(60, 6, seed=3)
    table = model.with_added(0.5)
    pairs = zip(codes[:-1], codes[1:], strict=True)
    expected = np.mean([-math.log2(table[a, b]) for a, b in pairs])
    assert cross_entropy(counted(codes).counts, table) == pytest.approx(expected, rel=1e-12)


def test_a_pair_that_was_held_for_impossible_costs_everything():
    """Guards against a loss that leaves out what the model did not expect, and a warning in the place of an answer."""
    model = counted(np.array([0, 1, 0, 1, 2, 0]), size=3)
    other = counted(np.array([0, 1, 2, 2]), size=3)
    assert cross_entropy(other.counts, model.with_added(0)) == math.inf
    assert cross_entropy(model.counts, model.with_added(0)) < math.log2(3)


def test_no_table_does_better_than_the_counts_own():
    """Guards against a loss that is least somewhere else: a table trained by gradient comes down to it, and no
    further."""
    model = counted(chain(300, 6))
    least = cross_entropy(model.counts, model.with_added(0))
    counts = torch.from_numpy(model.counts).double()
    W = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([W], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -(counts * W.log_softmax(1)).sum() / counts.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    learned = cross_entropy(model.counts, W.softmax(1).detach().numpy())
    assert least <= learned < least + 1e-4


def test_entropies_of_rows_with_known_answers():
    """Guards against 0 log 0, nats called bits, and columns taken for rows."""
    table = np.array([[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0], [0.5, 0.25, 0.125, 0.125]])
    np.testing.assert_allclose(row_entropies(table), [0, 2, 1, 1.75], atol=1e-15)


def test_rows_entropies_weighed_by_their_counts_are_the_entropy_of_the_pairs():
    """Guards against two functions of one table that disagree."""
    model = counted(chain(300, 6))
    table, rows = model.with_added(0), model.counts.sum(axis=1)
    mean = (rows * row_entropies(table)).sum() / rows.sum()
    assert mean == pytest.approx(cross_entropy(model.counts, table), rel=1e-12)
