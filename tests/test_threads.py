"""Batches on several threads: the same results, and only while that is faster. A made-up clock decides here."""

import pytest
import torch
from tiny import FLOW_FRAMES, FRAMES, TOKENS, random_conditions, tiny_model

from audiogen.generation.engines import PRECISIONS
from audiogen.generation.engines.cpu import threads
from audiogen.generation.engines.cpu.threads import Threads
from audiogen.generation.generate import generate
from audiogen.generation.request import Request


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    "kind, spec, pattern",
    [
        ("wavenet", TOKENS, "delay"),
        ("gpt", TOKENS, "delay"),
        ("gpt", FRAMES, "parallel"),
        ("gpt", FLOW_FRAMES, "parallel"),
    ],
    ids=["wavenet", "gpt", "gpt-density", "gpt-flow"],
)
def test_threads_change_nothing(monkeypatch, kind, spec, pattern, guidance, precision):
    """Guards against items that are computed together in another way on several threads, and so round differently,
    against state, working memory or conditions of other items, and against rows of guidance that part from each other:
    blocks alternate between one thread and two."""
    items = 11 if kind == "wavenet" else 4 if spec == FLOW_FRAMES else 7  # a flow of more runs in the plain loop
    model = tiny_model(spec, kind, pattern, conditions=True).float()
    request = Request(
        seeds=range(items), precision=precision, guidance=guidance, conditions=random_conditions(items, 60)
    )
    ways = []

    def alternate(self, took, trial):
        ways.append(len(self.parts) if self.shared else 1)
        self.shared, self.left = not self.shared, 1

    monkeypatch.setattr(Threads, "_note", alternate)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    got = generate(model, 60, request).x
    assert set(ways) == {1, 2}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(generate(model, 60, request).x, got) and set(ways) == {1, 2}


@pytest.mark.parametrize(
    "items, together, count, expected",
    [
        (1, 2, 4, [1]),
        (3, 2, 4, [3]),
        (4, 2, 4, [2, 2]),
        (9, 2, 2, [4, 5]),
        (16, 4, 4, [4, 4, 4, 4]),
        (13, 4, 3, [4, 4, 5]),
        (5, 1, 2, [2, 3]),
    ],
)
def test_parts_are_of_items_computed_together(monkeypatch, items, together, count, expected):
    """Guards against an item that is left out or computed twice, and parts of which some have no work."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    shares = Threads(items, together)
    assert [part.stop - part.start for part in shares.parts] == expected
    assert (shares.pool is None) == (len(expected) == 1)


def ways(monkeypatch, blocks):
    """Run blocks of two parts that take (seconds in one thread, seconds in two); return which ran in two."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    now, found, shares = [0.0], [], Threads(8, 4)
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    shares.pool = shares.pool and Immediately()
    for one, two in blocks:
        parts = []

        def work(part, one=one, two=two, parts=parts):
            parts.append(part)
            now[0] += one if part == slice(0, 8) else two / 2

        shares.run(work, 1)
        assert [i for part in parts for i in range(8)[part]] == list(range(8))
        found.append(len(parts) == 2)
    return found


class Immediately:
    map = staticmethod(map)


def test_two_threads_are_used_where_they_are_faster(monkeypatch):
    """Guards against threads that are never tried, or tried at every block."""
    found = ways(monkeypatch, [(10.0, 6.0)] * 200)
    assert not any(found[: Threads.FIRST]) and 1 <= found[Threads.FIRST :].count(False) <= 3


def test_one_thread_is_kept_where_the_other_core_is_busy(monkeypatch):
    """Guards against a batch that becomes slower on a machine that other programs use."""
    assert 1 <= sum(ways(monkeypatch, [(10.0, 18.0)] * 200)) <= 4


def test_the_way_changes_with_the_machine(monkeypatch):
    """Guards against a choice for good: the other core becomes busy, and idle again."""
    found = ways(monkeypatch, [(10.0, 6.0)] * 50 + [(10.0, 18.0)] * 150 + [(10.0, 6.0)] * 100)
    assert all(found[10:50]) and sum(found[55:200]) <= 4 and found[264:].count(False) <= 1


def test_a_block_that_is_slow_by_chance_changes_nothing(monkeypatch):
    """Guards against a single interruption that decides for the blocks after it."""
    found = ways(monkeypatch, [(10.0, 18.0)] * 5 + [(30.0, 18.0)] + [(10.0, 18.0)] * 20)
    assert not any(found[5:])
