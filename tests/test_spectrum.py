"""The network that estimates linear spectra from mel frames, and the phases that follow from its peaks."""

import math

import pytest
import torch
from corpus import note
from safetensors.torch import load_file

from audiogen import load_frontend
from audiogen.audio.io import resample
from audiogen.errors import ConfigError
from audiogen.evaluation.reconstruction import mel_distance, stft_distance
from audiogen.frontends import save_frontend
from audiogen.frontends.mel import spectrum
from audiogen.frontends.mel.griffin_lim import OVERLAP, Filters, advancing_phases
from audiogen.frontends.mel.mel import Mel
from audiogen.frontends.mel.spectrum import N_FFT, SpectrumNetwork, frames_at
from audiogen.runs.start import base_frontend, is_base_frontend

RATE, HOP = 44100, 512


def harmonics(pitch, rate=RATE, seconds=1.0):
    """A steady buzz (1, 1, N): all harmonics below 9 kHz, each 6 dB per octave quieter, with random phases."""
    t = torch.arange(round(rate * seconds)).double() / rate
    phases = 2 * math.pi * torch.rand(200, generator=torch.Generator().manual_seed(1)).double()
    numbers = range(1, int(min(9000, rate / 2 - 200) / pitch) + 1)
    wave = sum(torch.sin(2 * math.pi * pitch * n * t + phases[n]) / n for n in numbers)
    return (0.1 * wave).float()[None, None]


def contrast(linear, pitch, rate, n_fft, low, high):
    """How far harmonics stand above the bins midway between them, in dB, on average from `low` to `high` Hz."""
    log = 10 * linear[0, :, linear.shape[2] // 3 : -linear.shape[2] // 3].clamp_min(1e-12).log10().mean(1)
    numbers = torch.arange(math.ceil(low / pitch), int(high / pitch))
    on, between = ((numbers + shift) * pitch / rate * n_fft for shift in (0, 0.5))
    return float((log[on.round().long()] - log[between.round().long()]).mean())


@pytest.mark.parametrize("rate", [16000, 24000, 44100, 48000])
def test_the_network_finds_harmonics_that_share_a_band(rate):
    """Guards against weights in another order, bins or bands that shift with the rate, and a network that only passes
    on the envelope: harmonics above 2 kHz, where one band spans several, must lie where the low ones say."""
    frontend = base_frontend(rate)
    n_fft, found = 4 * frontend.hop_length, []
    for pitch in (171.0, 233.0):
        power = frontend.power_of(frontend.frames_of(frontend.encode(harmonics(pitch, rate))))
        with torch.no_grad():
            sharp, smooth = frontend.spectrum(power), Filters(frontend.basis).spread(power)
        found.append([contrast(x, pitch, rate, n_fft, 2500, 4500) for x in (sharp, smooth)])
    sharp, smooth = torch.tensor(found).mean(0)
    assert sharp > max(6.0, smooth + 4.0), found


def test_the_round_trip_of_a_tone_gets_closer():
    """Guards against Griffin-Lim that ignores the estimate, or phases that destroy it: in spite of fewer iterations,
    tones must come closer to what they were."""
    wav = harmonics(233.0, seconds=2.0)
    figures = {}
    for spectrum_kind, iterations in (("smooth", 60), ("shipped", 16)):
        frontend = base_frontend(RATE, spectrum=spectrum_kind, griffin_lim_iterations=iterations)
        decoded = frontend.decode(frontend.encode(wav))[:, :, : wav.shape[2]]
        figures[spectrum_kind] = (mel_distance(wav, decoded, RATE), stft_distance(wav, decoded, RATE))
    assert all(new < old for new, old in zip(figures["shipped"], figures["smooth"], strict=True)), figures


@pytest.mark.parametrize("hertz", [430.66, 997.0, 5003.3])
def test_phases_of_a_tone_advance_as_in_its_spectrum(hertz):
    """Guards against a frequency or a hop that is off, and against bins that don't follow their peak: the phases must
    be those of the tone's own STFT up to one phase, which drifts by less than half a hertz."""
    t = torch.arange(HOP * 40).double() / RATE
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    wav = torch.sin(2 * math.pi * hertz * t)
    truth = torch.stft(wav[None], N_FFT, HOP, window=window, center=False, return_complex=True)  # (1, bins, W)
    found = advancing_phases(truth.abs().square(), torch.zeros_like(truth))
    peak = round(hertz / RATE * N_FFT)
    turned = (found * torch.sgn(truth).conj())[0, peak - 1 : peak + 2]  # (3, W): the main lobe
    assert (turned / turned[1]).angle().abs().max() < 1e-3
    drift = (turned[1, 1:] / turned[1, :-1]).angle().abs().max()  # radians a frame
    assert drift < 0.036


def test_known_phases_are_kept():
    """Guards against a block that does not continue the sound before it."""
    linear = torch.rand(1, 1025, 6)
    known = torch.zeros(1, 1025, 6, dtype=torch.complex64)
    known[:, :, :2] = torch.polar(torch.ones(1, 1025, 2), torch.rand(1, 1025, 2))
    found = advancing_phases(linear, known)
    torch.testing.assert_close(found[:, :, :2], known[:, :, :2])
    torch.testing.assert_close(found.abs(), torch.ones(1, 1025, 6))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_stream_equals_the_whole(rate):
    """Guards against estimates that depend on where a stream is cut: the network sees frames before its block."""
    frontend = base_frontend(rate, griffin_lim_iterations=2)
    wav = resample(torch.from_numpy(note(3, 2 * RATE, RATE)).float()[None], RATE, rate)[None]
    x = frontend.encode(wav)
    whole = frontend.decode(x)
    for chunk in (1, 7):
        assert torch.equal(torch.cat(list(frontend.decode_stream(x.split(chunk, dim=2))), dim=2), whole)


def test_an_item_does_not_depend_on_its_batch():
    """Guards against phases or seams that are shared by the items; in float64, since iterations magnify rounding."""
    frontend = base_frontend(16000, griffin_lim_iterations=2)
    x = frontend.encode(torch.from_numpy(note(3, 32000, 16000)).float()[None, None]).double()
    pair = frontend.double().decode(torch.cat([x, x.flip(2)]))
    torch.testing.assert_close(pair[:1], frontend.decode(x), rtol=0, atol=1e-6)


def test_blocks_join_without_a_click():
    """Guards against a seam: where nothing sounds above 3 kHz, nothing may be heard there at the ends of blocks."""
    frontend = base_frontend(RATE)
    wav = harmonics(58.27, seconds=2.0)
    low = torch.fft.rfft(wav)
    low[..., 2 * 1500 :] = 0  # two seconds: bins of half a hertz
    wav = torch.fft.irfft(low, n=wav.shape[2])
    made = frontend.decode(frontend.encode(wav))[0]
    power = torch.stft(made, 256, 64, window=torch.hann_window(256), return_complex=True)[0].abs().square()
    high = 10 * power[18:].sum(0).clamp_min(1e-12).log10()  # above 3 kHz, every 64 samples
    block = 32 * HOP // 64
    seams = [
        high[i * block - 6 : i * block + 6].max() - high[i * block + 12 : i * block + 60].max() for i in (1, 2, 3, 4)
    ]
    assert max(seams) < 6, seams


def test_silence_stays_silent():
    """Guards against NaN where bands have no power at all."""
    frontend = base_frontend(RATE)
    assert frontend.decode(frontend.encode(torch.zeros(1, 1, RATE))).abs().max() == 0


def test_a_saved_front_end_holds_its_network(tmp_path, monkeypatch):
    """Guards against a run that sounds different once the package ships other weights."""
    frontend = base_frontend(16000, griffin_lim_iterations=2)
    x = frontend.encode(torch.from_numpy(note(5, 16000, 16000)).float()[None, None])
    wanted = frontend.decode(x)
    save_frontend(frontend, tmp_path)
    monkeypatch.setattr(spectrum, "load_file", lambda path: {k: v + 0.1 for k, v in load_file(path).items()})
    assert not torch.equal(base_frontend(16000, griffin_lim_iterations=2).decode(x), wanted)
    assert torch.equal(load_frontend(tmp_path).decode(x), wanted)


def test_how_frames_are_decoded_does_not_matter_to_the_base():
    """Guards against a run with another number of iterations, or of an older version, that is not fine-tuned."""
    for settings in ({}, {"spectrum": "smooth"}, {"griffin_lim_iterations": 3}):
        assert is_base_frontend(base_frontend(24000, **settings))
    other = base_frontend(24000)
    other.mean += 1
    assert not is_base_frontend(other)


def test_frames_that_the_network_does_not_know_are_refused():
    """Guards against estimates from frames of other bands: the message must name settings that work."""
    with pytest.raises(ConfigError, match="frontend.num_features=77 frontend.hop_length=192 frontend.f_max") as error:
        Mel(Mel.Config(16000, spectrum="shipped"))
    assert "frontend.spectrum=smooth" in str(error.value)
    num_features, hop_length, f_max = frames_at(16000)
    Mel(Mel.Config(16000, num_features, hop_length, f_max, spectrum="shipped"))


def test_the_network_sees_no_further_than_it_says():
    """Guards against a reach that is too short: the first frames of a block would depend on where it begins."""
    network = SpectrumNetwork().load_shipped()
    power = torch.rand(1, 100, 41).requires_grad_()
    network(power)[0, :, 20].sum().backward()
    seen = power.grad.abs().sum((0, 1)).nonzero().flatten()
    assert (int(seen[0]), int(seen[-1])) == (20 - spectrum.REACH, 20 + spectrum.REACH)
    assert OVERLAP * HOP == N_FFT


@pytest.mark.parametrize("stack", [1, 2])
def test_every_length_is_decoded(stack):
    """Guards against a last block that leaves nothing to fade from."""
    num_features, hop_length, f_max = frames_at(16000)
    frontend = Mel(Mel.Config(16000, num_features, hop_length, f_max, 1, "shipped", stack=stack)).eval()
    frontend.is_fitted.fill_(1)
    for num_frames in (1, 31, 32, 33, 34, 40, 41, 65, 66, 73):
        x = torch.zeros(1, num_features * stack, -(-num_frames // stack))
        assert frontend.decode(x).shape[2] == hop_length * stack * x.shape[2]


def test_a_front_end_leaves_random_numbers_alone():
    """Guards against weights of a model that depend on whether its front-end has a network."""
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    base_frontend(16000)
    assert torch.equal(torch.rand(3), wanted)
