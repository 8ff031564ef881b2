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
from ..errors import AudioReadError, ConfigError
from ..frontends import Frontend
from ..generation.audio import MAX_SAMPLES
from ..generation.request import Request, choose_seeds
from ..models.sampling import Sampling
from ..runs.run import Run
from ..utils.files import atomic_write_json, sha256_file

#: Items of one generated batch: bounds memory whatever `num` is asked for. Draws do not depend on it.
BATCH = 16
#: WAVs of one command: more files in a folder are a slip.
MAX_FILES = 1_000_000


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
    about, name, wav = None, *(prompt or (None, None))
    samples = seconds * run.sample_rate + (0 if wav is None else wav.shape[-1])  # of an item
    size = max(1, min(BATCH, int(MAX_SAMPLES / max(1.0, samples))))
    for first in range(0, len(seeds), size):
        request = run.request(seeds=seeds[first : first + size], sampling=sampling, prompt=wav)
        about = about or _about(run, request, name, weights)
        made = run.generate_request(seconds, request)
        for seed, sound in zip(made.seeds, made.x, strict=True):
            path = folder / f"{prefix}-{seed}.wav"
            yield write_sample(path, sound, run.sample_rate, "generated", seed=seed, **about), seed


def generate_files(
    run: Run,
    out: Path,
    seconds: float,
    num: int,
    prompt: Path | None = None,
    sampling: Sampling = Sampling(),
    seed: int | None = None,
) -> Iterator[tuple[Path, int]]:
    """Do what `audiogen generate` does: write `num` WAVs with seeds counting up from `seed`, or from a fresh one."""
    seeds = _seeds_of_files(num, seed)
    return write_generated(out, run, seconds, seeds, sampling, _read_prompt(run, prompt), prefix="sample")


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
    """Do what `audiogen generate --stream` does: the same WAVs one after the other, each growing while it is made."""
    seeds = _seeds_of_files(num, seed)
    about, name, wav = None, *(_read_prompt(run, prompt) or (None, None))
    for used in seeds:
        began, path, first = time.perf_counter(), out / f"sample-{used}.wav", None
        request = run.request(seeds=[used], sampling=sampling, prompt=wav)
        chunks = run.stream_request(seconds, request)

        def timed(chunks=chunks) -> Iterator[Tensor]:
            nonlocal first
            for chunk in chunks:
                first = first or time.perf_counter()
                yield chunk

        made = write_chunks(path, timed(), run.sample_rate) / run.sample_rate
        took = time.perf_counter() - began
        about = about or _about(run, request, name)
        _write_about(path, made, "generated", seed=used, **about)
        yield Streamed(path, used, first - began, made / took)


def _seeds_of_files(num: int, seed: int | None) -> range:
    """One per file. Raises a ConfigError, before anything is written, if there are too many or one is out of range."""
    if num > MAX_FILES:
        raise ConfigError(f"num: must be {MAX_FILES:,} or less, got {num:,}")
    return choose_seeds(num, seed)


def _read_prompt(run: Run, prompt: Path | None) -> tuple[str, Tensor] | None:
    if prompt is None:
        return None
    sound = read_audio(prompt, run.sample_rate)
    if not sound.shape[1]:
        raise AudioReadError(f"{prompt}: too short, nothing is left of it at {run.sample_rate} Hz; give a longer one")
    return str(prompt), sound


def _about(run: Run, request: Request, prompt: str | None, weights: Path | None = None) -> dict[str, Any]:
    """What is known of all sound that is made with one set of weights.

    Args:
        prompt: the name of the request's prompt.
    """
    about = {
        "sampling": dataclasses.asdict(request.sampling),
        "precision": request.precision,
        "step": run.step,
        "checkpoint": sha256_file(weights or run.folder / "model.safetensors"),
    }
    if request.prompt is not None:
        about |= {"prompt": prompt, "prompt_seconds": request.prompt.shape[-1] / run.sample_rate}
    return about
