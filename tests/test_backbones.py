"""Each backbone against the paper's arithmetic written out with torch's own layers, on the same weights."""

import math

import torch
from tiny import lively, tiny_backbone
from torch.nn import functional as F

from audiogen.models.backbones import GPT, MLP, WaveNet


def build(kind, **changes):
    return lively(tiny_backbone(kind, **changes)).double().eval()


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@torch.no_grad()
def test_the_bigram_is_the_identity():
    """Guards against a layer slipped in between, which would cost the table its rank."""
    x = noise(2, 5, 8)
    assert torch.equal(build("bigram")(x)[0], x)


@torch.no_grad()
def test_the_mlp_is_a_network_over_the_last_steps_side_by_side():
    """Guards against a context in the wrong order, and a hidden layer without its tanh."""
    mlp = build("mlp", context=4, num_layers=3)
    x = noise(2, 9, 8)
    for t in range(9):
        window = [x[:, j] if j >= 0 else torch.zeros_like(x[:, 0]) for j in range(t - 3, t + 1)]
        h = torch.tanh(F.linear(torch.cat(window, dim=1), mlp.first.linear.weight, mlp.first.linear.bias))
        for hidden in mlp.hidden:
            h = torch.tanh(F.linear(h, hidden.weight, hidden.bias))
        torch.testing.assert_close(mlp(x)[0][:, t], F.linear(h, mlp.last.weight, mlp.last.bias), rtol=0, atol=1e-10)


@torch.no_grad()
def test_wavenet_is_a_stack_of_gated_dilated_convolutions():
    """Guards against a missing residual or skip, gate and filter that swap places, dilations that do not start again,
    and a way straight to the head that is left out or goes through a ReLU."""
    wavenet = build("wavenet", num_layers=5, dilation_cycle=3)
    x = noise(2, 20, 8)
    h = F.linear(x, wavenet.first.weight, wavenet.first.bias).transpose(1, 2)  # (B, R, S)
    R = h.shape[1]
    skips = torch.zeros(2, 8, 20, dtype=torch.float64)
    for layer, dilation in enumerate([1, 2, 4, 1, 2]):
        gate = wavenet.gates[layer].linear
        weight = torch.stack([gate.weight[:, :R], gate.weight[:, R:]], dim=2)  # (2 R, R, 2): past, present
        z = F.conv1d(F.pad(h, (dilation, 0)), weight, gate.bias, dilation=dilation)
        z = torch.tanh(z[:, :R]) * torch.sigmoid(z[:, R:])
        skips += torch.einsum("dr,brs->bds", wavenet.skip.weight[:, layer * R : (layer + 1) * R], z)
        if layer < 4:
            h = h + F.conv1d(z, wavenet.residuals[layer].weight[:, :, None], wavenet.residuals[layer].bias)
    y = F.relu(skips.transpose(1, 2) + wavenet.skip.bias)
    expected = wavenet.direct * x + F.relu(F.linear(y, wavenet.last.weight, wavenet.last.bias))
    torch.testing.assert_close(wavenet(x)[0], expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_gpt_is_a_pre_norm_transformer():
    """Guards against a norm after instead of before, a residual left out, and a block without its feed-forward layer.
    (Its attention is compared with a slow loop in test_layers.)"""
    gpt = build("gpt")
    x = noise(2, 17, 8)
    h = x
    for block in gpt.blocks:
        h = h + block.attention(F.layer_norm(h, [8], block.norm_attention.weight, block.norm_attention.bias))[0]
        u = F.layer_norm(h, [8], block.norm_feed_forward.weight, block.norm_feed_forward.bias)
        u = F.linear(u, block.up.weight, block.up.bias)
        u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        h = h + F.linear(u, block.down.weight, block.down.bias)
    torch.testing.assert_close(gpt(x)[0], F.layer_norm(h, [8], gpt.norm.weight, gpt.norm.bias), rtol=0, atol=1e-10)


def test_receptive_fields_of_the_papers():
    """Guards against a default that sees less than its documentation says."""
    assert WaveNet(WaveNet.Config(dim=4, residual_dim=2, num_layers=30, dilation_cycle=10)).receptive_field == 3070
    assert MLP(MLP.Config(dim=4, hidden_dim=4, context=16)).receptive_field == 16
    assert GPT(GPT.Config(dim=8, num_layers=2, num_heads=2, window=64)).receptive_field == 127


def test_batch_norm_scales_by_the_batch_in_training_and_by_its_history_after():
    """Guards against statistics of one item, or of one step, in the place of all, and an evaluation that looks at its
    batch."""
    mlp = build("mlp", batch_norm=True, num_layers=1).train()
    x = noise(3, 9, 8)
    sums, _ = mlp.first(x)
    mean, variance = sums.mean(dim=(0, 1)), sums.var(dim=(0, 1), correction=0)
    scale, shift = mlp.norms[0].weight, mlp.norms[0].bias
    h = torch.tanh((sums - mean) / torch.sqrt(variance + 1e-5) * scale + shift)
    torch.testing.assert_close(mlp(x)[0], mlp.last(h), rtol=0, atol=1e-10)
    mlp.eval()
    mean, variance = 0.1 * mean, 0.9 + 0.1 * sums.var(dim=(0, 1), correction=1)  # momentum 0.1 from 0 and 1
    h = torch.tanh((sums - mean) / torch.sqrt(variance + 1e-5) * scale + shift)
    torch.testing.assert_close(mlp(x)[0], mlp.last(h), rtol=0, atol=1e-10)
