"""The own codec: its networks, its loss and its fit."""

import dataclasses

import pytest
import torch
from corpus import RATE, note, tiny_frontend, tiny_settings

from audiogen.codec.losses import SpectralLoss
from audiogen.codec.networks import CausalUpsample1d, Decoder, Encoder, blockwise, context_frames
from audiogen.codec.training import draw_batches, draw_crops, draw_depths, train_autoencoder
from audiogen.errors import ConfigError, TrainingError
from audiogen.frontends import codec as codec_module
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


def seen(network, x, step):
    """First and last input step that the output's `step` depends on, by gradient."""
    x = x.clone().requires_grad_()
    network(x)[..., step].sum().backward()
    steps = x.grad.abs().sum((0, 1)).nonzero()[:, 0]
    return int(steps.min()), int(steps.max())


@pytest.mark.parametrize("strides", SHAPES)
def test_networks_see_no_future_and_as_much_past_as_declared(strides):
    """Buries an encoder that needs the next frame, and blocks that are given too little of the past."""
    hop_length = torch.tensor(strides).prod().item()
    encoder, decoder = Encoder(4, strides, 6).double(), Decoder(4, strides, 6).double()
    context, frame = context_frames(encoder, hop_length), 40
    first, last = seen(encoder, torch.randn(1, 1, 50 * hop_length).double(), frame)
    assert last == (frame + 1) * hop_length - 1
    assert context - 1 < frame - first / hop_length <= context
    context = context_frames(decoder, hop_length)
    firsts, lasts = zip(*(seen(decoder, torch.randn(1, 6, 50).double(), frame * hop_length + offset)
                          for offset in range(hop_length)), strict=True)
    assert set(lasts) == {frame}
    assert min(firsts) in (frame - context, frame - context + 1)


@pytest.mark.parametrize("strides", SHAPES)
def test_blocks_give_what_the_whole_gives(strides):
    hop_length = torch.tensor(strides).prod().item()
    encoder, decoder = Encoder(4, strides, 6).double(), Decoder(4, strides, 6).double()
    wav = torch.randn(2, 1, 61 * hop_length).double()
    latent = encoder(wav)
    assert latent.shape == (2, 6, 61)
    for block_frames in (1, 7, 60, 61, 100):
        torch.testing.assert_close(blockwise(encoder, wav, hop_length, block_frames), latent, rtol=0, atol=1e-12)
        decoded = blockwise(decoder, latent, hop_length, block_frames)
        torch.testing.assert_close(decoded, decoder(latent), rtol=0, atol=1e-12)


def test_long_files_are_coded_as_in_one_piece(monkeypatch):
    frontend = tiny_frontend("codec")
    wav = tones(5000, batch=2)
    codes = frontend.encode(wav)
    decoded = frontend.decode(codes)
    monkeypatch.setattr(codec_module, "BLOCK_FRAMES", 9)
    assert float((frontend.encode(wav) != codes).float().mean()) < 0.01
    torch.testing.assert_close(frontend.decode(codes), decoded, rtol=0, atol=1e-5)


def test_upsampling_overlaps_as_a_lapped_transform_does():
    """Input t is heard in outputs t * stride to (t + 2) * stride - 1; only what comes after the end is cut."""
    layer = CausalUpsample1d(1, 1, 3).double()
    x = torch.zeros(1, 1, 5).double()
    x[0, 0, 1] = 1
    response = (layer(x) - layer(torch.zeros_like(x)))[0, 0]
    torch.testing.assert_close(response[3:9], layer.weight[0, 0])
    assert response[:3].abs().max() == 0 and response[9:].abs().max() == 0 and len(response) == 15


def test_the_signal_keeps_its_size_through_the_networks():
    """Buries torch's default start, which shrinks it a thousandfold and takes hundreds of steps to undo."""
    torch.manual_seed(0)
    encoder = Encoder(32, (8, 4, 4), 16)
    latent = encoder(torch.randn(4, 1, 4096))
    latent = latent.detach()
    assert 0.3 < float(latent.std()) < 5
    assert float(latent.std(dim=2).min()) > 0.1


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_the_frame_rate_is_about_the_same_at_any_rate(rate):
    spec = load_frontend("codec", sample_rate=rate).spec
    assert 60 < spec.frame_rate < 65


@pytest.mark.parametrize("settings", [{"strides": ()}, {"strides": (0, 4)}, {"strides": (1000, 1000)}, {"channels": 0},
                                      {"fit_steps": 0}, {"learning_rate": 0.0}, {"num_codebooks": 0}, {"dim": 10**9}])
def test_senseless_settings(settings):
    with pytest.raises(ConfigError, match=f"frontend.{next(iter(settings))}"):
        load_frontend("codec", **settings)


def test_the_loss_is_0_for_the_same_and_grows_with_the_distance():
    """Buries a loss that is deaf to quiet parts, to pitch, or to all but the loudest window."""
    loss, wav = SpectralLoss(8000), tones(4096, batch=2)
    assert float(loss(wav, wav)) == 0
    noise = torch.randn(wav.shape, generator=generator())
    losses = [float(loss(wav + level * noise, wav)) for level in (1e-3, 1e-2, 1e-1)]
    assert 0 < losses[0] < losses[1] < losses[2]
    assert float(loss(0.5 * wav, wav)) > 0.2
    assert float(loss(tones(4096, batch=2, seed=1), wav)) > 0.5
    assert float(loss(-wav, wav)) < 1e-5, "of magnitudes only"


def test_the_loss_has_a_gradient_at_silence():
    """Buries the square root's infinite slope at 0."""
    wav = torch.zeros(1, 1, 4096, requires_grad=True)
    SpectralLoss(8000)(wav, tones(4096)).backward()
    assert bool(torch.isfinite(wav.grad).all())


def test_fitting_brings_the_sound_closer():
    """Buries a training that runs but learns nothing, and codebooks that it leaves behind."""
    settings = dataclasses.asdict(tiny_frontend("codec").config)
    settings |= {"channels": 16, "dim": 16, "codebook_size": 32, "strides": (16, 4), "batch_size": 4}
    files = list(tones(8000, batch=6)[:, :])
    wav = tones(8000, seed=9)
    loss_of, losses = SpectralLoss(8000), []
    for fit_steps in (2, 60):
        frontend = load_frontend("codec", **settings | {"fit_steps": fit_steps})
        frontend.fit(files)
        codes = frontend.encode(wav)
        losses.append(float(loss_of(frontend.decode(codes)[..., :8000], wav)))
    assert losses[1] < 0.7 * losses[0]
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


def test_a_loss_that_is_not_a_number_stops_the_fit():
    """Buries weights of NaN, saved as fitted."""
    frontend = load_frontend("codec", **tiny_settings("codec"))
    loss_of = SpectralLoss(8000)
    loss_of.forward = lambda decoded, wav: decoded.sum() * float("nan")
    batches = iter([tones(2048, batch=2)] * 9)
    with pytest.raises(TrainingError, match="step 0.*frontend.learning_rate"):
        train_autoencoder(frontend.encoder, frontend.quantizer, frontend.decoder, batches, loss_of, num_steps=9,
                          learning_rate=1e-3, generator=generator())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in frontend.state_dict().values())


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
    files = [torch.arange(1, 641).float()[None]]
    batches = draw_batches(lambda: files, 64, 4, capacity=100, generator=generator())
    heard = torch.stack([next(batches) for _ in range(30)])
    assert heard.shape == (30, 4, 1, 64)
    counts = torch.bincount(heard.flatten().long(), minlength=641)[1:]
    assert int(counts.min()) > 0 and int(counts.max()) < 3 * int(counts.min())
    few = draw_batches(lambda: [torch.ones(1, 100)], 64, 50, capacity=9, generator=generator())
    assert next(few).shape == (50, 1, 64)


def test_half_of_the_items_use_all_codebooks():
    depths = draw_depths(10_000, 4, generator())
    shares = torch.bincount(depths, minlength=5) / 10_000
    torch.testing.assert_close(shares, torch.tensor([0, 0.125, 0.125, 0.125, 0.625]), rtol=0, atol=0.02)


def test_a_codec_of_short_hops_can_be_fitted():
    """Buries crops shorter than the longest window of the loss, which torch can't pad."""
    frontend = load_frontend("codec", **{**tiny_settings("codec"), "strides": (2, 4)})
    frontend.fit([torch.from_numpy(note(seed, RATE)).float()[None] for seed in range(2)])
    assert frontend.encode(torch.zeros(1, 1, 80)).shape == (1, 2, 10)
