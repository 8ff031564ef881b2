"""Mel frames against librosa, and the way back against torchaudio's Griffin-Lim."""

import librosa
import numpy as np
import pytest
import torch
import torchaudio

from audiogen.errors import ConfigError, DataError
from audiogen.frontends import load_frontend
from audiogen.frontends.mel import griffin_lim, mel

RATES = [8000, 11025, 16000, 22050, 44100, 48000]

pytestmark = pytest.mark.filterwarnings("ignore:n_fft=:UserWarning")


def melody(rate, seconds=1.0, seed=0):
    """Decaying harmonic notes with a little noise, then silence: (1, N) float32."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    wav = torch.zeros_like(t)
    for start, pitch in ((0.0, 220.0), (0.25, 330.0), (0.5, 275.0)):
        since = (t - start * seconds).clamp_min(0)
        envelope = torch.exp(-6 * since) * (since > 0)
        wav += sum(torch.sin(2 * torch.pi * pitch * n * since) / n for n in range(1, 8)) * envelope
    wav = 0.2 * wav + 0.003 * torch.randn(t.shape, generator=generator, dtype=torch.float64)
    wav[int(0.85 * len(wav)) :] = 0
    return wav.float()[None]


def fitted(rate, **settings):
    frontend = load_frontend("mel", sample_rate=rate, **settings)
    frontend.fit([melody(rate, seed=seed) for seed in range(2)])
    return frontend


def mel_distance(frontend, wav, other):
    """Mean distance of log-mel power in dB."""
    one, two = (torch.log10(frontend.power(x) + frontend.floor) for x in (wav, other))
    return float(10 * (one - two).abs().mean())


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("hops, extra", [(0, 1), (1, 0), (20, 0), (20, 1), (33, -7)])
def test_mel_power_equals_librosas(rate, hops, extra):
    """Guards against HTK's scale, another norm, another window, reflected ends. Where the hop divides N, librosa has
    one frame more."""
    frontend = load_frontend("mel", sample_rate=rate)
    hop_length = frontend.spec.hop_length
    num_samples = hops * hop_length + extra
    wav = 0.1 * torch.randn(1, 1, num_samples)
    expected = librosa.feature.melspectrogram(
        y=wav[0, 0].numpy(),
        sr=rate,
        n_fft=4 * hop_length,
        hop_length=hop_length,
        n_mels=80,
        htk=False,
        norm="slaney",
        center=True,
        pad_mode="constant",
    )
    power = frontend.power(wav)[0].numpy()
    assert power.shape == (80, -(-num_samples // hop_length))
    assert expected.shape[1] == power.shape[1] + (extra == 0)
    assert np.abs(power - expected[:, : power.shape[1]]).max() <= 1e-5 * expected.max()


def test_the_hop_is_the_power_of_two_nearest_16_ms():
    hops = [load_frontend("mel", sample_rate=rate).spec.hop_length for rate in RATES]
    assert hops == [128, 128, 256, 256, 512, 1024]
    assert all(40 < rate / hop < 90 for rate, hop in zip(RATES, hops, strict=True))


def test_no_filter_is_empty():
    """Guards against features that are the same number whatever is heard."""
    for rate in range(4000, 50_000, 1500):
        assert bool((load_frontend("mel", sample_rate=rate).basis.sum(1) > 0).all())
    with pytest.raises(ConfigError, match="frontend.num_features: 80 .* 64 samples at 8000 Hz.*hop_length"):
        load_frontend("mel", sample_rate=8000, hop_length=16)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_features": 0},
        {"hop_length": 0},
        {"griffin_lim_iterations": 0},
        {"sample_rate": 10},
        {"num_features": 10**9},
    ],
)
def test_senseless_settings(settings):
    with pytest.raises(ConfigError, match=f"frontend.{next(iter(settings))}"):
        load_frontend("mel", **settings)


def test_frames_are_standardised_over_the_training_files():
    """Guards against statistics of files instead of frames, of power instead of its log, and sums that lose digits."""
    files = [melody(8000, seconds, seed) for seed, seconds in enumerate((0.3, 1.0, 2.0))]
    frontend = load_frontend("mel", sample_rate=8000)
    frontend.fit(files)
    frames = torch.cat([frontend.encode(wav[None])[0] for wav in files], dim=1).double()
    torch.testing.assert_close(frames.mean(1), torch.zeros(80).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(frames.var(1, correction=0), torch.ones(80).double(), rtol=0, atol=1e-4)


def test_a_band_that_never_moves_is_not_blown_up():
    """Guards against a division by a variance of 0, and hiss at the top of a recording that has none."""
    frontend = load_frontend("mel", sample_rate=8000)
    frontend.fit([torch.zeros(1, 8000)])
    frames = frontend.encode(melody(8000)[None])
    assert bool(torch.isfinite(frames).all()) and float(frames.abs().max()) < 1000
    assert float(frontend.encode(torch.zeros(1, 1, 999)).abs().max()) < 1e-3


def test_blocks_make_no_difference(monkeypatch):
    """Guards against a seam in files longer than a block."""
    frontend = fitted(8000).double()
    wav = torch.cat([melody(8000), melody(8000, seed=1)])[:, None].double()
    whole = frontend.encode(wav)
    monkeypatch.setattr(mel.Mel, "block_frames", 7)
    torch.testing.assert_close(frontend.encode(wav), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rate, bound", [(8000, 1.0), (16000, 1.0)])
def test_the_way_back_is_close(rate, bound):
    """Guards against bands that fall silent, frames shifted by a hop, a loudness that is off. In dB of log-mel power;
    the first guess of the linear spectrum with random phases is at about 3 dB."""
    frontend = fitted(rate)
    wav = melody(rate, seed=5)[None]
    decoded = frontend.decode(frontend.encode(wav))
    assert mel_distance(frontend, wav, decoded[..., : wav.shape[-1]]) < bound
    assert float(decoded.square().mean()) == pytest.approx(float(wav.square().mean()), rel=0.1)
    late = decoded[..., frontend.spec.hop_length : wav.shape[-1]]
    assert mel_distance(frontend, wav[..., : late.shape[-1]], late) > 2 * bound


def test_the_way_back_is_closer_than_torchaudios():
    """The oracle starts from the same linear spectrum: it is the walk that must be at least as good."""
    frontend = fitted(16000)
    wav = melody(16000, seed=5)[None]
    decoded = frontend.decode(frontend.encode(wav))
    power = frontend.power(wav)
    linear = griffin_lim.Filters(frontend.basis).spread(torch.cat([power, power[..., -1:]], dim=-1))
    torch.manual_seed(0)
    n_fft, hop_length = frontend.n_fft, frontend.spec.hop_length
    other = torchaudio.functional.griffinlim(
        linear[0],
        torch.hann_window(n_fft),
        n_fft,
        hop_length,
        n_fft,
        power=2.0,
        n_iter=60,
        momentum=0.99,
        length=decoded.shape[-1],
        rand_init=True,
    )[None, None]
    assert mel_distance(frontend, wav, decoded) < 0.6 * mel_distance(frontend, wav, other)


def test_the_spread_spectrum_has_the_mel_power_that_was_asked_for():
    """Guards against a linear spectrum below 0, and a solver that stops half-way."""
    frontend = load_frontend("mel", sample_rate=16000)
    power = frontend.power(melody(16000)[None])
    linear = griffin_lim.Filters(frontend.basis).spread(power)
    assert float(linear.min()) >= 0
    floor = 1e-5 * power.max()
    distance = 10 * (torch.log10(frontend.basis @ linear + floor) - torch.log10(power + floor)).abs()
    assert float(distance.mean()) < 0.1 and float(distance.max()) < 6


def test_silence_is_silence():
    """Guards against a noise floor that is decoded as an audible hum."""
    frontend = fitted(8000)
    wav = torch.zeros(1, 1, 8000)
    assert float(frontend.decode(frontend.encode(wav)).abs().max()) == 0
    wav[..., :2000] = melody(8000)[:, :2000]
    assert float(frontend.decode(frontend.encode(wav))[..., 4000:].abs().max()) < 1e-4


def test_absurd_frames_stay_in_range():
    """Guards against an overflow of exp, of which a single generated frame would be enough to make the file NaN."""
    frontend = fitted(8000)
    frames = frontend.encode(melody(8000)[None])
    frames[:, :, 20] = 1e4
    frames[:, ::2, 30] = 1e30
    frames[:, :, 40:43] = -1e30
    wav = frontend.decode(frames)
    assert bool(torch.isfinite(wav).all()) and float(wav.abs().max()) <= 1
    assert bool(torch.isfinite(frontend.decode(1e5 * torch.randn(1, 80, 30))).all())


def test_the_same_frames_sound_the_same_whatever_follows():
    """Guards against starting phases that depend on the length: then a longer file would begin differently."""
    frontend = fitted(8000, griffin_lim_iterations=3)
    frames = frontend.encode(melody(8000)[None])
    near = 8 * frontend.spec.hop_length  # what four walks can carry, 2 hops each, is left out
    shorter, longer = frontend.decode(frames[..., :40]), frontend.decode(frames)
    torch.testing.assert_close(
        shorter[..., : -2 * near], longer[..., : shorter.shape[-1] - 2 * near], rtol=0, atol=1e-4
    )


def test_melvq_codes_are_those_of_the_nearest_centroid():
    """Guards against centroids of raw frames, and distances that are not Euclidean: the oracle is a slow loop."""
    frontend = load_frontend("melvq", sample_rate=8000, num_codebooks=1, codebook_size=16)
    frontend.fit([melody(8000, seed=seed) for seed in range(3)])
    wav = melody(8000, seed=7)[None]
    codes, frames = frontend.encode(wav)[0, 0], frontend.mel.encode(wav)[0].T
    centroids = frontend.quantizer.codebooks[0]
    for frame, code in zip(frames, codes, strict=True):
        distances = [float((frame - centroid).square().sum()) for centroid in centroids]
        assert distances[code] == pytest.approx(min(distances), abs=1e-3)
    heard = frontend.mel.decode(centroids[codes].T[None])
    torch.testing.assert_close(frontend.decode(codes[None, None]), heard, rtol=0, atol=1e-6)
    assert len(codes.unique()) > 4


def test_melvq_gets_closer_with_more_codes():
    files, wav, distances = [melody(8000, seed=seed) for seed in range(4)], melody(8000, seed=9)[None], []
    for size, rows in ((4, 1), (32, 1), (32, 3)):
        frontend = load_frontend("melvq", sample_rate=8000, codebook_size=size, num_codebooks=rows)
        frontend.fit(files)
        x = frontend.quantizer.decode(frontend.encode(wav))
        distances.append(float((x - frontend.mel.encode(wav)).square().mean()))
    assert distances[0] > 2 * distances[1] and distances[1] > 1.1 * distances[2]


def test_melvq_with_fewer_frames_than_codes():
    """Guards against codes that no sound has: they would be learned as never used, and still be drawn."""
    frontend = load_frontend("melvq", sample_rate=8000, num_codebooks=1, codebook_size=64)
    with pytest.raises(DataError, match="frontend.codebook_size: 64 .* 32 training frames.*choose fewer"):
        frontend.fit([melody(8000)[:, : 32 * 128]])
    with pytest.raises(DataError, match="only 1 distinct"):
        frontend.fit([torch.zeros(1, 80_000)])
    assert not frontend.fitted


def test_melvq_draws_at_most_fit_frames():
    """Guards against a memory that grows with the folder. (That the draw is fair is tested with the reservoir.)"""
    frontend = load_frontend("melvq", sample_rate=8000, num_codebooks=1, codebook_size=8, fit_frames=20)
    seen = []
    frontend.quantizer.fit = lambda frames, generator: seen.append(frames)
    frontend.fit([melody(8000, seed=seed) for seed in range(5)])
    assert seen[0].shape == (20, 80)
