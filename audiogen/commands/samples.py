"""Sound in a run's samples/ folder, each WAV with a .json beside it that says how to make it again."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audio.io import read_audio, write_audio
from ..audio.wav_stream import write_chunks
from ..errors import AudioReadError
from ..frontends import Frontend
from ..generation.audio import choose_seeds
from ..models.sampling import Sampling
from ..runs.run import Run
from ..utils.files import atomic_write_json, sha256_file

#: Items of one generated batch: bounds memory whatever `num` is asked for. Draws do not depend on it.
BATCH = 16


def write_sample(path: Path, wav: Tensor, sample_rate: int, kind: str, **about: Any) -> Path:
    """Writes a wav (1, N) and its .json.

    Args:
        kind: "original", "round-trip" or "generated".
        about: what is known of source, seed, sampling, precision, prompt, prompt_seconds, step and checkpoint.
    """
    write_audio(path, wav.float().cpu(), sample_rate)
    return _write_about(path, wav.shape[-1] / sample_rate, kind, **about)


def _write_about(path: Path, seconds: float, kind: str, **about: Any) -> Path:
    keys = ("source", "seed", "sampling", "precision", "prompt", "prompt_seconds", "step", "checkpoint")
    atomic_write_json(
        path.with_suffix(".json"), {"kind": kind, **{key: about.get(key) for key in keys}, "seconds": seconds}
    )
    return path


def write_round_trips(folder: Path, frontend: Frontend, sound: Sequence[tuple[str, Tensor]]) -> None:
    """Each (name, wav (1, N) at the front-end's rate) as it is and as the front-end gives it back."""
    rate = frontend.spec.sample_rate
    for i, (name, wav) in enumerate(sound):
        write_sample(folder / f"original-{i}.wav", wav, rate, "original", source=name)
        with torch.inference_mode():
            back = frontend.decode(frontend.encode(wav[None].to(frontend.device)))[0, :, : wav.shape[1]]
        write_sample(folder / f"round-trip-{i}.wav", back, rate, "round-trip", source=name)


def write_generated(
    folder: Path,
    run: Run,
    seconds: float,
    seeds: Sequence[int],
    sampling: Sampling = Sampling(),
    prompt: tuple[str, Tensor] | None = None,
    prefix: str = "generated",
    weights: Path | None = None,
) -> Iterator[tuple[Path, int]]:
    """Generates one WAV a seed, folder/PREFIX-SEED.wav, and yields (path, seed) as they are written.

    Args:
        seconds: of new sound, beyond the prompt.
        prompt: (name, wav (1, N) at the run's rate) to go on from.
        weights: the file that holds the run's weights, model.safetensors of its folder unless they are others.
    """
    about = _about(run, sampling, prompt, weights)
    for first in range(0, len(seeds), BATCH):
        batch = list(seeds[first : first + BATCH])
        wavs = run.generate(seconds, seeds=batch, sampling=sampling, prompt=None if prompt is None else prompt[1])
        for seed, wav in zip(batch, wavs, strict=True):
            path = folder / f"{prefix}-{seed}.wav"
            yield write_sample(path, wav, run.sample_rate, "generated", seed=seed, **about), seed


def generate_files(
    run: Run,
    out: Path,
    seconds: float,
    num: int,
    prompt: Path | None = None,
    sampling: Sampling = Sampling(),
    seed: int | None = None,
) -> Iterator[tuple[Path, int]]:
    """What `audiogen generate` does: `num` WAVs with seeds counting up from `seed`, or fresh ones."""
    return write_generated(
        out, run, seconds, choose_seeds(num, seed, None), sampling, _read_prompt(run, prompt), prefix="sample"
    )


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A WAV that was written while it was made: `first_sound` in seconds from the beginning to its first chunk, and how
    many seconds of sound were made in a second on the whole, `real_times`."""

    path: Path
    seed: int
    first_sound: float
    real_times: float


def stream_files(
    run: Run,
    out: Path,
    seconds: float,
    num: int,
    prompt: Path | None = None,
    sampling: Sampling = Sampling(),
    seed: int | None = None,
) -> Iterator[Streamed]:
    """What `audiogen generate --stream` does: the same WAVs one after the other, each growing while it is made."""
    about, sound = None, _read_prompt(run, prompt)
    for used in choose_seeds(num, seed, None):
        began, path, times = time.perf_counter(), out / f"sample-{used}.wav", []
        chunks = run.stream(seconds, seeds=[used], sampling=sampling, prompt=None if sound is None else sound[1])

        def timed(chunks=chunks, times=times) -> Iterator[Tensor]:
            for chunk in chunks:
                times.append(time.perf_counter())
                yield chunk

        made = write_chunks(path, timed(), run.sample_rate) / run.sample_rate
        took = time.perf_counter() - began
        about = about or _about(run, sampling, sound)
        _write_about(path, made, "generated", seed=used, **about)
        yield Streamed(path, used, times[0] - began, made / took)


def _read_prompt(run: Run, prompt: Path | None) -> tuple[str, Tensor] | None:
    if prompt is None:
        return None
    sound = read_audio(prompt, run.sample_rate)
    if not sound.shape[1]:
        raise AudioReadError(f"{prompt}: too short, nothing is left of it at {run.sample_rate} Hz; give a longer one")
    return str(prompt), sound


def _about(
    run: Run, sampling: Sampling, prompt: tuple[str, Tensor] | None, weights: Path | None = None
) -> dict[str, Any]:
    """What is known of all sound that is made with one set of weights."""
    about = {
        "sampling": dataclasses.asdict(sampling),
        "precision": run.model.precision,
        "step": run.step,
        "checkpoint": sha256_file(weights or run.folder / "model.safetensors"),
    }
    if prompt is not None:
        about |= {"prompt": prompt[0], "prompt_seconds": prompt[1].shape[-1] / run.sample_rate}
    return about
