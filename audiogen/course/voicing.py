"""Voiced or unvoiced: the inputs of the first lesson's network, and the criterion its answers are compared with."""

from collections.abc import Iterable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

FRAME_SECONDS, HOP_SECONDS = 0.040, 0.010  # a frame is longer than two periods of the lowest pitch
#: Range of the pitch of voices in Hz.
LOWEST_PITCH, HIGHEST_PITCH = 70, 400


def cut(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cut a wav (N,) into frames (T, size) float64 and subtract their means; T is 0 if it is shorter than a frame."""
    size, hop_length = round(FRAME_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    if len(wav) < size:
        return np.zeros((0, size))
    frames = sliding_window_view(wav.astype(np.float64), size)[::hop_length]
    return frames - frames.mean(axis=1, keepdims=True)


def middles(num_frames: int, sample_rate: int) -> np.ndarray:
    """Return the sample in the middle of each frame of `cut`: (T,)."""
    return round(FRAME_SECONDS * sample_rate) / 2 + round(HOP_SECONDS * sample_rate) * np.arange(num_frames)


def let_through(wav: np.ndarray, which: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mute a wav (N,) outside the frames where `which` (T,) is True, with fades of one hop: (N,)."""
    return wav * np.interp(np.arange(len(wav)), middles(len(which), sample_rate), which)


def sounding(frames: np.ndarray) -> np.ndarray:
    """Return which frames (T, size) are within 35 dB of the loudest one and above -60 dBFS: (T,) bool."""
    level = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    return level > max(level.max(initial=-100) - 35, -60)


def spectral_features(frames: np.ndarray, sample_rate: int) -> np.ndarray:
    """Compute two features of the timbre of each frame (T, size), neither of which depends on periodicity.

    Returns:
        (T, 2) in dB: the flatness (geometric over arithmetic mean of the power spectrum: 0 if flat, negative with
        peaks), and the ratio of the power below 1 kHz to that above.
    """
    size = frames.shape[1]
    power = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2 + 1e-9
    low = np.fft.rfftfreq(size, 1 / sample_rate) < 1000
    flatness = np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)
    ratio = power[:, low].sum(axis=1) / (power[:, ~low].sum(axis=1) + 1e-9)
    return 10 * np.log10(np.stack([flatness, ratio], axis=1))


def periodicity(frames: np.ndarray, sample_rate: int) -> np.ndarray:
    """Compute the periodicity of each frame (T, size): its largest autocorrelation over all periods of voices.

    Source: Talkin 1995, A Robust Algorithm for Pitch Tracking (normalised cross-correlation).

    Returns:
        (T,), at most 1, independent of loudness; 0 for silence.
    """
    squares, best = np.cumsum(frames**2, axis=1), np.full(len(frames), -1.0)
    for lag in range(max(1, sample_rate // HIGHEST_PITCH), sample_rate // LOWEST_PITCH + 1):
        products = np.einsum("ti,ti->t", frames[:, :-lag], frames[:, lag:])
        powers = squares[:, -lag - 1] * (squares[:, -1] - squares[:, lag - 1])
        best = np.maximum(best, products / np.sqrt(np.maximum(powers, 1e-24)))
    return best


def read_frames(wavs: Iterable[Tensor], sample_rate: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the features of the non-silent frames of wavs (1, N).

    Args:
        wavs: (1, N) each.
        sample_rate: Hz.
        most: maximum number of frames.

    Returns:
        Spectral features (T, 2) and periodicity (T,).
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
