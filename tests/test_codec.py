"""The own codec: its networks, its loss and its fit."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from corpus import RATE, note, tiny_frontend, tiny_settings

from audiogen.errors import ConfigError
from audiogen.frontends import load_frontend
from audiogen.frontends.neural.augmentation import SPEEDS, longer, vary
from audiogen.frontends.neural.crops import CropBatches, draw_crops
from audiogen.frontends.neural.losses import ReconstructionLoss
from audiogen.frontends.neural.networks import OVERLAP, SPECTRA, ConvNeXtBlock, Decoder, Encoder
from audiogen.frontends.neural.trainer import draw_depths

HOPS = [64, 8, 26, 320]


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


def networks(hop_length, dim=6, layers=2, latent_dim=3):
    torch.manual_seed(0)
    encoder, decoder = Encoder(hop_length, dim, layers, latent_dim), Decoder(latent_dim, dim, layers, hop_length)
    return encoder.double(), decoder.double()


@pytest.mark.parametrize("hop_length", HOPS)
def test_a_frame_is_made_of_half_a_hop_more_and_is_heard_so_too(hop_length):
    """Guards against an encoder that needs more than it says, and a decoder that answers late: the latency is two
    frames."""
    frame, half = 40, hop_length // 2
    encoder, decoder = networks(hop_length)
    last = seen(encoder, torch.randn(1, 1, 50 * hop_length).double(), frame)[1]
    assert last == (frame + 1) * hop_length + half - 1
    lasts = [
        seen(decoder, torch.randn(1, 3, 50).double(), frame * hop_length + offset)[1] for offset in range(1, hop_length)
    ]
    assert lasts == [frame] * half + [frame + 1] * (half - 1)


@pytest.mark.parametrize("hop_length", HOPS)
def test_any_blocks_with_state_give_what_the_whole_gives(hop_length):
    """Guards against a state that forgets, one that the next call's chunks move out of place, and sound lost where
    windows of two blocks overlap."""
    encoder, decoder = networks(hop_length)
    wav = torch.randn(2, 1, 61 * hop_length).double()
    latent = encoder(wav)[0]
    decoded = decoder(latent)[0]
    assert latent.shape == (2, 3, 61) and decoded.shape == wav.shape
    for sizes in ([2] + [1] * 59, [7, 1, 30, 23], [60, 1]):
        state, blocks = None, []
        for block in wav.split([size * hop_length for size in sizes], dim=2):
            y, state = encoder(block, state, last=False)
            blocks.append(y)
            assert sum(y.shape[2] for y in blocks) == sum(sizes[: len(blocks)]) - 1
        blocks.append(encoder(wav[..., :0], state, last=True)[0])
        torch.testing.assert_close(torch.cat(blocks, dim=2), latent, rtol=0, atol=1e-12)
        state, blocks = None, []
        for block in [*latent.split(sizes, dim=2), latent[..., :0]]:
            y, state = decoder(block, state, last=block.shape[2] == 0)
            blocks.append(y)
            waiting = hop_length // 2 if block.shape[2] else 0
            assert sum(y.shape[2] for y in blocks) == sum(sizes[: len(blocks)]) * hop_length - waiting
        torch.testing.assert_close(torch.cat(blocks, dim=2), decoded, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hop_length", HOPS)
def test_spectra_that_the_decoder_is_told_to_speak_are_heard(hop_length):
    """torch's own inverse is the oracle: spectra of a wav, put in the place of what the last layer says, are that wav.
    Guards against windows that do not add up, and a magnitude or a phase that is read wrongly."""
    _, decoder = networks(hop_length)
    step, n_fft = hop_length // SPECTRA, OVERLAP * hop_length // SPECTRA
    wav = torch.randn(2, 20 * hop_length + n_fft - step).double()  # from half a hop before the sound
    spectra = torch.stft(wav, n_fft, step, window=decoder.window, center=False, return_complex=True).transpose(1, 2)
    said = torch.stack([(spectra / (n_fft / 4)).abs().log() + 3, spectra.angle()], dim=2)  # (B, S, 2, bins)
    decoder.blocks.forward = lambda x, state: (said.reshape(2, 20, -1), None)
    heard = decoder(torch.zeros(2, 3, 20).double())[0].squeeze(1)
    torch.testing.assert_close(heard, wav[:, step : 20 * hop_length + step], rtol=0, atol=1e-6)


def test_a_block_is_a_depthwise_convolution_and_a_wide_layer():
    """torch's own convolution is the oracle. Guards against taps in the wrong order or of the wrong feature."""
    torch.manual_seed(0)
    block, x = ConvNeXtBlock(5).double(), torch.randn(2, 12, 5).double()
    with torch.no_grad():
        block.taps.normal_()
    size = len(block.taps)
    mixed = F.conv1d(F.pad(x.transpose(1, 2), (size - 1, 0)), block.taps.T[:, None], groups=5).transpose(1, 2)
    expected = x + block.scale * block.narrow(F.gelu(block.wide(F.layer_norm(mixed, (5,)))))
    torch.testing.assert_close(block(x)[0], expected)


def test_quiet_sound_is_seen_beside_loud_sound():
    """Guards against features in which all but the loudest vanishes: a tone 60 dB down still moves the latent."""
    encoder, _ = networks(64, dim=32, latent_dim=8)
    loud, quiet = tones(4096).double(), 1e-3 * tones(4096, seed=3).double()
    silent = encoder(torch.zeros_like(quiet))[0]
    moved = (encoder(quiet)[0] - silent).norm() / (encoder(loud)[0] - silent).norm()
    assert float(moved.detach()) > 0.05


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_variations_keep_the_length_and_play_each_crop_otherwise(rate):
    """Guards against a resampled crop that is too short for what comes out, and draws that are the same for all."""
    num_samples = rate // 10
    crops = tones(longer(num_samples), batch=32)
    heard = vary(crops, num_samples, generator())
    assert heard.shape == (32, 1, num_samples) and bool(torch.isfinite(heard).all())
    assert torch.equal(heard, vary(crops, num_samples, generator())), "the generator decides all of it"
    assert not torch.equal(heard, vary(crops, num_samples, generator(1)))


def test_a_tone_played_faster_is_higher():
    """Guards against speeds that change the length alone. Pitches of a pure tone are counted by zero crossings."""
    rate, num_samples = 8000, 4000
    tone = torch.sin(2 * math.pi * 400 / rate * torch.arange(longer(num_samples))).expand(200, 1, -1)
    heard = vary(tone.clone(), num_samples, generator())[:, 0]
    crossings = (heard[:, 1:].sign() != heard[:, :-1].sign()).sum(1).double() / num_samples * rate / 2 / 400
    speeds = torch.tensor([before / after for before, after in SPEEDS] + [1.0]).double()
    nearest = (crossings[:, None] - speeds).abs().min(dim=1)
    assert float((nearest.values < 0.02).double().mean()) > 0.7, "all but those that were mixed"
    counts = torch.bincount(nearest.indices, minlength=5)
    assert int(counts.min()) > 5 and int(counts[-1]) > 60
    levels = heard.square().mean(1).sqrt()
    assert float(levels.max() / levels.min()) > 8


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000])
def test_the_frame_rate_is_about_the_same_at_any_rate(rate):
    spec = load_frontend("codec", weights="fit", sample_rate=rate).spec
    assert 49 < spec.frame_rate < 51.5


@pytest.mark.parametrize(
    "settings",
    [
        {"hop_length": 0},
        {"hop_length": 15},
        {"decoder_layers": 0},
        {"dim": 1},
        {"fit_steps": 0},
        {"learning_rate": 0.0},
        {"num_codebooks": 0},
        {"latent_dim": 10**9},
    ],
)
def test_senseless_settings(settings):
    with pytest.raises(ConfigError, match=f"frontend.{next(iter(settings))}"):
        load_frontend("codec", weights="fit", **settings)


def test_the_loss_is_0_for_the_same_and_grows_with_the_distance():
    """Guards against a loss that is deaf to quiet parts, to pitch, or to all but the loudest window."""
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
    """Guards against the square root's infinite slope at 0."""
    wav = torch.zeros(1, 1, 4096, requires_grad=True)
    total_loss(8000)(wav, tones(4096)).backward()
    assert bool(torch.isfinite(wav.grad).all())


def test_fitting_brings_the_sound_closer():
    """Guards against a training that runs but learns nothing, and codebooks that it leaves behind."""
    settings = dataclasses.asdict(tiny_frontend("codec").config)
    settings |= {"dim": 32, "latent_dim": 16, "codebook_size": 32, "batch_size": 4}
    files = list(tones(8000, batch=6)[:, :])
    wav = tones(8000, seed=9)
    loss_of, losses = total_loss(8000), []
    for fit_steps in (2, 80):
        frontend = load_frontend("codec", **settings | {"fit_steps": fit_steps})
        frontend.fit(files)
        codes = frontend.encode(wav)
        losses.append(float(loss_of(frontend.decode(codes)[..., :8000], wav)))
    assert losses[1] < 0.8 * losses[0]
    assert all(len(row.unique()) > 6 for row in codes[0])


def test_loud_and_quiet_folders_are_fitted_alike():
    """Guards against a codec that takes a quiet recording for silence."""
    files, wav = list(tones(4000, batch=4)), tones(4000, seed=5)
    codes = []
    for gain in (1.0, 1 / 64):
        frontend = load_frontend("codec", **tiny_settings("codec"))
        frontend.fit([gain * file for file in files])
        codes.append(frontend.encode(gain * wav))
    assert torch.equal(codes[0], codes[1]), "a power of two changes no digit"


def test_crops_cover_all_files_joined_end_to_end():
    """Guards against samples lost between files, and files shorter than a crop that are left out."""
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
    """Guards against crops that come up more often than others, and a pool that is never cut anew."""
    files = [torch.arange(1, 641).float()[None]]
    batches = CropBatches(lambda: files, 64, 4, capacity=100, seed=0)
    heard = torch.stack([batches.batch(step) for step in range(30)])
    assert heard.shape == (30, 4, 1, 64)
    counts = torch.bincount(heard.flatten().long(), minlength=641)[1:]
    assert int(counts.min()) > 0 and int(counts.max()) < 3 * int(counts.min())
    assert len({int(crop[0, 0] % 64) for batch in heard for crop in batch[batch[:, 0, 0] > 0]}) > 1
    assert CropBatches(lambda: [torch.ones(1, 100)], 64, 50, capacity=9, seed=0).batch(3).shape == (50, 1, 64)


def test_a_batch_is_a_function_of_the_step():
    """Guards against a resumed run that hears other crops than one that was never interrupted."""
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
    """Guards against crops shorter than the longest window of the loss, which torch can't pad."""
    frontend = load_frontend("codec", **{**tiny_settings("codec"), "hop_length": 8})
    frontend.fit([torch.from_numpy(note(seed, RATE)).float()[None] for seed in range(2)])
    assert frontend.encode(torch.zeros(1, 1, 80)).shape == (1, 2, 10)
