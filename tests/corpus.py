"""Tiny corpora of made-up notes, and settings with which each front-end works on them in no time."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import write_wav

from audiogen.frontends import FRONTENDS, Frontend, load_frontend

RATE = 8000

#: Settings that make a front-end small; one that learns and is not named here fails, see `tiny_settings`.
TINY_FRONTENDS: dict[str, dict[str, Any]] = {
    "mulaw": {"sample_rate": RATE, "bits": 4},
    "mel": {"sample_rate": RATE, "num_features": 6, "hop_length": 64, "griffin_lim_iterations": 2},
    "melvq": {
        "sample_rate": RATE,
        "num_features": 6,
        "hop_length": 64,
        "griffin_lim_iterations": 2,
        "num_codebooks": 2,
        "codebook_size": 8,
    },
    "encodec": {"bandwidth": 1.5, "weights": "random"},
    "codec": {
        "weights": "fit",
        "sample_rate": RATE,
        "num_codebooks": 2,
        "codebook_size": 8,
        "hop_length": 64,
        "dim": 8,
        "latent_dim": 4,
        "fit_steps": 3,
        "batch_size": 2,
    },
    "bpe": {
        "num_merges": 4,
        "longest": 8,
        "base": {
            "kind": "melvq",
            "sample_rate": RATE,
            "num_features": 6,
            "hop_length": 64,
            "codebook_size": 8,
            "griffin_lim_iterations": 2,
        },
    },
    "semantic": {
        "encoder": "fit",
        "sample_rate": RATE,
        "codebook_size": 8,
        "dim": 8,
        "num_layers": 1,
        "num_heads": 2,
        "window": 2,
        "fit_steps": 3,
        "crop_frames": 16,
        "batch_size": 2,
    },
}

#: Front-ends whose codes or frames can be decoded to sound.
SOUNDING = [kind for kind, part in FRONTENDS.items() if part.decodes]


def tiny_settings(kind: str) -> dict[str, Any]:
    """The small settings of a registered front-end. One that learns nothing needs none but a low rate."""
    if kind in FRONTENDS and not FRONTENDS[kind].learned and kind not in TINY_FRONTENDS:
        return FRONTENDS[kind].at_rate({}, RATE)
    if kind not in TINY_FRONTENDS:
        pytest.fail(
            f"front-end {kind!r} is registered but has no small settings: add them to TINY_FRONTENDS of {__file__}",
            pytrace=False,
        )
    return TINY_FRONTENDS[kind]


#: What makes a mel front-end one with a vocoder.
TINY_VOCODER = {"dim": 8, "num_layers": 2, "steps": 2}


@cache
def tiny_frontend(kind: str, vocoder: bool = False) -> Frontend:
    """A front-end with small settings on the CPU, fitted once a process; `deepcopy` it to move it elsewhere."""
    frontend = load_frontend(kind, **tiny_settings(kind), **({"vocoder": TINY_VOCODER} if vocoder else {}))
    if not frontend.fitted:
        rate = frontend.spec.sample_rate
        frontend.fit([torch.from_numpy(note(seed, rate // 2, rate)).float()[None] for seed in range(6)])
    return frontend


def note(seed: int, num_samples: int, rate: int = RATE) -> np.ndarray:
    """A plucked tone in faint noise, (N,) in [-1, 1], another for each seed."""
    t = np.arange(num_samples) / rate
    tone = 0.3 * np.exp(-4 * t) * np.sin(2 * np.pi * (180 + 40 * (seed % 8)) * t)
    return tone + 0.01 * np.random.default_rng(seed).standard_normal(num_samples).clip(-4, 4)


def folder_of_notes(folder: Path, lengths: list[int], rate: int = RATE, seed: int = 0) -> Path:
    """Files note-00.wav, note-01.wav, ... of so many samples."""
    for number, length in enumerate(lengths):
        write_wav(folder / f"note-{number:02d}.wav", note(seed + number, length, rate), rate)
    return folder
