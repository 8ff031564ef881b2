"""The own codec: its networks, its loss and its fit."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from corpus import RATE, note, tiny_frontend, tiny_settings

from audiogen.codec.crops import CropBatches, draw_crops
from audiogen.codec.losses import ReconstructionLoss
from audiogen.codec.networks import Decoder, Down, Encoder, Up, add_weight_norm, fold_weight_norm
from audiogen.codec.training import draw_depths
from audiogen.errors import ConfigError
from audiogen.frontends import load_frontend

SHAPES = [(4, 8), (8,), (2, 3, 4), (1, 4)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tones(num_samples, batch=1, seed=0):
    """Tones of random pitch with random onsets: (B, 1, N) float32."""
    draw = torch.rand(2, batch, 4, 1, generator=generator(seed))
    t = torch.arange(num_samples)
    since = (t - draw[1] * num_samples).clamp_min(0)
    wav = torch.sin((0.05 + 0.5 * draw[0]) * since) * torch.exp(-since / 2000) * (since > 0)
    return 0.2 * wav.sum(1, keepdim=True)


def total_loss(rate):
    loss = ReconstructionLoss(rate)
    return lambda decoded, wav: sum(loss(decoded, wav).values())


def seen(network, x, step):
    """First and last input step that the output's `step` depends on, by gradient."""
    x = x.clone().requires_grad_()
    network(x)[0][..., step].sum().backward()
    steps = x.grad.abs().sum((0, 1)).nonzero()[:, 0]
    return int(steps.min()), int(steps.max())


@pytest.mark.parametrize("strides", SHAPES)
def test_a_frame_waits_for_its_own_samples_and_is_heard_from_its_first_on(strides):
    """Buries an encoder that needs the next frame, and a decoder that answers late: the latency is one frame."""
    hop_length, frame = math.prod(strides), 40
    encoder, decoder = Encoder(4, strides, 6).double(), Decoder(4, strides, 6).double()
    assert seen(encoder, torch.randn(1, 1, 50 * hop_length).double(), frame)[1] == (frame + 1) * hop_length - 1
    lasts = {seen(decoder, torch.randn(1, 6, 50).double(), frame * hop_length + offset)[1]
             for offset in range(hop_length)}
    assert lasts == {frame}


@pytest.mark.parametrize("strides", SHAPES)
def test_any_blocks_with_state_give_what_the_whole_gives(strides):
    """Buries a state that forgets, and one that the next call's chunks move out of place."""
    hop_length = math.prod(strides)
    encoder, decoder = Encoder(4, strides, 6).double(), Decoder(4, strides, 6).double()
    wav = torch.randn(2, 1, 61 * hop_length).double()
    latent = encoder(wav)[0]
    decoded = decoder(latent)[0]
    assert latent.shape == (2, 6, 61) and decoded.shape == wav.shape
    for network, x, whole, into in ((encoder, wav, latent, hop_length), (decoder, latent, decoded, 1)):
        for sizes in ([1] * 61, [7, 1, 30, 23], [60, 1]):
            state, blocks = None, []
            for block in x.split([size * into for size in sizes], dim=2):
                y, state = network(block, state)
                blocks.append(y)
            torch.testing.assert_close(torch.cat(blocks, dim=2), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel, stride, dims", [(6, 3, (2, 5)), (10, 5, (1, 4))])
def test_strides_by_reshape_are_strided_convolutions(kernel, stride, dims):
    """torch's own strided convolutions are the oracle. Buries taps or channels out of order."""
    wide, narrow = max(dims), min(dims)
    down, x = Down(narrow, wide, stride).double(), torch.randn(2, 8 * stride, narrow).double()
    weight = down.conv.linear.weight.view(wide, kernel, narrow).transpose(1, 2)             # (out, in, taps)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (stride, 0)), weight, down.conv.linear.bias, stride)
    torch.testing.assert_close(down(x)[0].transpose(1, 2), expected)
    up, x = Up(wide, narrow, stride).double(), torch.randn(2, 8, wide).double()
    before, now = up.conv.linear.weight.view(stride, narrow, 2, wide).permute(2, 3, 1, 0)   # (in, out, stride) each
    expected = F.conv_transpose1d(x.transpose(1, 2), torch.cat([now, before], dim=2), stride=stride)[..., :-stride]
    bias = up.conv.linear.bias.view(stride, narrow).T.repeat(1, 8)
    torch.testing.assert_close(up(x)[0].transpose(1, 2), expected + bias)


def test_weight_norm_changes_nothing_when_folded():
    """Buries a fold that drops the length or the direction, and one that takes the weights from the trained network."""
    torch.manual_seed(0)
    network, plain, x = Encoder(4, (4, 2), 6), Encoder(4, (4, 2), 6), torch.randn(1, 1, 80)
    before = network(x)[0]
    add_weight_norm(network)
    torch.testing.assert_close(network(x)[0], before)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("original0"):
                parameter *= 1.5
    assert not torch.allclose(network(x)[0], before)
    for _ in range(2):
        fold_weight_norm(network, plain)
        torch.testing.assert_close(plain(x)[0], network(x)[0])


def test_the_signal_keeps_its_size_through_the_networks():
    """Buries torch's default start, which shrinks it a thousandfold and takes hundreds of steps to undo."""
    torch.manual_seed(0)
    encoder = Encoder(32, (8, 4, 4), 16)
    latent = encoder(torch.randn(4, 1, 4096))[0].detach()
    assert 0.2 < float(latent.std()) < 0.8, "of at most 1"
    assert float(latent.std(dim=2).min()) > 0.1


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_the_frame_rate_is_about_the_same_at_any_rate(rate):
    spec = load_frontend("codec", weights="fit", sample_rate=rate).spec
    assert 49 < spec.frame_rate < 51.5


@pytest.mark.parametrize("settings", [{"strides": ()}, {"strides": (0, 4)}, {"strides": (1000, 1000)}, {"channels": 0},
                                      {"fit_steps": 0}, {"learning_rate": 0.0}, {"num_codebooks": 0}, {"dim": 10**9}])
def test_senseless_settings(settings):
    with pytest.raises(ConfigError, match=f"frontend.{next(iter(settings))}"):
        load_frontend("codec", weights="fit", **settings)


def test_the_loss_is_0_for_the_same_and_grows_with_the_distance():
    """Buries a loss that is deaf to quiet parts, to pitch, or to all but the loudest window."""
    loss, wav = total_loss(8000), tones(4096, batch=2)
    assert float(loss(wav, wav)) == 0
    noise = torch.randn(wav.shape, generator=generator())
    losses = [float(loss(wav + level * noise, wav)) for level in (1e-3, 1e-2, 1e-1)]
    assert 0 < losses[0] < losses[1] < losses[2]
    assert float(loss(0.5 * wav, wav)) > 0.2
    assert float(loss(tones(4096, batch=2, seed=1), wav)) > 0.5
    apart = ReconstructionLoss(8000)(-wav, wav)
    assert float(apart["mel"] + apart["stft"]) < 1e-5 < float(apart["wave"]), "of magnitudes, but for one"


def test_the_loss_has_a_gradient_at_silence():
    """Buries the square root's infinite slope at 0."""
    wav = torch.zeros(1, 1, 4096, requires_grad=True)
    total_loss(8000)(wav, tones(4096)).backward()
    assert bool(torch.isfinite(wav.grad).all())


def test_fitting_brings_the_sound_closer():
    """Buries a training that runs but learns nothing, and codebooks that it leaves behind."""
    settings = dataclasses.asdict(tiny_frontend("codec").config)
    settings |= {"channels": 16, "dim": 16, "codebook_size": 32, "strides": (16, 4), "batch_size": 4}
    files = list(tones(8000, batch=6)[:, :])
    wav = tones(8000, seed=9)
    loss_of, losses = total_loss(8000), []
    for fit_steps in (2, 60):
        frontend = load_frontend("codec", **settings | {"fit_steps": fit_steps})
        frontend.fit(files)
        codes = frontend.encode(wav)
        losses.append(float(loss_of(frontend.decode(codes)[..., :8000], wav)))
    assert losses[1] < 0.8 * losses[0]
    assert all(len(row.unique()) > 8 for row in codes[0])


def test_loud_and_quiet_folders_are_fitted_alike():
    """Buries a codec that takes a quiet recording for silence."""
    files, wav = list(tones(4000, batch=4)), tones(4000, seed=5)
    codes = []
    for gain in (1.0, 1 / 64):
        frontend = load_frontend("codec", **tiny_settings("codec"))
        frontend.fit([gain * file for file in files])
        codes.append(frontend.encode(gain * wav))
    assert torch.equal(codes[0], codes[1]), "a power of two changes no digit"


def test_crops_cover_all_files_joined_end_to_end():
    """Buries samples lost between files, and files shorter than a crop that are left out."""
    joined = torch.arange(1, 1001).float()
    files = [part[None] for part in joined.split([3, 500, 1, 96, 400])]
    crops = draw_crops(files, 64, capacity=100, generator=generator())
    assert crops.shape[1:] == (1, 64)
    heard = crops.flatten()
    assert heard[heard > 0].tolist() == joined.tolist()
    assert not torch.equal(draw_crops(files, 64, 100, generator(1)), crops), "cut elsewhere"
    assert draw_crops(files, 64, capacity=5, generator=generator()).shape == (5, 1, 64)
    assert draw_crops([joined[None, :10]], 64, 5, generator())[..., :].sum() == joined[:10].sum()


def test_batches_go_on_for_ever_and_use_all_crops():
    """Buries crops that come up more often than others, and a pool that is never cut anew."""
    files = [torch.arange(1, 641).float()[None]]
    batches = CropBatches(lambda: files, 64, 4, capacity=100, seed=0)
    heard = torch.stack([batches.batch(step) for step in range(30)])
    assert heard.shape == (30, 4, 1, 64)
    counts = torch.bincount(heard.flatten().long(), minlength=641)[1:]
    assert int(counts.min()) > 0 and int(counts.max()) < 3 * int(counts.min())
    assert len({int(crop[0, 0] % 64) for batch in heard for crop in batch[batch[:, 0, 0] > 0]}) > 1
    assert CropBatches(lambda: [torch.ones(1, 100)], 64, 50, capacity=9, seed=0).batch(3).shape == (50, 1, 64)


def test_a_batch_is_a_function_of_the_step():
    """Buries a resumed run that hears other crops than one that was never interrupted."""
    files = list(tones(3000, batch=3))
    batches, others = (CropBatches(lambda: files, 64, 4, capacity=100, seed=0) for _ in range(2))
    in_order = [batches.batch(step) for step in range(3 * batches.steps_per_pool)]
    for step in (2 * batches.steps_per_pool + 1, 0, 5, batches.steps_per_pool):
        assert torch.equal(others.batch(step), in_order[step])
    assert not torch.equal(CropBatches(lambda: files, 64, 4, capacity=100, seed=1).batch(0), in_order[0])


def test_a_quarter_of_the_items_use_all_codebooks():
    depths = draw_depths(10_000, 4, generator())
    shares = torch.bincount(depths, minlength=5) / 10_000
    torch.testing.assert_close(shares, torch.tensor([0, 0.1875, 0.1875, 0.1875, 0.4375]), rtol=0, atol=0.02)


def test_a_codec_of_short_hops_can_be_fitted():
    """Buries crops shorter than the longest window of the loss, which torch can't pad."""
    frontend = load_frontend("codec", **{**tiny_settings("codec"), "strides": (2, 4)})
    frontend.fit([torch.from_numpy(note(seed, RATE)).float()[None] for seed in range(2)])
    assert frontend.encode(torch.zeros(1, 1, 80)).shape == (1, 2, 10)
