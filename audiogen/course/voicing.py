"""Voiced or unvoiced: what the first lesson's network sees of a frame of sound, and what its answer is judged by."""

from collections.abc import Iterable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

FRAME_SECONDS, HOP_SECONDS = 0.040, 0.010  # a frame holds two periods of the lowest pitch and more
#: Hz: how often vocal folds swing, from low voices to high ones.
LOWEST_PITCH, HIGHEST_PITCH = 70, 400


def cut(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """(N,) -> frames (T, size) float64, each less its mean; T = 0 of a sound that is shorter than a frame."""
    size, hop_length = round(FRAME_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    if len(wav) < size:
        return np.zeros((0, size))
    frames = sliding_window_view(wav.astype(np.float64), size)[::hop_length]
    return frames - frames.mean(axis=1, keepdims=True)


def middles(num_frames: int, sample_rate: int) -> np.ndarray:
    """(T,) the sample in the middle of each frame of `cut`."""
    return round(FRAME_SECONDS * sample_rate) / 2 + round(HOP_SECONDS * sample_rate) * np.arange(num_frames)


def let_through(wav: np.ndarray, which: np.ndarray, sample_rate: int) -> np.ndarray:
    """(N,) -> (N,): what sounds in the frames (T,) that are True, the rest muted, with a fade of one hop between."""
    return wav * np.interp(np.arange(len(wav)), middles(len(which), sample_rate), which)


def sounding(frames: np.ndarray) -> np.ndarray:
    """(T, size) -> (T,) bool: at most 35 dB below the loudest of the frames, and above -60 dB of full scale."""
    level = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    return level > max(level.max(initial=-100) - 35, -60)


def spectral_features(frames: np.ndarray, sample_rate: int) -> np.ndarray:
    """Two numbers about the colour of each frame, neither of which depends on the order of its partials.

    Returns:
        (T, 2) dB: the flatness (geometric over arithmetic mean of the power spectrum: 0 for a flat one, below for one
        with peaks), and the power below 1 kHz over that above.
    """
    size = frames.shape[1]
    power = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2 + 1e-9
    low = np.fft.rfftfreq(size, 1 / sample_rate) < 1000
    flatness = np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)
    ratio = power[:, low].sum(axis=1) / (power[:, ~low].sum(axis=1) + 1e-9)
    return 10 * np.log10(np.stack([flatness, ratio], axis=1))


def periodicity(frames: np.ndarray, sample_rate: int) -> np.ndarray:
    """How well each frame equals itself one period later: the largest correlation over all periods of a voice.

    Source: Talkin 1995, A Robust Algorithm for Pitch Tracking (normalised cross-correlation).

    Returns:
        (T,) up to 1, whatever the loudness; 0 in silence.
    """
    squares, best = np.cumsum(frames**2, axis=1), np.full(len(frames), -1.0)
    for lag in range(max(1, sample_rate // HIGHEST_PITCH), sample_rate // LOWEST_PITCH + 1):
        products = np.einsum("ti,ti->t", frames[:, :-lag], frames[:, lag:])
        powers = squares[:, -lag - 1] * (squares[:, -1] - squares[:, lag - 1])
        best = np.maximum(best, products / np.sqrt(np.maximum(powers, 1e-24)))
    return best


def read_frames(wavs: Iterable[Tensor], sample_rate: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames of wavs (1, N) that sound, up to a number.

    Returns:
        Their spectral features (T, 2) and periodicity (T,).
    """
    features, repeats = [np.zeros((0, 2))], [np.zeros(0)]
    for wav in wavs:
        frames = cut(wav[0].numpy(), sample_rate)
        frames = frames[sounding(frames)]
        features.append(spectral_features(frames, sample_rate))
        repeats.append(periodicity(frames, sample_rate))
        if sum(map(len, repeats)) >= most:
            break
    return np.concatenate(features)[:most], np.concatenate(repeats)[:most]
