"""Folders of made-up sound for tests, written with the standard library: the oracle of what reading them must give."""

import wave
from pathlib import Path

import numpy as np


def write_wav(path: Path, samples: np.ndarray, sample_rate: int = 8000) -> np.ndarray:
    """Writes samples (N,) or (N, C) in [-1, 1] with 16 bits -> what they are read as."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.clip(np.round(np.asarray(samples) * 2**15), -(2**15), 2**15 - 1).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if steps.ndim == 1 else steps.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(steps.tobytes())
    return (steps / 2**15).astype(np.float32)


def noise(seed: int, num_samples: int, loudness: float = 0.1) -> np.ndarray:
    """(N,) in [-1, 1], another for each seed."""
    return np.clip(np.random.default_rng(seed).standard_normal(num_samples) * loudness, -1, 1)


def folder_of_noise(folder: Path, lengths: list[int], sample_rate: int = 8000, seed: int = 0) -> Path:
    """Files 00.wav, 01.wav, ... of so many samples."""
    for number, length in enumerate(lengths):
        write_wav(folder / f"{number:02d}.wav", noise(seed + number, length), sample_rate)
    return folder
