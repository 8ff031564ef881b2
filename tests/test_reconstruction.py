"""Measures of a round trip against closed forms and the packages that define them; Opus and MP3 as a yardstick."""

import math

import numpy as np
import pytest
import torch

from audiogen.audio.lossy import code_mp3, code_opus
from audiogen.errors import AudiogenError
from audiogen.evaluation import reconstruction
from audiogen.evaluation.reconstruction import codebook_statistics, joined, si_sdr, stft_distance
from audiogen.spec import TokenSpec


def voice(seconds=4.0, rate=16_000, seed=0):
    """Syllables of a buzz through moving resonances, with pauses: enough of a voice for PESQ. (1, N) float32."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 120 * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    first = 500 + 300 * np.sin(2 * np.pi * 1.3 * t)
    buzz = sum(np.sin(n * phase) * np.exp(-(((n * pitch - first) / 300) ** 2) / 2) for n in range(1, 25))
    envelope = np.clip(np.sin(2 * np.pi * 2 * t), 0, 1) ** 0.5
    wav = 0.3 * envelope * buzz / np.abs(buzz).max() + 1e-4 * rng.standard_normal(len(t))
    return torch.from_numpy(wav).float()[None]


def noisy(wav, level, seed=1):
    return wav + level * torch.randn(wav.shape, generator=torch.Generator().manual_seed(seed))


def test_stft_distance_is_the_closed_form_of_a_gain():
    """Guards against squared or natural-log magnitudes, and a floor that hides quiet sounds. Half the level everywhere
    moves each log10 magnitude by log10(2)."""
    loud = 0.3 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    assert stft_distance(loud, loud, 16_000) == 0
    assert stft_distance(loud, loud / 2, 16_000) == pytest.approx(math.log10(2), rel=1e-3)
    assert stft_distance(torch.zeros(1, 8000), torch.zeros(1, 8000), 16_000) == 0
    steps = [stft_distance(loud, noisy(loud, level), 16_000) for level in (1e-3, 1e-2, 1e-1)]
    assert steps == sorted(steps) and steps[0] > 0


@pytest.mark.parametrize("decibel", [0, 10, 30])
def test_si_sdr_of_a_known_mixture(decibel):
    """Guards against a ratio of amplitudes, and noise that is taken to be uncorrelated. Noise is made orthogonal
    here."""
    signal = voice()[0].double()
    signal -= signal.mean()
    noise = torch.randn(len(signal), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean()
    noise -= signal * signal.dot(noise) / signal.dot(signal)
    noise *= signal.norm() / noise.norm() * 10 ** (-decibel / 20)
    assert si_sdr(signal, signal + noise) == pytest.approx(decibel, abs=1e-6)


def test_pesq_and_stoi_are_the_packages_own():
    """Guards against reference and estimate swapped, the wrong band for the rate, and samples at another rate than
    stated."""
    pesq, pystoi = pytest.importorskip("pesq"), pytest.importorskip("pystoi")
    wav = voice()
    bad = noisy(wav, 0.02)
    one, two = wav[0].numpy(), bad[0].numpy()
    assert reconstruction.pesq(wav, bad, 16_000) == pytest.approx(pesq.pesq(16_000, one, two, "wb"), abs=1e-6)
    low, low_bad = voice(rate=8000), noisy(voice(rate=8000), 0.02)
    expected = pesq.pesq(8000, low[0].numpy(), low_bad[0].numpy(), "nb")
    assert reconstruction.pesq(low, low_bad, 8000) == pytest.approx(expected, abs=1e-6)
    assert reconstruction.stoi(wav, bad, 16_000) == pytest.approx(pystoi.stoi(one, two, 16_000), abs=1e-6)
    for measure in (reconstruction.pesq, reconstruction.stoi):
        assert measure(wav, wav, 16_000) > measure(wav, bad, 16_000)
    assert math.isnan(reconstruction.pesq(torch.zeros(1, 16_000), torch.zeros(1, 16_000), 16_000))
    assert math.isnan(reconstruction.pesq(wav[:, :1000], bad[:, :1000], 16_000))


@pytest.mark.parametrize("name", ["pesq", "pystoi"])
def test_what_is_not_installed_is_named(name, monkeypatch):
    """Guards against a traceback where an extra is missing."""
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(AudiogenError, match=f"pip install {name}"):
        getattr(reconstruction, name.removeprefix("py"))(voice(), voice(), 16_000)


def test_short_clips_are_joined_and_long_ones_cut():
    """Guards against clips under the promised length, sound that comes twice, and a remainder that is scored like the
    rest."""
    rate = 100
    wavs = [
        torch.arange(start, start + length).float()[None]
        for start, length in ((0, 300), (300, 450), (750, 60), (810, 2500), (3310, 40))
    ]
    clips = joined(wavs, rate, seconds=10)
    assert all(800 <= clip.shape[1] <= 1200 for clip in clips)
    everything = torch.cat(clips, dim=1)[0]
    assert len(everything.unique()) == len(everything)
    assert torch.equal(clips[0][0], torch.arange(0, 810).float()), "end to end"
    assert [clip.shape[1] for clip in joined(wavs[:1], rate, seconds=10)] == [300], "all that there is"
    assert joined([], rate) == []


def test_codebook_statistics_are_the_closed_forms():
    """Guards against entropy in nats, codebooks mixed up, and counts of one file alone."""
    spec = TokenSpec(16_000, 320, 3, 8)
    codes = torch.stack([torch.arange(64) % 8, torch.arange(64) % 2, torch.zeros(64, dtype=torch.int64)])
    found = codebook_statistics([codes[:, :32], codes[:, 32:]], spec)
    assert found["codebook_usage"] == pytest.approx([1, 1 / 4, 1 / 8])
    assert found["perplexity"] == pytest.approx([8, 2, 1])
    assert found["bits_per_second"] == pytest.approx(50 * (3 + 1 + 0))
    skewed = torch.tensor([[0, 0, 0, 1]])
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert codebook_statistics([skewed], TokenSpec(8000, 80, 1, 2))["bits_per_second"] == pytest.approx(100 * entropy)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000])
def test_opus_keeps_time_and_states_its_rate(rate):
    """Guards against a bitrate that counts the container, another length, a shift, and settings that change nothing."""
    wav = voice(8.0, rate)
    low, high = code_opus(wav, rate, 12_000), code_opus(wav, rate, 64_000)
    for coded, wanted in ((low, 12_000), (high, 64_000)):
        assert coded.wav.shape == wav.shape
        assert coded.bitrate < coded.file_bitrate < coded.bitrate + 4000
        assert 0.5 * wanted < coded.bitrate < 1.3 * wanted
    assert si_sdr(wav, high.wav) > max(15, si_sdr(wav, low.wav))
    with pytest.raises(AudiogenError, match="Opus takes"):
        code_opus(wav, 11_025, 12_000)


@pytest.mark.parametrize("rate, bitrate", [(8000, 24_000), (16_000, 24_000), (16_000, 64_000), (44_100, 96_000)])
def test_mp3_keeps_time_and_states_its_rate(rate, bitrate):
    """Guards against the encoder's delay, which would make the best coder look like the worst."""
    wav = voice(4.0, rate)
    coded = code_mp3(wav, rate, bitrate)
    assert coded.wav.shape == wav.shape
    assert 0.75 * bitrate < coded.bitrate < 1.3 * bitrate
    assert si_sdr(wav, coded.wav) > 8
    with pytest.raises(AudiogenError, match="bit/s"):
        code_mp3(wav, rate, 1000)
