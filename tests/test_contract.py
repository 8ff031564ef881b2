"""What every backbone promises (contracts 1 and 2), for all that are registered."""

import dataclasses

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import BACKBONE_CASES, lively, state_tensors, tiny_backbone

from audiogen.errors import ConfigError
from audiogen.models.backbones import BACKBONES
from audiogen.models.layers import clone_state

every_backbone = pytest.mark.parametrize("kind, changes", BACKBONE_CASES)

#: Longer than any receptive field or ring of the small backbones.
LONG = 50


def build(kind, changes, device):
    torch.manual_seed(0)
    return lively(tiny_backbone(kind, **changes)).double().eval().to(device)


def noise(device, *shape):
    return torch.randn(*shape, dtype=torch.float64).to(device)


def in_chunks(backbone, x, lengths):
    state, pieces = None, []
    for piece in x.split(lengths, dim=1):
        y, state = backbone(piece, state)
        assert y.shape == piece.shape
        pieces.append(y)
    return torch.cat(pieces, dim=1)


@every_backbone
@given(lengths=st.lists(st.one_of(st.integers(1, 4), st.integers(1, LONG)), min_size=1, max_size=8))
@example(lengths=[1] * LONG)
@example(lengths=[LONG, 1, LONG, 1, 1])
@example(lengths=[1, LONG, 3])
@example(lengths=[2, 3, 4, 5, 6, 7, 8, 9])
@torch.no_grad()
def test_whole_equals_any_chunking(device, kind, changes, lengths):
    """Contract 1. Buries rings written before they are read, slots off by one, positions that a chunk does not move
    on, and chunks longer than the ring that leave the wrong steps in it."""
    backbone = build(kind, changes, device)
    x = noise(device, 2, sum(lengths), backbone.dim)
    whole, _ = backbone(x)
    assert whole.std() > 0.01  # else equality would say nothing
    torch.testing.assert_close(in_chunks(backbone, x, lengths), whole, rtol=0, atol=1e-10)


@every_backbone
def test_receptive_field_measured_by_gradient_is_the_declared_one(device, kind, changes):
    """Contract 2. Buries a look at the future, a window off by one (at the edges of blocks too), and a declared
    receptive field that forgets the present step, a layer, or a dilation."""
    backbone = build(kind, changes, device)
    x = noise(device, 4, LONG, backbone.dim).requires_grad_()
    y, _ = backbone(x)
    weights = noise(device, backbone.dim)
    for t in range(LONG):
        (gradient,) = torch.autograd.grad((y[:, t] * weights).sum(), x, retain_graph=True)
        seen = gradient.abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
        assert seen == list(range(max(0, t - backbone.receptive_field + 1), t + 1)), f"at step {t}"


@every_backbone
@torch.no_grad()
def test_only_the_receptive_field_matters_however_far_along(device, kind, changes):
    """Buries what depends on how far the run has gone: absolute positions, empty slots that are looked at, a ring that
    still holds what has left the window."""
    backbone = build(kind, changes, device)
    field = backbone.receptive_field
    x = noise(device, 2, field + 170, backbone.dim)
    steps = in_chunks(backbone, x, [1] * x.shape[1])
    for t in (field - 1, field, field + 1, field + 97, field + 169):
        alone, _ = backbone(x[:, t - field + 1 : t + 1])
        torch.testing.assert_close(steps[:, t], alone[:, -1], rtol=0, atol=1e-10)


@every_backbone
def test_state_has_fixed_shapes_and_never_grows(device, kind, changes):
    """Buries caches that grow with the run, rings whose shape depends on the first chunk, slices that keep a whole
    chunk alive, and states that keep a graph of everything before them."""
    backbone = build(kind, changes, device)
    first = None
    for lengths in ([1], [LONG], [3, LONG, 1], [1] * LONG, [LONG, 1, 2]):
        state = None
        for steps in lengths:
            _, state = backbone(noise(device, 2, steps, backbone.dim), state)  # with gradients on, as in training
        tensors = state_tensors(state)
        described = {name: (x.shape, x.dtype, x.device) for name, x in tensors.items()}
        first = first or described
        assert described == first
        for name, x in tensors.items():
            assert x.untyped_storage().nbytes() == x.numel() * x.element_size(), f"{name} is part of more"
            assert not x.requires_grad, f"{name} keeps a graph alive"


@every_backbone
@torch.no_grad()
def test_a_state_can_be_branched_by_cloning(device, kind, changes):
    """Buries state outside of the state (in the module), and a clone that shares its tensors."""
    backbone = build(kind, changes, device)
    x, other = noise(device, 2, LONG, backbone.dim), noise(device, 2, LONG, backbone.dim)
    _, state = backbone(x[:, :20])
    branch = clone_state(state)
    for t in range(20, LONG):
        _, state = backbone(other[:, t : t + 1], state)
    y, _ = backbone(x[:, 20:], branch)
    torch.testing.assert_close(y, backbone(x)[0][:, 20:], rtol=0, atol=1e-10)


@every_backbone
@torch.no_grad()
def test_a_call_without_state_starts_anew(device, kind, changes):
    """Buries a hidden memory of the call before, and an input or an output written over."""
    backbone = build(kind, changes, device)
    x = noise(device, 2, 20, backbone.dim)
    before = x.clone()
    y, state = backbone(x)
    kept = y.clone()
    backbone(noise(device, 2, 5, backbone.dim), state)
    torch.testing.assert_close(backbone(x)[0], kept, rtol=0, atol=0)
    torch.testing.assert_close(y, kept, rtol=0, atol=0)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@every_backbone
@pytest.mark.parametrize("lengths", [[LONG], [20, 1, 1, 28]], ids=["whole", "chunks"])
@torch.no_grad()
def test_items_of_a_batch_are_independent(device, kind, changes, lengths):
    """Buries a statistic over the batch, and views that mix its items."""
    backbone = build(kind, changes, device)
    x = noise(device, 3, LONG, backbone.dim)
    together = in_chunks(backbone, x, lengths)
    for item in range(3):
        alone = in_chunks(backbone, x[item : item + 1], lengths)
        torch.testing.assert_close(together[item : item + 1], alone, rtol=0, atol=1e-10)


@every_backbone
@pytest.mark.parametrize("lengths", [[24], [20, 4], [20, 1, 1, 1, 1]], ids=["whole", "chunk", "steps"])
def test_the_present_step_has_its_gradient_however_it_is_chunked(device, kind, changes, lengths):
    """Buries a step that reads its own key or input back from the ring, where its gradient is lost, and a ring that is
    written over before the backward pass wants it. (Through the state itself no gradient flows.)"""
    backbone = build(kind, changes, device)
    x, weights = noise(device, 2, 24, backbone.dim), noise(device, backbone.dim)
    whole = x.clone().requires_grad_()
    chunked = x.clone().requires_grad_()
    expected, y = backbone(whole)[0], in_chunks(backbone, chunked, lengths)
    for t in range(20, 24):
        (wanted,) = torch.autograd.grad((expected[:, t] * weights).sum(), whole, retain_graph=True)
        (got,) = torch.autograd.grad((y[:, t] * weights).sum(), chunked, retain_graph=True)
        torch.testing.assert_close(got[:, t], wanted[:, t], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("value", [0, -1])
def test_settings_out_of_range_are_refused(kind, value):
    """Buries a traceback from deep inside, or a model that is built and can't be run, for `backbone.window=0`."""
    for field in dataclasses.fields(BACKBONES[kind].Config):
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            with pytest.raises(ConfigError, match=f"^backbone.{field.name}: .*{value}"):
                tiny_backbone(kind, **{field.name: value})


def test_the_chunks_above_overrun_the_rings():
    """Buries small settings grown so large that no chunk here is longer than a ring."""
    for kind in BACKBONES:
        assert tiny_backbone(kind).receptive_field < LONG // 2


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("wavenet", {"dim": 2, "residual_dim": 2, "num_layers": 64, "dilation_cycle": 64}),
        ("wavenet", {"dim": 2, "residual_dim": 2, "num_layers": 1024, "dilation_cycle": 1024}),
        ("gpt", {"dim": 64, "num_heads": 2, "num_layers": 4, "window": 2**20}),
    ],
)
def test_a_state_that_fills_memory_is_refused(kind, settings):
    """Buries a stranger's config whose weights are tiny and whose rings take all memory at the first step."""
    with pytest.raises(ConfigError, match="^backbone..*the state of one item would take"):
        BACKBONES[kind](BACKBONES[kind].Config(**settings))
