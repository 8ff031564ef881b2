"""Streaming layers against torch's own convolution and against slow loops: chunks may agree and all be wrong."""

import math

import pytest
import torch
from torch.nn import functional as F

from audiogen.models.backbones import GPT
from audiogen.models.layers import CausalAttention, CausalConv, DelayLine, rotary, rotate


@pytest.mark.parametrize("kernel_size, dilation", [(1, 1), (2, 1), (2, 4), (3, 1), (3, 5), (8, 1)])
def test_causal_conv_equals_a_padded_convolution(device, kernel_size, dilation):
    """Guards against taps in the wrong order and a dilation off by one, which every chunking would repeat."""
    conv = CausalConv(3, 5, kernel_size, dilation).double().to(device)
    x = torch.randn(2, 17, 3, dtype=torch.float64).to(device)
    weight = conv.linear.weight.view(5, kernel_size, 3).permute(0, 2, 1)  # (D_out, D_in, kernel_size)
    padded = F.pad(x.transpose(1, 2), ((kernel_size - 1) * dilation, 0))
    expected = F.conv1d(padded, weight, conv.linear.bias, dilation=dilation).transpose(1, 2)
    torch.testing.assert_close(conv(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 3, 4, 30])
def test_delay_line_holds_the_last_inputs(device, length):
    """Guards against a ring read from the wrong slot; the tap must be what the line begins with."""
    x = torch.arange(1.0, 21.0, device=device).view(1, 20, 1)
    line, tap_state, state, seen = DelayLine(length), None, None, []
    for piece in x.split([2, 1, 1, 9, 7], dim=1):
        y, state = line(piece, state)
        leaving, tap_state = line.tap(piece, tap_state)
        expected = ([0.0] * length + seen)[-length:] + piece.flatten().tolist()
        assert y.flatten().tolist() == expected
        assert leaving.flatten().tolist() == expected[: piece.shape[1]]
        seen += piece.flatten().tolist()


@pytest.mark.parametrize("window", [1, 3, 8, 40])
def test_attention_equals_a_slow_loop(device, window):
    """Guards against heads mixed up, a scale forgotten, a window off by one, and blocks that see too little or too
    much."""
    B, S, D, H = 2, 21, 12, 3
    attention = CausalAttention(D, H, window).double().to(device)
    x = torch.randn(B, S, D, dtype=torch.float64).to(device)
    q, k, v = attention.qkv(x).chunk(3, dim=2)
    size = D // H
    expected = torch.zeros_like(x)
    for b in range(B):
        for h in range(H):
            part = slice(h * size, (h + 1) * size)
            for t in range(S):
                seen = range(max(0, t - window + 1), t + 1)
                scores = torch.stack([turned(q[b, t, part], t) @ turned(k[b, j, part], j) for j in seen])
                odds = (scores / math.sqrt(size)).softmax(dim=0)
                expected[b, t, part] = sum(p * v[b, j, part] for p, j in zip(odds, seen, strict=True))
    torch.testing.assert_close(attention(x)[0], attention.out(expected), rtol=0, atol=1e-10)


def turned(x, position):
    """Rotary positions as RoFormer writes them, pair by pair, each pair one complex number."""
    half = len(x) // 2
    result = x.clone()
    for i in range(half):
        angle = position / 10000 ** (2 * i / len(x))
        result[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        result[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return result


def test_rotary_positions_in_the_millions_are_as_good_as_the_first(device):
    """Guards against angles taken in float32: after a minute of audio neighbouring steps would turn alike."""
    q, k = torch.randn(2, 1, 16, device=device)

    def score(start):
        positions = torch.tensor([start, start + 3], device=device)
        cos, sin = rotary(positions, 16)
        return (rotate(q, cos[:1], sin[:1]) * rotate(k, cos[1:], sin[1:])).sum()

    torch.testing.assert_close(score(50_000_000), score(0), rtol=0, atol=1e-5)


def test_gpt_drops_out_in_training_alone(device):
    """Dropout left on when generating, and dropout that is never on."""
    gpt = GPT(GPT.Config(dim=8, num_layers=1, num_heads=2, window=4, dropout=0.5)).to(device)
    x = torch.randn(1, 12, 8, device=device)
    assert not torch.equal(gpt(x)[0], gpt(x)[0])
    gpt.eval()
    assert torch.equal(gpt(x)[0], gpt(x)[0])
