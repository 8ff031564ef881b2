"""Backward passes by hand: against torch's own layers through autograd, against measured slopes, and in training."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from audiogen.course import backward as b
from audiogen.course import manual_mlp as by_hand
from audiogen.course.gradient_check import by_autograd, by_differences, largest_difference
from audiogen.course.manual_mlp import MLPByHand, windows
from audiogen.course.reference_pairs import PAIRS
from audiogen.models.backbones import WaveNet
from audiogen.models.batch import Batch
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import TokenSpec


def test_every_piece_of_the_library_is_checked():
    """Guards against a backward pass that is added without a twin."""
    assert {f"{name}_backward" for name in PAIRS} - {"linear_without_bias_backward"} == {
        name for name in b.__all__ if name.endswith("_backward")
    }


@pytest.mark.parametrize("piece", PAIRS)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_piece_equals_torch_s_own_layer_and_its_autograd(piece, data, seed):
    """Guards against a sum over the wrong axis, a forgotten second use or factor, taps out of order, a dilation longer
    than the sound, and heads mixed up."""
    torch.manual_seed(seed)
    pair = PAIRS[piece](lambda: data.draw(st.integers(1, 6)))
    y, dy, gradients = pair.run()
    torch.testing.assert_close(y, pair.reference(*pair.inputs), rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients, by_autograd(pair.reference, pair.inputs, dy), rtol=0, atol=1e-10)


@pytest.mark.parametrize("piece", PAIRS)
def test_a_piece_has_the_slope_that_small_steps_measure(piece):
    """Guards against a mistake that ours and autograd share, and a backward that belongs to the twin's forward
    alone."""
    pair = PAIRS[piece](itertools.cycle([2, 3, 2, 4]).__next__)
    _, dy, gradients = pair.run()
    measured = by_differences(lambda *inputs: pair.forward(*inputs)[0], pair.inputs, dy)
    torch.testing.assert_close(gradients, measured, rtol=0, atol=1e-7)


def test_the_two_oracles_know_a_slope_and_tell_a_wrong_one():
    """Guards against checks that can't fail: an oracle that returns what it is given, and a comparison that
    broadcasts."""
    x, y, dy = torch.randn(3, 3, dtype=torch.float64)
    truth = (dy * 3 * x * x * y, dy * x**3)
    for oracle, tolerance in ((by_autograd, 1e-14), (by_differences, 1e-8)):
        found = oracle(lambda x, y: x**3 * y, [x, y], dy)
        assert largest_difference(found, truth) < tolerance
        assert largest_difference(found, (truth[0], truth[1] + 0.5)) == pytest.approx(0.5, abs=1e-8)
    with pytest.raises(ValueError, match="shapes"):
        largest_difference(x, x[:1])
    with pytest.raises(ValueError):
        largest_difference(truth, truth[:1])


def test_cross_entropy_of_holes_alone_and_of_enormous_logits():
    """Guards against 0 / 0 where a batch holds no code, and exp that overflows."""
    loss, saved = b.cross_entropy(torch.randn(4, 3), torch.full((4,), 3))
    assert loss == 0 and not b.cross_entropy_backward(1.0, saved).any()
    loss, saved = b.cross_entropy(torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([1]))
    assert loss == 1e4
    torch.testing.assert_close(b.cross_entropy_backward(1.0, saved), torch.tensor([[1.0, -1.0, 0.0]]))


def test_a_whole_wavenet_by_hand_equals_the_library_s():
    """Guards against pieces that are right alone and do not fit each other: both paths out of a layer, the skip sum,
    holes."""
    model = SequenceModel(
        TokenSpec(8000, 1, 1, V := 5), WaveNet(WaveNet.Config(dim=6, residual_dim=4, num_layers=3)), Parallel(1)
    ).double()
    torch.nn.init.normal_(model.backbone.direct)  # from 0, at which nothing would pass
    p = {name: parameter.detach() for name, parameter in model.named_parameters()}
    codes = torch.randint(V, (2, 1, 9))
    codes[1, 0, 6:] = V  # the second item is shorter
    nats, entries = model.nll(Batch(codes))
    (nats / entries).backward()

    def taps(weight):  # (2 R, 2 R) of both taps side by side
        return weight.unflatten(1, (2, -1)).transpose(0, 1)

    table, of_embedding = b.embedding(p["embed.table.weight"], codes[:, 0, :-1])
    embedded = torch.cat([p["bos"].expand(2, 1, -1), table], dim=1)
    x, of_first = b.linear(embedded, p["backbone.first.weight"], p["backbone.first.bias"])
    of_layers, skips = [], []
    for layer in (0, 1):
        conv, residual = f"backbone.gates.{layer}.linear", f"backbone.residuals.{layer}"
        (x, skip), of_layer = b.wavenet_layer(
            x,
            taps(p[f"{conv}.weight"]),
            p[f"{conv}.bias"],
            p[f"{residual}.weight"],
            p[f"{residual}.bias"],
            dilation=2**layer,
        )
        of_layers.append(of_layer)
        skips.append(skip)
    gates, of_conv = b.causal_conv(x, taps(p["backbone.gates.2.linear.weight"]), p["backbone.gates.2.linear.bias"], 4)
    skip, of_gate = b.gate(gates)
    x, of_skip = b.linear(torch.cat([*skips, skip], dim=2), p["backbone.skip.weight"], p["backbone.skip.bias"])
    x, of_relu = b.relu(x)
    x, of_last = b.linear(x, p["backbone.last.weight"], p["backbone.last.bias"])
    x, of_last_relu = b.relu(x)
    logits, of_head = b.linear(x + p["backbone.direct"] * embedded, p["head.linear.weight"], p["head.linear.bias"])
    loss, of_loss = b.cross_entropy(logits, codes[:, 0])
    torch.testing.assert_close(loss, (nats / entries).detach(), rtol=0, atol=1e-12)

    g = {}
    dx = b.cross_entropy_backward(1.0, of_loss)
    dx, g["head.linear.weight"], g["head.linear.bias"] = b.linear_backward(dx, of_head)
    g["backbone.direct"], dembedded = (dx * embedded).sum(dim=(0, 1)), dx * p["backbone.direct"]
    dx = b.relu_backward(dx, of_last_relu)
    dx, g["backbone.last.weight"], g["backbone.last.bias"] = b.linear_backward(dx, of_last)
    dx = b.relu_backward(dx, of_relu)
    dskips, g["backbone.skip.weight"], g["backbone.skip.bias"] = b.linear_backward(dx, of_skip)
    *dskips, dskip = dskips.chunk(3, dim=2)
    dx, *conv_gradients = b.causal_conv_backward(b.gate_backward(dskip, of_gate), of_conv)
    g["backbone.gates.2.linear.weight"], g["backbone.gates.2.linear.bias"] = conv_gradients
    for layer in (1, 0):
        dx, *gradients = b.wavenet_layer_backward((dx, dskips[layer]), of_layers[layer])
        names = [
            f"backbone.{part}{kind}"
            for part in (f"gates.{layer}.linear.", f"residuals.{layer}.")
            for kind in ("weight", "bias")
        ]
        g.update(zip(names, gradients, strict=True))
    dx, g["backbone.first.weight"], g["backbone.first.bias"] = b.linear_backward(dx, of_first)
    dx = dx + dembedded
    g["bos"], g["embed.table.weight"] = dx[:, 0].sum(dim=0), b.embedding_backward(dx[:, 1:], of_embedding)

    for name, parameter in model.named_parameters():
        found = g[name].transpose(0, 1).flatten(1) if g[name].dim() == 3 else g[name]
        torch.testing.assert_close(found, parameter.grad, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def made_up_words(count):
    """Sequences in which a symbol of 0 to 7 mostly leads to the next one; 8 is the boundary."""
    words = []
    for length in torch.randint(3, 20, (count,)):
        steps = torch.where(torch.rand(length) < 0.7, 1, torch.randint(8, (length,)))
        words.append(steps.cumsum(0) % 8)
    return words


def test_a_model_trained_by_hand_ends_where_autograd_ends():
    """Guards against a gradient that is right on random numbers and wrong in the model, and steps that use the last
    batch's."""
    x, y = windows(made_up_words(60), context=3, boundary=8)
    ours = MLPByHand(9, context=3, dim=4, hidden_dim=16, dtype=torch.float64)
    theirs = {name: p.clone().requires_grad_() for name, p in ours.parameters.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=0.3)
    losses = []
    for _ in range(200):
        rows = torch.randint(len(x), (32,))
        with torch.inference_mode():
            loss = ours.loss(x[rows], y[rows]).item()
            ours.backward()
            ours.step(0.3)
        hidden = F.linear(F.embedding(x[rows], theirs["embedding"]).flatten(1), theirs["hidden_weight"])
        hidden = F.batch_norm(hidden, None, None, theirs["gain"], theirs["bias"], training=True).tanh()
        expected = F.cross_entropy(F.linear(hidden, theirs["out_weight"], theirs["out_bias"]), y[rows])
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        losses.append((loss, expected.item()))
    assert losses[0][0] == pytest.approx(2.2, abs=0.1) and losses[-1][0] < 1.5, "ln 9 at first, then it learns"
    assert max(abs(a - b) for a, b in losses) < 1e-10
    for name, parameter in ours.parameters.items():
        torch.testing.assert_close(parameter, theirs[name].detach(), rtol=0, atol=1e-10)


def test_a_whole_set_is_judged_row_by_row(monkeypatch):
    """Guards against held-out rows that are scaled by each other, a last block that is weighed like a full one, and
    variances of another formula than training's."""
    x, y = windows(made_up_words(30), context=3, boundary=8)
    model = MLPByHand(9, dtype=torch.float64)
    whole = model.loss(x, y).item()
    monkeypatch.setattr(by_hand, "ROWS", 37)
    statistics = model.statistics(x)
    assert model.nll(x, y, statistics) == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(model.logits(x[:1], statistics), model.logits(x, statistics)[:1])
    assert model.nll(x[:5], y[:5], statistics) == pytest.approx(
        F.cross_entropy(model.logits(x, statistics)[:5], y[:5]).item(), abs=1e-12
    )


def test_first_weights_are_the_same_in_every_precision():
    """Guards against a comparison of precisions that is one of seeds."""
    half, full = MLPByHand(9, seed=3), MLPByHand(9, seed=3, dtype=torch.float64)
    for name, parameter in half.parameters.items():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, full.parameters[name].float(), rtol=0, atol=0)
    assert not torch.equal(half.parameters["embedding"], MLPByHand(9, seed=4).parameters["embedding"])


def test_backward_needs_a_loss():
    """Guards against a step made twice from one batch."""
    model = MLPByHand(9)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="loss"):
            model.backward()
        model.loss(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
        model.backward()


def test_windows_are_those_of_the_lesson():
    """Guards against a window that sees what it is to predict, words that run into each other, and an end left out."""
    x, y = windows([torch.tensor([1, 2, 1]), torch.tensor([3])], context=3, boundary=0)
    assert x.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 1], [0, 0, 0], [0, 0, 3]]
    assert y.tolist() == [1, 2, 1, 0, 3, 0]
