"""Patterns against their definition as slow loops, and against the picture in their own documentation."""

import math
import re

import pytest
import slow
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiogen.models import patterns
from audiogen.models.patterns import PATTERNS

every_pattern = pytest.mark.parametrize("kind", PATTERNS)
sizes = pytest.mark.parametrize(
    "num_rows, num_frames", [(1, 1), (1, 5), (2, 1), (3, 1), (3, 2), (3, 7), (8, 4), (4, 30)]
)


def table(pattern, num_frames):
    index = pattern.frame_index(num_frames)
    assert index.dtype == torch.int64
    return [[None if frame == -1 else frame for frame in row] for row in index.tolist()]


@every_pattern
@sizes
def test_tables_equal_the_slow_definition(kind, num_rows, num_frames):
    """Guards against a delay that ends a step early or late, rows in another order, and a hole that is not -1."""
    assert table(PATTERNS[kind](num_rows), num_frames) == slow.layout(kind, num_rows, num_frames)


def test_tables_equal_the_picture_in_the_documentation():
    """Guards against a picture that says something else than the code."""
    lines = [line for line in patterns.__doc__.splitlines() if re.search(r"\d [\d.]", line) and "=" not in line]
    assert len(lines) == 3
    cells = re.compile(r"(?:[\d.] )+[\d.]")
    shown = {
        kind: [cells.findall(line)[column].split() for line in lines]
        for column, kind in enumerate(["parallel", "delay", "flatten"])
    }
    for kind, rows in shown.items():
        assert [[None if cell == "." else int(cell) for cell in row] for row in rows] == table(PATTERNS[kind](3), 3)


@every_pattern
@sizes
def test_apply_lays_each_frame_where_the_table_says(kind, num_rows, num_frames):
    """Guards against items or rows mixed up by the gather, and holes filled with frame 0."""
    x = torch.arange(2 * num_rows * num_frames).view(2, num_rows, num_frames)
    seq = PATTERNS[kind](num_rows).apply(x, hole=-7)
    rows = slow.layout(kind, num_rows, num_frames)
    for item in range(2):
        for row in range(num_rows):
            expected = [-7 if frame is None else int(x[item, row, frame]) for frame in rows[row]]
            assert seq[item, row].tolist() == expected


@every_pattern
@given(num_rows=st.integers(1, 9), num_frames=st.integers(0, 40), batch_size=st.integers(1, 3))
def test_invert_undoes_apply(device, kind, num_rows, num_frames, batch_size):
    """Guards against a frame that is lost at either end, and a pattern that can't lay out nothing."""
    x = torch.randint(1000, (batch_size, num_rows, num_frames)).to(device)
    pattern = PATTERNS[kind](num_rows)
    seq = pattern.apply(x, hole=-1)
    assert seq.dtype == x.dtype
    assert seq.shape == (batch_size, num_rows, pattern.num_steps(num_frames))
    assert (seq >= 0).sum() == x.numel()  # every code once, the rest are holes
    assert torch.equal(pattern.invert(seq, num_frames), x)


@every_pattern
def test_frames_of_features_share_one_row(kind):
    """Guards against a table that fits codes alone: frames (B, F, T) are one row, with NaN in its holes."""
    x = torch.randn(2, 5, 6)
    pattern = PATTERNS[kind](1)
    seq = pattern.apply(x, hole=math.nan)
    assert torch.equal(pattern.invert(seq, 6), x)


@every_pattern
@sizes
def test_a_row_is_laid_out_in_order(kind, num_rows, num_frames):
    """Guards against a pattern that could not be generated from left to right: a frame must never stand before an
    earlier one of its row, nor may a later frame be whole first."""
    steps = PATTERNS[kind](num_rows).step_index(0, num_frames)
    assert steps.shape == (num_rows, num_frames)
    assert (steps.diff(dim=1) > 0).all()
    assert (steps.amax(dim=0).diff() > 0).all()


@every_pattern
@given(num_rows=st.integers(1, 6), num_frames=st.integers(0, 20), start=st.integers(0, 130), length=st.integers(0, 30))
def test_a_window_is_cut_out_of_the_whole(kind, num_rows, num_frames, start, length):
    """Guards against a window of steps that differs from the whole at its edges, and holes that are no holes behind the
    end."""
    pattern, x = PATTERNS[kind](num_rows), torch.arange(num_rows * num_frames).view(1, num_rows, num_frames)
    rows = slow.layout(kind, num_rows, num_frames)
    got = pattern.apply(x, -7, start, start + length)
    for row in range(num_rows):
        frames = (rows[row] + [None] * (start + length))[start : start + length]
        assert got[0, row].tolist() == [-7 if frame is None else int(x[0, row, frame]) for frame in frames]


@every_pattern
@sizes
def test_frames_are_whole_once_their_last_row_is_there(kind, num_rows, num_frames):
    """Guards against a stream that hands out frames too early, or later than it could."""
    pattern, rows = PATTERNS[kind](num_rows), slow.layout(kind, num_rows, num_frames)
    for steps in range(pattern.num_steps(num_frames) + 1):
        there = [set(row[:steps]) for row in rows]
        whole = sum(all(frame in row for row in there) for frame in range(num_frames))
        assert min(pattern.num_whole_frames(steps), num_frames) == whole
