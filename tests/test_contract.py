"""What every backbone promises (contracts 1 and 2), for all that are registered: see audiogen/testing.py."""

import dataclasses
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import BACKBONE_CASES, lively, tiny_backbone
from torch import nn

from audiogen import testing
from audiogen.errors import ConfigError
from audiogen.models.backbones import BACKBONES, Backbone
from audiogen.testing import verify_backbone

every_backbone = pytest.mark.parametrize("kind, changes", BACKBONE_CASES)

#: Longer than any receptive field or ring of the small backbones.
LONG = testing.STEPS


def build(kind, changes, device):
    torch.manual_seed(0)
    return lively(tiny_backbone(kind, **changes)).double().eval().to(device)


@every_backbone
@given(lengths=st.lists(st.one_of(st.integers(1, 4), st.integers(1, LONG)), min_size=1, max_size=8))
@example(lengths=[1] * LONG)
@example(lengths=[LONG, 1, LONG, 1, 1])
@example(lengths=[1, LONG, 3])
@example(lengths=[2, 3, 4, 5, 6, 7, 8, 9])
def test_whole_equals_any_chunking(device, kind, changes, lengths):
    """Contract 1. Guards against rings written before they are read, slots off by one, positions that a chunk does not
    advance, and chunks longer than the ring that leave the wrong steps in it."""
    testing.check_chunks(build(kind, changes, device), lengths)


@every_backbone
def test_receptive_field_measured_by_gradient_is_the_declared_one(device, kind, changes):
    """Contract 2. Guards against a look at the future, a window off by one (at the edges of blocks too), and a declared
    receptive field that forgets the present step, a layer, or a dilation."""
    testing.check_receptive_field(build(kind, changes, device))


@every_backbone
def test_only_the_receptive_field_matters_however_far_along(device, kind, changes):
    """Guards against what depends on how far the run has gone: absolute positions, empty slots that are looked at, a
    ring that still holds what has left the window."""
    testing.check_distance(build(kind, changes, device))


@every_backbone
def test_state_has_fixed_shapes_and_never_grows(device, kind, changes):
    """Guards against caches that grow with the run, rings whose shape depends on the first chunk, slices that keep a
    whole chunk alive, and states that keep a graph of everything before them."""
    testing.check_state(build(kind, changes, device))


@every_backbone
def test_a_state_can_be_branched_by_cloning(device, kind, changes):
    """Guards against state outside of the state (in the module), and a clone that shares its tensors."""
    testing.check_branches(build(kind, changes, device))


@every_backbone
def test_a_call_without_state_starts_anew(device, kind, changes):
    """Guards against a hidden memory of the call before, and an input or an output written over."""
    testing.check_fresh_start(build(kind, changes, device))


@every_backbone
@pytest.mark.parametrize("lengths", [[LONG], [20, 1, 1, 28]], ids=["whole", "chunks"])
def test_items_of_a_batch_are_independent(device, kind, changes, lengths):
    """Guards against a statistic over the batch, and views that mix its items."""
    testing.check_items(build(kind, changes, device), lengths)


@every_backbone
@pytest.mark.parametrize("lengths", [[24], [20, 4], [20, 1, 1, 1, 1]], ids=["whole", "chunk", "steps"])
def test_the_present_step_has_its_gradient_however_it_is_chunked(device, kind, changes, lengths):
    """Guards against a step that reads its own key or input back from the ring, where its gradient is lost, and a ring
    that is written over before the backward pass wants it."""
    testing.check_gradient(build(kind, changes, device), lengths)


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("value", [0, -1])
def test_settings_out_of_range_are_refused(kind, value):
    """Guards against a traceback from deep inside, or a model that is built and can't be run, for
    `backbone.window=0`."""
    for field in dataclasses.fields(BACKBONES[kind].Config):
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            with pytest.raises(ConfigError, match=f"^backbone.{field.name}: .*{value}"):
                tiny_backbone(kind, **{field.name: value})


def test_the_chunks_above_overrun_the_rings():
    """Guards against small settings grown so large that no chunk here is longer than a ring."""
    for kind in BACKBONES:
        field = tiny_backbone(kind).receptive_field
        assert field < LONG // 2 or field == math.inf


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("wavenet", {"dim": 2, "residual_dim": 2, "num_layers": 64, "dilation_cycle": 64}),
        ("wavenet", {"dim": 2, "residual_dim": 2, "num_layers": 1024, "dilation_cycle": 1024}),
        ("gpt", {"dim": 64, "num_heads": 2, "num_layers": 4, "window": 2**20}),
    ],
)
def test_a_state_that_fills_memory_is_refused(kind, settings):
    """Guards against a stranger's config whose weights are tiny and whose rings take all memory at the first step."""
    with pytest.raises(ConfigError, match="^backbone..*the state of one item would hold"):
        BACKBONES[kind](BACKBONES[kind].Config(**settings))


# ---- the checks themselves


class Faulty(Backbone):
    """Breaks one promise: a moving sum of two steps that is otherwise as it should be."""

    dim, receptive_field = 4, 2

    def __init__(self, fault=None):
        super().__init__()
        self.fault, self.kept = fault, None
        self.linear = nn.Linear(4, 4)
        if fault == "too small a field":
            self.receptive_field = 1
        if fault == "too large a field":
            self.receptive_field = 3

    def forward(self, x, state=None):
        past = torch.zeros_like(x[:, :1]) if state is None else state
        if self.fault == "memory of its own" and self.kept is not None and len(self.kept) == len(x):
            past = self.kept
        if self.fault == "drops the state":
            past = torch.zeros_like(past)
        y = self.linear(x) + torch.cat([past, x[:, :-1]], dim=1)
        if self.fault == "looks ahead":
            y = y + x.roll(-1, dims=1)
        if self.fault == "mixes items":
            y = y + 0.1 * x.mean(dim=0, keepdim=True)
        state = x[:, -1:].detach().clone()
        self.kept = state if self.fault == "memory of its own" else None
        if self.fault == "keeps a graph":
            state = x[:, -1:].clone() * self.linear.weight.sum() / self.linear.weight.sum().detach()
        if self.fault == "keeps a chunk":
            state = x.detach()[:, -1:]
        if self.fault == "grows":
            state = x.detach().clone()
        return y, state


def test_a_sound_backbone_is_verified():
    verify_backbone(Faulty())


@pytest.mark.parametrize(
    "fault, words",
    [
        ("too small a field", "declared are"),
        ("too large a field", "declared are"),
        ("looks ahead", "chunks of|depends on steps"),
        ("mixes items", "others of its batch"),
        ("drops the state", "chunks of"),
        ("memory of its own", "chunks of|calls before"),
        ("keeps a graph", "keeps a graph"),
        ("keeps a chunk", "a view of"),
        ("grows", "chunks of|the state is|size of tensor"),
    ],
)
def test_broken_promises_are_found(fault, words):
    """Guards against a check that passes whatever it is given."""
    with pytest.raises((AssertionError, RuntimeError), match=words):
        verify_backbone(Faulty(fault))
