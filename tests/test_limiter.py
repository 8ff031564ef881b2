"""The limiter: true peaks, transparency, chunks, and where it stands."""

import itertools
import logging

import librosa
import numpy as np
import pytest
import scipy.signal
import torch

from audiogen import load_frontend
from audiogen.audio.limiter import CEILING, Limiter, interpolation_taps, log_reductions

RATES = [8000, 44100]


def sounds(rate: int) -> dict[str, torch.Tensor]:
    """A second of sounds whose peaks are hard to keep down, (1, 1, N) each."""
    t = torch.arange(rate, dtype=torch.float64)
    noise = torch.randn(1, 1, rate, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low_pass = scipy.signal.butter(8, 0.85, output="sos")  # at the edge of the band, resamplers differ
    noise = torch.from_numpy(scipy.signal.sosfiltfilt(low_pass, noise.numpy()).copy())
    fade = torch.minimum(t, t.flip(0)).div(0.01 * rate).clamp(max=1)

    def tone(cycles: float, phase: float = 0.0) -> torch.Tensor:
        return (fade * torch.sin(2 * torch.pi * cycles * t + phase))[None, None]

    return {
        "noise": 0.7 * noise,
        "loud noise": 3 * noise,
        "bass": 2 * tone(50 / rate),
        "between samples": tone(0.25, torch.pi / 4),  # its samples are 3 dB below its peaks
        "high": 1.4 * tone(0.45, 0.3),
        "clicks": 4.0 * (noise > 3),
        "burst": torch.where(t > rate / 2, 2.0, 0.1) * tone(440 / rate),
    }


def true_peak(wav: torch.Tensor, rate: int) -> float:
    """The oracle: the peak in dBTP after resampling to four times the rate, the higher one of scipy's and librosa's."""
    x = wav.double().reshape(-1).numpy()
    ours = scipy.signal.resample_poly(x, 4, 1)
    theirs = librosa.resample(x, orig_sr=rate, target_sr=4 * rate, res_type="soxr_vhq")
    return 20 * np.log10(max(np.abs(y).max() for y in (x, ours, theirs)))


@pytest.mark.parametrize("rate", RATES)
def test_no_true_peak_is_above_the_ceiling(rate):
    """Guards against a limiter of sample peaks, 3 dB too high for a tone at a quarter of the rate, or a late gain."""
    for name, wav in sounds(rate).items():
        limited = Limiter(rate)(wav, last=True)
        assert limited.shape == wav.shape
        assert true_peak(limited, rate) <= CEILING + 0.05, name
        assert true_peak(limited, rate) >= CEILING - 0.3, f"{name}: turned down more than needed"


@pytest.mark.parametrize("rate", RATES)
def test_quiet_sound_passes_unchanged(rate):
    """Guards against a gain of almost 1, and overestimated peaks: what is below the ceiling passes to the bit."""
    for name, wav in sounds(rate).items():
        quiet = (wav * 10 ** ((CEILING - 0.15 - true_peak(wav, rate)) / 20)).float()
        limiter = Limiter(rate)
        assert torch.equal(limiter(quiet, last=True), quiet), name
        assert limiter.reductions == [0.0]


def test_sound_far_from_a_peak_passes_unchanged():
    """Guards against a gain that is for the whole sound, or one that creeps back to 1 for ever."""
    rate = 16000
    wav = 0.5 * torch.sin(0.2 * torch.arange(2 * rate))[None, None]
    wav[:, :, rate : rate + 100] *= 4
    limited = Limiter(rate)(wav, last=True)
    before, after = rate - Limiter(rate).delay, rate + 100 + rate // 2
    assert torch.equal(limited[:, :, :before], wav[:, :, :before])
    assert torch.equal(limited[:, :, after:], wav[:, :, after:])
    assert not torch.equal(limited, wav)


@pytest.mark.parametrize("lengths", [[1], [7], [64, 0, 3], [5000]])
def test_a_stream_equals_the_whole_to_the_bit(lengths):
    """Guards against a gain that depends on the chunks or rounds with the length, and a delay other than stated."""
    rate = 8000
    wav = torch.cat([sounds(rate)[name][:, :, 1000:3000] for name in ("noise", "bass", "clicks")], dim=0).float()
    whole, limiter, fed, given = Limiter(rate)(wav, last=True), Limiter(rate), 0, []

    def chunks():
        nonlocal fed
        begin, size = 0, itertools.cycle(lengths)
        while begin < wav.shape[2]:
            chunk = wav[:, :, begin : begin + next(size)]
            begin += chunk.shape[2]
            fed += chunk.shape[2]
            yield chunk

    for piece in limiter.stream(chunks()):
        given.append(piece)
        heard = sum(x.shape[2] for x in given)
        assert heard == wav.shape[2] or heard == fed - limiter.delay
    assert torch.equal(torch.cat(given, dim=2), whole)


def test_items_do_not_depend_on_each_other_and_channels_do():
    """Guards against a gain shared by a batch, and one per channel, which would move a sound from left to right."""
    rate, wavs = 16000, sounds(16000)
    batch = torch.cat([wavs["bass"], 0.1 * wavs["noise"], wavs["burst"]])
    limiter = Limiter(rate)
    limited = limiter(batch, last=True)
    for i in range(3):
        assert torch.equal(limited[i : i + 1], Limiter(rate)(batch[i : i + 1], last=True))
    assert limiter.reductions[1] == 0 and limiter.reductions[0] == pytest.approx(7.1, abs=0.1)
    stereo = torch.cat([wavs["bass"], 0.2 * wavs["burst"]], dim=1)
    both = Limiter(rate)(stereo, last=True)
    heard = stereo.abs().amin(dim=1)[0] > 1e-3
    gains = (both / stereo)[0, :, heard]
    torch.testing.assert_close(gains[0], gains[1])


def test_a_loud_tone_stays_a_tone():
    """Guards against a clamp, and a gain so quick that it bends the wave: a bass note would get harmonics."""
    rate, t = 16000, torch.arange(16000) / 16000
    wav = (1.2 * torch.sin(2 * torch.pi * 55 * t))[None, None].double()

    def harmonics(x):
        power = torch.fft.rfft(x[0, 0] * torch.hann_window(rate, dtype=x.dtype)).abs().square()
        return float(power[90:].sum() / power.sum())

    assert harmonics(Limiter(rate)(wav, last=True)) < 0.03 * harmonics(wav.clamp(-0.89, 0.89))


@pytest.mark.parametrize("samples", [1, 7, 500])
def test_any_length(samples):
    """Guards against sound that is shorter than what the limiter looks ahead to."""
    limited = Limiter(44100)(torch.full((2, 1, samples), 3.0), last=True)
    assert limited.shape == (2, 1, samples) and 0.5 < float(limited.abs().max()) < 0.8913


def test_absurd_sound_is_not_hidden():
    """Guards against a limiter that turns NaN into silence, so that nobody would learn that a model has broken."""
    wav = torch.zeros(1, 1, 4000)
    wav[0, 0, 1000] = float("nan")
    assert bool(Limiter(8000)(wav, last=True).isnan().any())


def test_the_interpolation_is_a_sinc():
    """Guards against taps that are mirrored or shifted: between samples of a slow sine stand its values there."""
    taps, reach = interpolation_taps(), len(interpolation_taps()) // 2
    x = torch.sin(0.3 * torch.arange(1 - reach, reach + 1, dtype=torch.float64) + 0.5)
    expected = torch.sin(0.3 * torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64) + 0.5)
    torch.testing.assert_close(x @ taps, expected, rtol=0, atol=5e-4)


def test_decoded_sound_is_limited_and_single_samples_are_exact():
    """Guards against a front-end that clips, and a mu-law that is no longer exact."""
    codec = load_frontend("codec", num_codebooks=2)
    codec.level.fill_(2.0)
    codes = torch.randint(0, 1024, (2, 2, 60), generator=torch.Generator().manual_seed(0))
    raw = torch.cat(list(codec.unlimited([codes])), dim=2)
    assert float(raw.abs().max()) > 1.2
    limiter = codec.limiter()
    wav = codec.decode(codes, limiter)
    assert all(true_peak(item, 16000) <= CEILING + 0.05 for item in wav)
    assert torch.equal(wav, codec.decode(codes)) and max(limiter.reductions) > 1
    mulaw = load_frontend("mulaw", sample_rate=8000)
    square = torch.tensor([[[-1.0, 1.0] * 50]])
    assert torch.equal(mulaw.decode(mulaw.encode(square)), square)
    assert true_peak(mulaw.decode(mulaw.encode(square), Limiter(8000)), 8000) <= CEILING + 0.05


def test_one_line_says_what_was_turned_down(caplog):
    """Guards against a limiter that acts in silence, and one that talks where it does not act."""
    caplog.set_level(logging.INFO, logger="audiogen")
    log_reductions([])
    log_reductions([0.0, 0.0])
    assert not caplog.messages
    log_reductions([0.0, 2.34, 1.0])
    assert caplog.messages == ["limiter: peaks above -1 dBTP of 2 of 3 sounds were turned down, by at most 2.3 dB"]
