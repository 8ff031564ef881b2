"""Attention from scratch, and the library's own attention seen from inside: against torch's layers and slow loops."""

import math

import pytest
import torch
from tiny import lively
from torch import nn
from torch.nn import functional as F

from audiogen.course.attention import (
    attend,
    attention_weights,
    causal_mask,
    entropy,
    look_back,
    merge_heads,
    past_mean_loop,
    past_mean_matrix,
    past_mean_softmax,
    split_heads,
)
from audiogen.course.transformer import Attention, BatchNorm, Namer, Transformer
from audiogen.models.backbones.gpt import GPT
from audiogen.models.layers import CausalAttention
from audiogen.spec import FrameSpec

D, H, S, T = 12, 3, 9, 6


def close(ours, other, tolerance=1e-10):
    torch.testing.assert_close(ours, other, rtol=0, atol=tolerance)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("mean", [past_mean_loop, past_mean_matrix, past_mean_softmax])
def test_every_mean_of_the_past_is_a_running_sum_by_its_length(mean):
    """Guards against a triangle that leaves the present out or lets the future in, and rows that don't sum to 1."""
    x = randn(S, D)
    close(mean(x), x.cumsum(dim=0) / torch.arange(1, S + 1)[:, None])


@pytest.mark.parametrize("masked", [False, True])
def test_attend_equals_torch(masked):
    """Guards against a scale by d in the place of its root, a softmax over the queries, and a mask that says what to
    hide."""
    q, k, v = randn(2, H, S, 4), randn(2, H, T, 4), randn(2, H, T, 5)
    mask = torch.rand(2, 1, S, T) < 0.6
    mask[..., 0] = True
    mask = mask if masked else None
    close(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_queries_of_zero_prefer_nobody():
    """Guards against weights that depend on something else than the products of queries and keys."""
    x = randn(S, D)
    close(attend(torch.zeros_like(x), x, x, causal_mask(S)), past_mean_loop(x))


def test_the_scale_keeps_the_softmax_as_soft_for_long_vectors():
    """Guards against a scale that is forgotten, or a `scaled` that changes nothing: products of d terms deviate by
    sqrt(d)."""
    d = 4096
    q, k = randn(200, 1, d), randn(200, 16, d)
    flat, peaked = (entropy(attention_weights(q, k, scaled=scaled)).mean() for scaled in (True, False))
    assert 3.2 < flat < 4 and peaked < 0.2  # of log2(16) = 4 bits


def test_heads_are_split_as_torch_splits_them():
    """Guards against heads that share features, and heads merged in another order than they were split in."""
    x = randn(2, S, D)
    assert split_heads(x, H).shape == (2, H, S, D // H)
    assert torch.equal(split_heads(x, H)[1, 2], x[1, :, 2 * D // H :])
    assert torch.equal(merge_heads(split_heads(x, H)), x)


@pytest.mark.parametrize("own", [True, False], ids=["self", "cross"])
def test_attention_equals_torchs_multi_head_attention(own):
    """Guards against keys or values taken from the queries' sequence, and a bias that is left out."""
    ours, torchs = Attention(D, H, turned=False).double(), nn.MultiheadAttention(D, H, batch_first=True).double()
    torchs.in_proj_weight, torchs.in_proj_bias, torchs.out_proj = ours.qkv.weight, ours.qkv.bias, ours.out
    x = randn(2, S, D)
    source, mask = (x, causal_mask(S)) if own else (randn(2, T, D), None)
    expected, weights = torchs(x, source, source, attn_mask=None if mask is None else ~mask, average_attn_weights=False)
    close(ours(x, source, mask), expected)
    q, k, _ = ours.heads(x, source)
    close(attention_weights(q, k, mask), weights)


def test_turned_attention_equals_the_librarys():
    """Guards against rotary positions on the values, or on the queries alone."""
    ours, library = Attention(D, H).double(), CausalAttention(D, H, window=S).double()
    library.qkv, library.out = ours.qkv, ours.out
    x = randn(2, S, D)
    close(ours(x, x, causal_mask(S)), library(x)[0])


def test_a_transformer_with_all_its_parts_equals_the_librarys_gpt():
    """Guards against a lesson's transformer that is another one than the library trains: norms, sums and their
    order."""
    ours = lively(Transformer(D, H, num_layers=2)).double().eval()
    gpt = GPT(GPT.Config(dim=D, num_layers=2, num_heads=H, window=S)).double().eval()
    gpt.norm = ours.norm
    for theirs, block in zip(gpt.blocks, ours.blocks, strict=True):
        theirs.norm_attention, theirs.norm_feed_forward = block.norms
        theirs.attention.qkv, theirs.attention.out = block.attention.qkv, block.attention.out
        theirs.up, theirs.down = block.feed_forward[0], block.feed_forward[2]
    x = randn(2, S, D)
    close(ours(x)[0], gpt(x)[0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"feed_forward": False, "residual": False, "norm": nn.Identity},
        {"residual": False, "norm": nn.Identity},
        {"norm": nn.Identity},
        {"norm": BatchNorm},
        {"positions": "learned", "num_steps": S},
        {"positions": "none"},
    ],
    ids=str,
)
def test_no_part_lets_a_step_see_the_future(settings):
    """Guards against a rung of the ladder that is good because it cheats (batch norm in training does, and is tested
    below)."""
    model = lively(Transformer(D, H, num_layers=2, **settings)).double().eval()
    x = randn(2, S, D)
    other = torch.cat([x[:, :5], randn(2, S - 5, D)], dim=1)
    close(model(x)[0][:, :5], model(other)[0][:, :5])
    assert not torch.allclose(model(x)[0][:, 5:], model(other)[0][:, 5:])


def test_batch_norm_looks_ahead_in_training():
    """Guards against the lesson's claim, should the norm ever take each step by itself: the future moves the common
    mean."""
    norm, x = BatchNorm(D).double(), randn(2, S, D)
    flat = x.flatten(0, 1)
    close(norm(x), ((x - flat.mean(0)) / (flat.var(0, unbiased=False) + norm.eps).sqrt()))
    assert not torch.allclose(norm(torch.cat([x[:, :5], 1 + x[:, 5:]], dim=1))[:, :5], norm(x)[:, :5])


@pytest.mark.parametrize("positions, blind", [("none", True), ("rotary", False), ("learned", False)])
def test_only_positions_tell_the_order_of_the_past(positions, blind):
    """Guards against positions that are switched off, or on where the lesson says that there are none."""
    model = lively(Transformer(D, H, num_layers=1, positions=positions, num_steps=S)).double().eval()
    x = randn(1, S, D)
    order = torch.tensor([*torch.arange(S - 1).flip(0), S - 1])
    assert torch.allclose(model(x)[0][:, -1], model(x[:, order])[0][:, -1], rtol=0, atol=1e-10) == blind


@pytest.mark.parametrize("mixing, asking", [(False, False), (True, False), (False, True), (True, True)])
def test_a_name_does_not_depend_on_the_padding(mixing, asking):
    """Guards against an encoder that hears the padding behind a short clip, and so how long its neighbours are."""
    spec = FrameSpec(8000, 128, 4)
    namer = lively(Namer(spec, 3, D, H, mixing, asking)).double().eval()
    short, long = randn(4, T), randn(4, S)
    padded = torch.stack([F.pad(short, (0, S - T), value=math.nan), long])
    close(namer(padded), torch.cat([namer(short[None]), namer(long[None])]))


def test_without_mixing_a_frame_is_heard_by_itself():
    """Guards against an attention map that says "frame 3" where frame 3 has already heard all the others."""
    namer = lively(Namer(FrameSpec(8000, 128, 4), 3, D, H, mixing=False, asking=True)).double().eval()
    x = randn(1, 4, S)
    changed = x.clone()
    changed[:, :, 3] += 1
    differs = (namer.encode(x)[0] != namer.encode(changed)[0]).any(dim=2)[0]
    assert differs.tolist() == [t == 3 for t in range(S)]


def test_entropy_and_look_back_of_known_rows():
    """Guards against nats for bits, a NaN from 0 log 0, and a distance counted from the wrong end."""
    weights = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    assert entropy(weights).tolist() == pytest.approx([0, 1, 0, 2])
    assert look_back(weights).tolist() == pytest.approx([0, 0.5, 2, 1.5])


@pytest.mark.parametrize("window", [1, 4, S, 40])
def test_the_librarys_weights_are_those_of_its_forward(device, window):
    """Guards against a picture of attention that is not the attention: another scale, window or turn than `forward`
    takes."""
    attention = lively(CausalAttention(D, H, window)).double().to(device)
    x = randn(2, S, D).to(device)
    weights = attention.weights(x)
    close(weights.sum(dim=3), torch.ones(2, H, S, dtype=torch.float64, device=device))
    t, j = torch.arange(S, device=device)[:, None], torch.arange(S, device=device)
    outside = (j > t) | (j <= t - window)
    assert (weights[..., outside] == 0).all() and (weights[..., ~outside] > 0).all()
    v = split_heads(attention.qkv(x)[:, :, 2 * D :], H)
    close(attention.out(merge_heads(weights @ v)), attention(x)[0])
