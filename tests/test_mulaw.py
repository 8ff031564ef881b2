"""Mu-law equals torchaudio's, bit for bit."""

import pytest
import torch
import torchaudio

from audiogen.errors import ConfigError
from audiogen.frontends import load_frontend

EVERY_16_BIT_SAMPLE = torch.arange(-(2**15), 2**15).div(2**15).float().view(1, 1, -1)


@pytest.mark.parametrize("bits", range(2, 17))
def test_equal_to_torchaudio_for_every_16_bit_sample(bits):
    """Guards against a logarithm in another precision, which changes codes at the edges of their intervals."""
    frontend = load_frontend("mulaw", bits=bits)
    codes = frontend.encode(EVERY_16_BIT_SAMPLE)
    assert torch.equal(codes, torchaudio.functional.mu_law_encoding(EVERY_16_BIT_SAMPLE, 2**bits))
    every_code = torch.arange(2**bits).view(1, 1, -1)
    decoded = frontend.decode(every_code)
    assert torch.equal(decoded, torchaudio.functional.mu_law_decoding(every_code, 2**bits))
    assert torch.equal(frontend.encode(decoded), every_code), "what was decoded is encoded as it was"


def test_the_spec_at_any_rate():
    """Guards against a spec whose rate, codebook size or bitrate does not follow the sample rate."""
    for rate in (8000, 44100, 12345):
        spec = load_frontend("mulaw", sample_rate=rate).spec
        assert (spec.sample_rate, spec.hop_length, spec.num_codebooks, spec.codebook_size) == (rate, 1, 1, 256)
        assert spec.frame_rate == rate and spec.bitrate == 8 * rate


def test_silence_and_what_is_too_loud():
    """Guards against codes below 0 and above V - 1. As the number of codes is even, silence decodes to slightly more
    than 0, as documented."""
    frontend = load_frontend("mulaw")
    codes = frontend.encode(torch.tensor([[[0.0, -0.0, 1.0, -1.0, 3.0, -3.0]]]))
    assert codes.tolist() == [[[128, 128, 255, 0, 255, 0]]]
    assert frontend.decode(codes)[0, 0, 0] == pytest.approx(8.6e-5, rel=0.01)


def test_quantization_noise_is_as_the_curve_says():
    """Guards against a curve that is right at a few points only: the quantization step must be proportional to 1 / (mu
    |x| + 1)."""
    for bits in (6, 8, 10):
        frontend, mu = load_frontend("mulaw", bits=bits).double(), 2**bits - 1
        wav = torch.linspace(-1, 1, 200_001, dtype=torch.float64).view(1, 1, -1)
        error = (frontend.decode(frontend.encode(wav)) - wav).abs()
        half_step = torch.log1p(torch.tensor(mu)) / mu * (wav.abs() + 1 / mu)
        assert float((error / half_step).max()) < 1 + 4 / mu**0.5


@pytest.mark.parametrize("settings", [{"bits": 1}, {"bits": 17}, {"sample_rate": 0}, {"sample_rate": -8000}])
def test_senseless_settings(settings):
    """Guards against settings that are accepted although no codec can be built from them, or refused without naming the
    field."""
    with pytest.raises(ConfigError, match=f"frontend.{next(iter(settings))}"):
        load_frontend("mulaw", **settings)
