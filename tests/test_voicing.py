"""What the first lesson measures of a frame of sound, beside closed forms."""

import numpy as np
import pytest
import torch

from audiogen.course.voicing import cut, let_through, middles, periodicity, read_frames, sounding, spectral_features

RATES = 8000, 16000, 22050


def buzz(pitch, rate, seconds=0.5):
    """Ten partials of one loudness, those that fit below half the rate."""
    t = np.arange(int(seconds * rate)) / rate
    return 0.05 * sum(np.sin(2 * np.pi * pitch * k * t + k * k) for k in range(1, 11) if pitch * k < rate / 2)


def hiss(rate, seconds=20.0, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))


@pytest.mark.parametrize("rate", RATES)
def test_what_repeats_at_the_pitch_of_a_voice_is_periodic_and_noise_is_not(rate):
    """Guards against a range of lags that is off by one, leaves low or high voices out, or depends on the loudness."""
    for pitch in (71, 120, 233, 399):
        for loudness in (1.0, 0.01):
            assert periodicity(cut(loudness * buzz(pitch, rate), rate), rate).min() > 0.93, pitch
    noise = periodicity(cut(hiss(rate), rate), rate)
    assert np.median(noise) < 0.3 and noise.max() < 0.6
    assert periodicity(np.zeros((1, round(0.04 * rate))), rate) == 0


def test_periodicity_is_the_largest_correlation_over_the_lags():
    """Guards against a correlation over 1, which a norm of the whole frame gives at long lags."""
    frames = cut(np.concatenate([hiss(8000, 0.2), buzz(100, 8000, 0.2)]), 8000)
    slow = [
        max(x[:-lag] @ x[lag:] / np.sqrt((x[:-lag] @ x[:-lag]) * (x[lag:] @ x[lag:])) for lag in range(20, 115))
        for x in frames
    ]
    assert periodicity(frames, 8000) == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize("rate", RATES)
def test_features_of_white_noise_are_those_of_its_distribution(rate):
    """Guards against a wrong logarithm or band edge. A bin's power is exponential: its geometric mean is
    exp(-0.5772)."""
    flatness, ratio = spectral_features(cut(hiss(rate), rate), rate).mean(axis=0)
    assert flatness == pytest.approx(10 * np.log10(np.exp(-np.euler_gamma)), abs=0.1)
    assert ratio == pytest.approx(10 * np.log10(1000 / (rate / 2 - 1000)), abs=0.5)


def test_features_do_not_see_what_the_label_sees():
    """Guards against a feature that answers by itself: partials moved off the harmonic series look alike, and do not
    repeat."""
    t, rng = np.arange(4000) / 8000, np.random.default_rng(0)
    harmonic = 125.0 * np.arange(1, 32)  # on every fifth bin of the frame's spectrum
    moved = harmonic + 25 * rng.integers(-1, 2, 31)  # by one bin or none; those next to 1 kHz stay on their side
    moved[7] = harmonic[7]
    x, repeats = [], []
    for hertz in (harmonic, moved):
        phases = 2 * np.pi * (np.outer(hertz, t) + np.random.default_rng(1).uniform(size=(31, 1)))
        frames = cut(0.03 * np.sin(phases).sum(axis=0), 8000)
        x.append(spectral_features(frames, 8000).mean(axis=0))
        repeats.append(periodicity(frames, 8000).mean())
    assert x[0] == pytest.approx(x[1], abs=1.0)
    assert repeats[0] > 0.99 and repeats[1] < 0.6


def test_frames_lie_where_they_are_said_to():
    """Guards against a track beside its sound, and muted parts that are not the ones meant."""
    wav = np.zeros(8000)
    wav[4000] = 1.0
    frames = cut(wav, 8000)
    loudest = np.flatnonzero(sounding(frames))
    assert np.abs(middles(len(frames), 8000)[loudest] - 4000).max() <= 160 and len(loudest) == 4
    ones = np.ones(8000)
    which = middles(len(frames), 8000) > 4000
    half = let_through(ones, which, 8000)
    assert not half[:3920].any() and (half[4080:] == 1).all() and half.shape == ones.shape


def test_short_and_silent_sounds_have_no_frames():
    """Guards against an exception, or NaN, for a click of a few samples."""
    assert cut(np.ones(319), 8000).shape == (0, 320) and cut(np.ones(320), 8000).shape == (1, 320)
    x, repeats = read_frames([torch.zeros(1, 5), torch.full((1, 4000), 1e-5)], 8000, 10)
    assert x.shape == (0, 2) and repeats.shape == (0,)


def test_no_more_frames_are_read_than_asked_for():
    """Guards against an hour of reading for a lesson of minutes."""

    def endless():
        while True:
            yield torch.from_numpy(hiss(8000, 0.5)).float()[None]

    x, repeats = read_frames(endless(), 8000, 100)
    assert x.shape == (100, 2) and repeats.shape == (100,) and np.isfinite(x).all()
