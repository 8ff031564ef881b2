"""Write samples as sound files, each with a .json file that says how to make it again."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..audio.coding import Coding
from ..audio.io import mono, read_audio, write_audio
from ..audio.limiter import log_reductions
from ..audio.wav_stream import write_chunks
from ..data import is_cache
from ..errors import AudioReadError, ConfigError
from ..evaluation.heard import decoded_training, judge_of, label_values
from ..evaluation.judges import Judge
from ..evaluation.tuning import MOST_STEPS
from ..frontends import Frontend
from ..generation.audio import MAX_SAMPLES
from ..generation.request import Request
from ..models.sampling import Sampling
from ..runs.folder import read_source
from ..runs.run import Run
from ..utils.files import atomic_write_json, sha256_file
from .options import seeds_of_files

log = logging.getLogger("audiogen")

#: Items generated at a time, which bounds memory. Draws do not depend on it.
BATCH = 16
#: What the .json says of sound with conditions: those asked for, how strongly they are followed, the number of draws of
#: which it is the best, the label that varies between takes, and what a judge hears; and of what is rendered, its file.
CONDITIONED = ("conditions", "guidance", "best_of", "varied", "heard", "meaning")
#: Takes: at most so many values of a label, so many of each, and so many seconds each. On the page, they are 9 MB at
#: 44.1 kHz.
MOST_VALUES, NUM_TAKES, TAKE_SECONDS = 12, 3, 2.0


def write_sample(path: Path, wav: Tensor, sample_rate: int, kind: str, bits: int | None = None, **about: Any) -> Path:
    """Write a wav (C, N) and its .json; return the path of the wav.

    Args:
        path: path of the wav.
        wav: (C, N).
        sample_rate: Hz.
        kind: "original", "round-trip", "generated" or "asked".
        bits: bits per sample; see `write_audio`.
        about: any of source, seed, sampling, precision, prompt, prompt_seconds, step, checkpoint, and `CONDITIONED`.
    """
    write_audio(path, wav.float().cpu(), sample_rate, bits=bits)
    return _write_about(path, wav.shape[-1] / sample_rate, kind, **about)


def _write_about(path: Path, seconds: float, kind: str, **about: Any) -> Path:
    keys = ("source", "seed", "sampling", "precision", "prompt", "prompt_seconds", "step", "checkpoint")
    asked = {key: about[key] for key in CONDITIONED if key in about}
    atomic_write_json(
        path.with_suffix(".json"), {"kind": kind, **{key: about.get(key) for key in keys}, **asked, "seconds": seconds}
    )
    return path


def write_round_trips(folder: Path, frontend: Frontend, sound: Sequence[tuple[str, Tensor]]) -> None:
    """Write each (name, wav (1, N) at the front-end's rate) unchanged and after encoding and decoding."""
    rate, reductions = frontend.spec.sample_rate, []
    for i, (name, wav) in enumerate(sound):
        write_sample(folder / f"original-{i}.wav", wav, rate, "original", source=name)
        limiter = frontend.limiter()
        with torch.inference_mode():
            back = frontend.decode(frontend.encode(wav[None].to(frontend.device)), limiter)[0, :, : wav.shape[1]]
        write_sample(folder / f"round-trip-{i}.wav", back, rate, "round-trip", source=name)
        reductions += [] if limiter is None else limiter.reductions
    log_reductions(reductions)


@dataclasses.dataclass(frozen=True)
class FileRequest:
    """What is asked of each file that is generated.

    Attributes:
        seconds: seconds of new sound, after the prompt; None for as long as a training file, to its end.
        prompt: a sound file to continue; None for none.
        prompt_seconds: how much of it to continue, from its end back; None for all.
        only_new: leave the prompt out of the file.
        sampling: temperature and filters, of all stages or by name of the stage.
        asked: `conditions` of `Run.generate`.
        guidance: of `Run.generate`.
        meaning: a sound file to render, for a run with stages.
        coding: format, which also ends the names, and bits per sample.
        best_of: of `Run.generate`.

    Raises:
        ConfigError: settings do not fit each other, or a duration is out of range.
    """

    seconds: float | None
    prompt: Path | None = None
    prompt_seconds: float | None = None
    only_new: bool = False
    sampling: Sampling | Mapping[str, Sampling] | None = None
    asked: Mapping[str, Any] | None = None
    guidance: float | None = None
    meaning: Path | None = None
    coding: Coding = Coding()
    best_of: int = 1

    def __post_init__(self) -> None:
        if self.seconds is None and (self.prompt is not None or self.meaning is not None):
            raise ConfigError("seconds: after a prompt, their number must be given")
        for name in ("prompt_seconds", "only_new"):
            if getattr(self, name) and self.prompt is None:
                raise ConfigError(f"--{name.replace('_', '-')}: there is no prompt; give --prompt FILE")
        if self.prompt_seconds is not None and not 0 < self.prompt_seconds < math.inf:
            raise ConfigError(f"--prompt-seconds: must be above 0, got {self.prompt_seconds}")

    def read(self, run: Run) -> "Sounds":
        """Read the prompt and the meaning.

        Raises:
            AudioReadError: a file can't be read, or is too short.
        """
        prompt, meaning = (_read_sound(run, path) for path in (self.prompt, self.meaning))
        if prompt is not None and self.prompt_seconds is not None:
            prompt = prompt[:, -max(1, round(self.prompt_seconds * run.sample_rate)) :]
        return Sounds(prompt, meaning)


class Sounds(NamedTuple):
    """The wavs (1, N) at the run's rate that a request names; None for none."""

    prompt: Tensor | None = None
    meaning: Tensor | None = None


def write_generated(
    folder: Path,
    run: Run,
    request: FileRequest,
    seeds: Sequence[int],
    sounds: Sounds | None = None,
    prefix: str = "generated",
    weights: Path | None = None,
) -> Iterator[tuple[Path, int, dict[str, str]]]:
    """Generate one file per seed, folder/PREFIX-SEED.wav, and yield (path, seed, what was asked) when it is written.

    With `best_of`, a seed is that of the first draw, whichever is kept.

    Args:
        folder: folder of the files.
        run: the run.
        request: what is asked of each.
        seeds: one per file.
        sounds: those that the request names; None for none.
        prefix: first part of the names.
        weights: file of the run's weights; by default model.safetensors in its folder.
    """
    about, reductions, sounds = None, [], sounds or Sounds()
    given = 0 if sounds.prompt is None else sounds.prompt.shape[-1]
    size = max(1, min(BATCH, int(MAX_SAMPLES / max(1.0, (request.seconds or 0) * run.sample_rate + given))))
    for first in range(0, len(seeds), size):
        some = seeds[first : first + size]
        if request.seconds is None:
            how = (request.sampling, request.asked, request.guidance, request.best_of)
            asked, lengths = run.request_with_end(some, *how)
            made = run.generate_request(max(lengths) / run.sample_rate, asked)
        else:
            asked = _asked(run, request, some, sounds)
            made = run.generate_request(request.seconds, asked)
            lengths = made.lengths
        about = about or _about(run, asked, request, weights)
        reductions += made.reductions
        skipped = _given(asked) if request.only_new else 0
        words = _words(run, request.asked, some)
        # The first of an item's draws chose the labels that are not asked for, so its seed makes the file again.
        for seed, whole, length, said in zip(some, made.x, lengths, words, strict=True):
            path, what = folder / f"{prefix}-{seed}.{request.coding.format}", {"conditions": said} if said else {}
            sound = whole[:, skipped:length]
            write_sample(path, sound, run.sample_rate, "generated", request.coding.bits, seed=seed, **about, **what)
            yield path, seed, said
    log_reductions(reductions)


def _asked(run: Run, request: FileRequest, seeds: Sequence[int], sounds: Sounds) -> Request:
    return run.request(
        seeds=seeds,
        sampling=request.sampling,
        prompt=sounds.prompt,
        conditions=request.asked,
        guidance=request.guidance,
        seconds=request.seconds,
        meaning=sounds.meaning,
        best_of=request.best_of,
    )


def write_takes(folder: Path, run: Run, judge: Judge) -> Iterator[tuple[Tensor, dict[str, str]]]:
    """Ask for each value of the run's first label, and yield the sounds (1, N) with what was asked for.

    The sounds of a take have the same seed and the same other conditions, so they differ by the label alone. If a
    second takes too many steps, there is only one take.

    Args:
        folder: folder of the files, asked-VALUE-SEED.wav, where VALUE is a number.
        run: a run with labels.
        judge: a judge of these labels, which hears each sound.
    """
    label, values = next(iter(judge.values.items()))
    values = values[:MOST_VALUES]
    steps = (run.frontend.spec.frame_rate or 0) * run.model.pattern.stride
    limit = min(TAKE_SECONDS, run.config.training.sample_seconds)
    about = None
    for seed in range(1 if steps > MOST_STEPS else NUM_TAKES):
        seeds, known = [seed] * len(values), run.ask(None, [seed])
        asked = {**(known.words[0] if known else {}), label: list(values)}
        if run.knows_ends:
            request, lengths = run.request_with_end(seeds, conditions=asked)
            limit = TAKE_SECONDS
        else:
            request, lengths = run.request(seeds=seeds, conditions=asked), [math.inf] * len(values)
        made = run.generate_request(min(limit, max(lengths) / run.sample_rate), request).x.cpu()
        about = about or _about(run, request)
        for place, (wav, length) in enumerate(zip(made, lengths, strict=True)):
            wav, words = wav[:, : int(min(length, wav.shape[1]))], {**asked, label: values[place]}
            facts = {"conditions": words, "varied": label, "heard": judge.hear(mono(wav))}
            name = f"asked-{place:02d}-{seed}.wav"
            write_sample(folder / name, wav, run.sample_rate, "asked", seed=seed, **about, **facts)
            yield mono(wav), words


def asked_like(run: Run, path: Path) -> tuple[dict[str, Any], float]:
    """Return the conditions of a recording and its duration in seconds: `audiogen generate --like`.

    Labels that the recording does not have are those that a classifier of the run's training files hears in it, if
    their codes are still there.

    Raises:
        AudioReadError: the file can't be read.
        ConfigError: the run was trained without conditions.
    """
    asked, wav = run.conditions_of(path), read_audio(path, run.sample_rate)
    unknown = [name for name in label_values(run) if asked[name] is None]
    if unknown and is_cache(read_source(run.folder)):
        heard = judge_of(run, decoded_training(run)).hear(wav)
        asked |= {name: heard[name] for name in unknown}
        log.info("to the classifier, %s sounds like %s", path, ", ".join(f"{name} {heard[name]}" for name in unknown))
    return asked, wav.shape[1] / run.sample_rate


def generate_files(
    run: Run, out: Path, request: FileRequest, num: int, seed: int | None = None
) -> Iterator[tuple[Path, int, dict[str, str]]]:
    """Generate `num` files with consecutive seeds, beginning with `seed` or a random one: `audiogen generate`."""
    seeds = seeds_of_files(num * request.best_of, seed)[:: request.best_of]
    return write_generated(out, run, request, seeds, request.read(run), "sample")


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A WAV that was written while it was generated.

    Attributes:
        path: path of the WAV.
        seed: its seed.
        first_sound: seconds until its first chunk.
        real_times: seconds of sound generated per second.
    """

    path: Path
    seed: int
    first_sound: float
    real_times: float
    asked: dict[str, str]


def stream_files(run: Run, out: Path, request: FileRequest, num: int, seed: int | None = None) -> Iterator[Streamed]:
    """Generate the same sound one by one, and write each WAV while it is generated: `audiogen generate --stream`.

    Raises:
        ConfigError: the coding is not a WAV, or the request has no duration; or as in `generate_files`.
    """
    if request.coding.format != "wav":
        raise ConfigError(
            f"--stream: writes WAVs, which play while they grow; for {request.coding.format} leave out --stream"
        )
    if request.seconds is None:
        raise ConfigError("--stream: a stream has no end of its own; give --seconds a number")
    about, sounds = None, request.read(run)
    for used in seeds_of_files(num, seed):
        began, path, first = time.perf_counter(), out / f"sample-{used}.wav", math.inf
        asked = _asked(run, request, [used], sounds)
        chunks, left_out = run.stream_request(request.seconds, asked), _given(asked) if request.only_new else 0

        def timed(chunks=chunks, skipped=left_out) -> Iterator[Tensor]:
            nonlocal first
            for chunk in chunks:
                first, kept = min(first, time.perf_counter()), chunk[..., skipped:]
                skipped = max(0, skipped - chunk.shape[-1])
                yield kept

        made = write_chunks(path, timed(), run.sample_rate, request.coding.bits) / run.sample_rate
        took = time.perf_counter() - began
        about = about or _about(run, asked, request)
        said = _words(run, request.asked, [used])[0]
        _write_about(path, made, "generated", seed=used, **about, **({"conditions": said} if said else {}))
        yield Streamed(path, used, first - began, made / took, said)


def _given(asked: Request) -> int:
    """Return the number of samples with which the sound of a request begins: those of its prompt."""
    return 0 if asked.prompt is None or asked.renders else asked.prompt.shape[-1]


def _words(run: Run, asked: Mapping[str, Any] | None, seeds: Sequence[int]) -> list[dict[str, str]]:
    """Return the conditions of each item in words; empty for a run without conditions."""
    found = run.ask(asked, seeds)
    return [{} for _ in seeds] if found is None else found.words


def _read_sound(run: Run, path: Path | None) -> Tensor | None:
    """Read a file as a prompt or meaning: a wav (1, N) at the run's rate; None for no file."""
    if path is None:
        return None
    sound = read_audio(path, run.sample_rate)
    if not sound.shape[1]:
        raise AudioReadError(f"{path}: too short: it has no sample at {run.sample_rate} Hz; give a longer one")
    return sound


def _about(run: Run, asked: Request, request: FileRequest | None = None, weights: Path | None = None) -> dict[str, Any]:
    """Return the metadata shared by all samples of one request.

    Args:
        run: the run.
        asked: what was asked of it.
        request: names the prompt and what is rendered; None if there are none.
        weights: file of the weights; by default model.safetensors of the run.
    """
    about = {
        "sampling": dataclasses.asdict(asked.sampling),
        "precision": asked.precision,
        "step": run.step,
        "checkpoint": sha256_file(weights or run.folder / "model.safetensors"),
    }
    if asked.conditions:
        about["guidance"] = asked.guidance
    if asked.best_of > 1:
        about["best_of"] = asked.best_of
    if request is not None and request.prompt is not None and asked.prompt is not None:
        seconds = 0.0 if request.only_new else _given(asked) / run.sample_rate
        about |= {"prompt": str(request.prompt), "prompt_seconds": seconds}
    if request is not None and request.meaning is not None:
        about["meaning"] = str(request.meaning)
    return about
