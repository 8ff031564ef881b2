"""Resampling and mixing: the tone, the length and the rows stay what they are."""

import numpy as np
import pytest
import torch
import torchaudio

from audiogen.audio.io import mono, read_audio, resample, write_audio
from audiogen.errors import ConfigError


@pytest.mark.parametrize(
    ("from_rate", "to_rate"), [(44_100, 16_000), (16_000, 44_100), (8_000, 24_000), (48_000, 44_100), (22_050, 8_000)]
)
def test_resampling_keeps_a_tone(from_rate, to_rate):
    """Guards against a delay of the filter, a changed level, a length that is off."""

    def tone(sample_rate):
        return torch.sin(2 * torch.pi * 1_000 * torch.arange(sample_rate, dtype=torch.float64) / sample_rate)[None]

    wav = resample(tone(from_rate), from_rate, to_rate)
    assert wav.shape == (1, to_rate) and wav.dtype == torch.float64
    edge = to_rate // 20
    torch.testing.assert_close(wav[:, edge:-edge], tone(to_rate)[:, edge:-edge], rtol=0, atol=1e-5)
    torch.testing.assert_close(resample(tone(from_rate).float(), from_rate, to_rate), wav.float(), rtol=0, atol=1e-5)


def test_resampling_does_not_alias():
    """Guards against dropping samples without a low-pass filter: 7 kHz would come back as 1 kHz."""
    tone = torch.sin(2 * torch.pi * 7_000 * torch.arange(48_000, dtype=torch.float64) / 48_000)[None]
    assert resample(tone, 48_000, 8_000)[:, 500:-500].abs().max() < 1e-5


def test_resampling_agrees_with_torchaudio():
    """Guards against a rewrite of the wrong direction or rate; noise below 3 kHz is the same by both."""
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    band = torch.fft.irfft(torch.fft.rfft(noise) * (torch.arange(8_001) < 3_000))
    ours, theirs = resample(band, 16_000, 8_000), torchaudio.functional.resample(band, 16_000, 8_000, 64)
    torch.testing.assert_close(ours[:, 200:-200], theirs[:, 200:-200], rtol=0, atol=5e-3)


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 1, 999), (3, 0), (0, 4), (2, 2, 2, 500)])
def test_resampling_shapes(shape):
    """Guards against rows of a batch that mix, and empty inputs that raise."""
    wav = torch.randn(shape)
    out = resample(wav, 44_100, 16_000)
    assert out.shape == (*shape[:-1], (2 * shape[-1] * 16_000 + 44_100) // 88_200) and out.dtype == wav.dtype
    for index in np.ndindex(shape[:-1]):
        assert torch.equal(resample(wav[index], 44_100, 16_000), out[index])
    assert resample(wav, 16_000, 16_000) is wav


def test_half_a_sample_is_rounded_up(tmp_path):
    """soxr rounds some halves down: 240 samples of 48 kHz, 220.5 at 44.1 kHz, were refused or read as 220."""
    for n in range(1, 400):
        wav = torch.rand(1, n) - 0.5
        expected = (2 * n * 44_100 + 48_000) // 96_000
        assert resample(wav, 48_000, 44_100).shape == (1, expected)
        if n % 80 == 0:
            write_audio(tmp_path / "a.wav", wav, 48_000)
            assert read_audio(tmp_path / "a.wav", 44_100).shape == (1, expected)


@pytest.mark.parametrize("rate", [0, -1, 16_000.5, None, 999, 768_001])
def test_impossible_rates(tmp_path, rate):
    """Guards against a resampler asked for a rate of 0, and a file written that would not be read."""
    with pytest.raises(ConfigError, match="sample_rate="):
        resample(torch.zeros(1, 10), 16_000, rate)
    with pytest.raises(ConfigError):
        write_audio(tmp_path / "a.wav", torch.zeros(10), rate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("from_rate", "to_rate"), [(44_100, 16_000), (16_000, 24_000), (8_000, 7_999)])
def test_resampling_on_a_gpu_agrees(from_rate, to_rate):
    """Guards against another length or another filter on a GPU than on the CPU. (Convolutions there round to TF32.)"""
    noise = torch.randn(2, 1, 40_000, generator=torch.Generator().manual_seed(0))
    limit = 0.8 * min(1.0, to_rate / from_rate) * 20_001
    band = torch.fft.irfft(torch.fft.rfft(noise) * (torch.arange(20_001) < limit))
    ours, theirs = resample(band, from_rate, to_rate), resample(band.cuda(), from_rate, to_rate)
    assert theirs.is_cuda and theirs.shape == ours.shape
    torch.testing.assert_close(theirs.cpu()[..., 500:-500], ours[..., 500:-500], rtol=0, atol=1e-2)


def test_mono():
    """Guards against a sum in the place of a mean."""
    wav = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
    assert mono(wav).tolist() == [[[0.5, 0.25]]]
