"""The mel scale and its filterbank, beside librosa's and torchaudio's."""

import librosa
import numpy as np
import pytest
import torch
import torchaudio

from audiogen.audio.dsp import hz_to_mel, mel_filterbank

RATES = [1000, 1500, 8000, 16000, 22050, 44100, 48000]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("num_bands", [1, 20, 128])
def test_filters_equal_librosas(rate, num_bands):
    """Guards against the wrong scale (HTK's), the wrong norm, and float32 corners."""
    filters = mel_filterbank(rate, 2048, num_bands)
    expected = librosa.filters.mel(sr=rate, n_fft=2048, n_mels=num_bands, dtype=np.float64)
    np.testing.assert_allclose(filters.numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("top", [None, 6000.0])
def test_unnormalised_filters_equal_torchaudios(top):
    """Guards against filters of area 1 where a peak of 1 was asked for, and an upper edge that is ignored."""
    ours = mel_filterbank(16000, 2048, 80, top, unit_area=False)
    theirs = torchaudio.functional.melscale_fbanks(1025, 0.0, top or 8000.0, 80, 16000, mel_scale="slaney")
    torch.testing.assert_close(ours.T.float(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("hertz", [0.0, 440.0, 1000.0, 12345.6])
def test_hz_to_mel_equals_librosas(hertz):
    """Guards against axis ticks that lie beside their bands."""
    assert hz_to_mel(hertz) == pytest.approx(float(librosa.hz_to_mel(hertz)))
