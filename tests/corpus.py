"""Tiny corpora of made-up notes, and settings with which each front-end works on them in no time."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import write_wav

from audiogen.backbones import BACKBONES
from audiogen.data import Crops, EncodedCache, Sequences, scan, split
from audiogen.frontends import FRONTENDS, Frontend, load_frontend
from audiogen.model import SequenceModel
from audiogen.patterns import PATTERNS
from audiogen.spec import TokenSpec

RATE = 8000

#: Settings of each front-end that make it small; a registered one without an entry fails, see `tiny_settings`.
TINY_FRONTENDS: dict[str, dict[str, Any]] = {
    "mulaw": {"sample_rate": RATE, "bits": 4},
    "mel": {"sample_rate": RATE, "num_features": 6, "hop_length": 64, "griffin_lim_iterations": 2},
    "melvq": {"sample_rate": RATE, "num_features": 6, "hop_length": 64, "griffin_lim_iterations": 2,
              "num_codebooks": 2, "codebook_size": 8},
    "encodec": {"bandwidth": 1.5, "weights": "random"},
    "codec": {"sample_rate": RATE, "num_codebooks": 2, "codebook_size": 8, "strides": (8, 8), "channels": 2, "dim": 4,
              "fit_steps": 3, "batch_size": 2},
}


def tiny_settings(kind: str) -> dict[str, Any]:
    """The small settings of a registered front-end."""
    if kind not in TINY_FRONTENDS:
        pytest.fail(f"front-end {kind!r} is registered but has no small settings: add it to TINY_FRONTENDS of {__file__}",
                    pytrace=False)
    return TINY_FRONTENDS[kind]


@cache
def tiny_frontend(kind: str) -> Frontend:
    """A front-end with small settings on the CPU, fitted once a process; `deepcopy` it to move it elsewhere."""
    frontend = load_frontend(kind, **tiny_settings(kind))
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


class Walks:
    """Batches for the training loop without a corpus: K rows of codes, each 1, 2 or 3 further than the one before (of
    `size`), and so log2(3) bits a code once that is learned. A function of the step alone, as `Crops` are."""

    def __init__(self, size: int = 8, num_rows: int = 1, batch_size: int = 4, num_frames: int = 24):
        self.spec = TokenSpec(RATE, 1, num_rows, size)
        self.batch_size, self.num_frames = batch_size, num_frames

    def batch(self, step: int) -> tuple[torch.Tensor, list[list[str]]]:
        generator = torch.Generator().manual_seed(step)
        moves = torch.randint(1, 4, (self.batch_size, self.spec.num_codebooks, self.num_frames), generator=generator)
        return moves.cumsum(dim=2) % self.spec.codebook_size, [[f"walk-{step}-{i}"] for i in range(self.batch_size)]

    def loader(self, start: int = 0, stop: int | None = None, num_workers: int = 0):
        while stop is None or start < stop:
            yield self.batch(start)
            start += 1

    def held_out(self) -> list[torch.Tensor]:
        return list(self.batch(1_000_000)[0])

    def model(self, kind: str = "bigram", pattern: str = "parallel", **settings: Any) -> SequenceModel:
        """A small model of these codes; its weights follow torch's seed."""
        small = {"bigram": {"dim": 16}, "gpt": {"dim": 16, "num_layers": 2, "num_heads": 2, "window": 8}}
        backbone = BACKBONES[kind](BACKBONES[kind].Config(**small.get(kind, {}), **settings))
        return SequenceModel(self.spec, backbone, PATTERNS[pattern](self.spec.num_rows))


def encoded(folder: Path, frontend: Frontend, out: Path, num_frames: int = 32) -> tuple[Crops, Sequences]:
    """Training crops, and held-out sequences, of a folder."""
    cache = EncodedCache.build(scan(folder), frontend, out, progress=False)
    sides = split(cache.index, 0.25)
    return Crops(cache, sides.train, num_frames, batch_size=4), Sequences(cache, sides.held_out)
