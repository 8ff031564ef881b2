"""Sound in a run's samples/ folder, each WAV with a .json beside it that says how to make it again."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .audio import read_audio, write_audio
from .errors import AudioReadError
from .files import atomic_write_json, sha256_file
from .frontends import Frontend
from .run import Run
from .sampling import Sampling, fresh_seeds

#: Items of one generated batch: bounds memory whatever `num` is asked for. Draws do not depend on it.
BATCH = 16


def write_sample(path: Path, wav: Tensor, sample_rate: int, kind: str, **about: Any) -> Path:
    """Writes a wav (1, N) and its .json.

    Args:
        kind: "original", "round-trip" or "generated".
        about: what is known of source, seed, sampling, prompt, prompt_seconds, step and checkpoint.
    """
    write_audio(path, wav.float().cpu(), sample_rate)
    keys = ("source", "seed", "sampling", "prompt", "prompt_seconds", "step", "checkpoint")
    atomic_write_json(path.with_suffix(".json"), {"kind": kind, **{key: about.get(key) for key in keys},
                                                  "seconds": wav.shape[-1] / sample_rate})
    return path


def write_round_trips(folder: Path, frontend: Frontend, sound: Sequence[tuple[str, Tensor]]) -> None:
    """Each (name, wav (1, N) at the front-end's rate) as it is and as the front-end gives it back."""
    rate = frontend.spec.sample_rate
    for i, (name, wav) in enumerate(sound):
        write_sample(folder / f"original-{i}.wav", wav, rate, "original", source=name)
        with torch.inference_mode():
            back = frontend.decode(frontend.encode(wav[None].to(frontend.device)))[0, :, :wav.shape[1]]
        write_sample(folder / f"round-trip-{i}.wav", back, rate, "round-trip", source=name)


def write_generated(folder: Path, run: Run, seconds: float, seeds: Sequence[int], sampling: Sampling = Sampling(),
                    prompt: tuple[str, Tensor] | None = None, prefix: str = "generated", weights: Path | None = None
                    ) -> Iterator[tuple[Path, int]]:
    """Generates one WAV a seed, folder/PREFIX-SEED.wav, and yields (path, seed) as they are written.

    Args:
        seconds: of new sound, beyond the prompt.
        prompt: (name, wav (1, N) at the run's rate) to go on from.
        weights: the file that holds the run's weights, model.safetensors of its folder unless they are others.
    """
    about = {"sampling": dataclasses.asdict(sampling), "step": run.step,
             "checkpoint": sha256_file(weights or run.folder / "model.safetensors")}
    if prompt is not None:
        about |= {"prompt": prompt[0], "prompt_seconds": prompt[1].shape[-1] / run.sample_rate}
    for first in range(0, len(seeds), BATCH):
        batch = list(seeds[first:first + BATCH])
        wavs = run.generate(seconds, seeds=batch, sampling=sampling, prompt=None if prompt is None else prompt[1])
        for seed, wav in zip(batch, wavs, strict=True):
            path = folder / f"{prefix}-{seed}.wav"
            yield write_sample(path, wav, run.sample_rate, "generated", seed=seed, **about), seed


def generate_files(run: Run, out: Path, seconds: float, num: int, prompt: Path | None = None,
                   sampling: Sampling = Sampling(), seed: int | None = None) -> Iterator[tuple[Path, int]]:
    """What `audiogen generate` does: `num` WAVs with seeds counting up from `seed`, or fresh ones."""
    seeds = fresh_seeds(num) if seed is None else [seed + i for i in range(num)]
    sound = None if prompt is None else (str(prompt), read_audio(prompt, run.sample_rate))
    if sound is not None and not sound[1].shape[1]:
        raise AudioReadError(f"{prompt}: too short, nothing is left of it at {run.sample_rate} Hz; give a longer one")
    return write_generated(out, run, seconds, seeds, sampling, sound, prefix="sample")
