"""From a front-end and a model of its codes to new sound: at once, or as it comes."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from ..frontends import Frontend
from ..models.sampling import Sampling, fresh_seeds
from ..models.sequence_model import SequenceModel
from .generate import generate, generate_until, stream, stream_until

#: Seconds of sound that are decoded at a time while it streams: less is heard sooner, more costs fewer calls.
SECONDS_AT_ONCE = 0.05


def choose_seeds(num: int, seed: int | None, seeds: Sequence[int] | None) -> list[int]:
    """One an item: those given, or counting up from `seed`, or fresh ones."""
    if seeds is not None:
        return list(seeds)
    if num < 1:
        raise ConfigError(f"num: must be 1 or more, got {num}")
    return fresh_seeds(num) if seed is None else [seed + i for i in range(num)]


def generate_sound(
    frontend: Frontend,
    model: SequenceModel,
    seconds: float,
    seeds: Sequence[int],
    prompt: Tensor | None,
    sampling: Sampling,
) -> Tensor:
    """(num, 1, N), beginning with the prompt (1, N) as the front-end renders it; its attribute `seeds` says which."""
    length, num_frames, prompt = _measured(frontend, model, seconds, prompt)
    if frontend.spec.hop_length is None:
        codes = generate_until(model, length, frontend.frame_lengths, num_frames, prompt, len(seeds), sampling, seeds)
    else:
        codes = generate(model, num_frames, prompt, len(seeds), sampling, seeds)
    with torch.inference_mode():
        wav = frontend.decode(codes)[..., :length]
    wav = wav.clone()  # outside, so that the caller may change it
    wav.seeds = codes.seeds
    return wav


def stream_sound(
    frontend: Frontend,
    model: SequenceModel,
    seconds: float,
    seeds: Sequence[int],
    prompt: Tensor | None,
    sampling: Sampling,
) -> Iterator[Tensor]:
    """The same in chunks (num, 1, n) of about `SECONDS_AT_ONCE`, each as soon as its codes are drawn.

    Raises:
        ConfigError: the front-end decodes only the whole; or its rate varies, and there is more than one item, which
            would get out of step.
    """
    length, num_frames, prompt = _measured(frontend, model, seconds, prompt)
    if frontend.spec.hop_length is None and len(seeds) != 1:
        raise ConfigError(f"num: codes of a variable rate stream one item at a time, not {len(seeds)}")
    frame_rate = (frontend.base or frontend).spec.frame_rate  # of what decodes them in the end
    if frontend.spec.hop_length is None:
        codes = stream_until(model, length, frontend.frame_lengths, num_frames, prompt, len(seeds), sampling, seeds)
    else:
        codes = stream(model, num_frames, prompt, len(seeds), sampling, seeds)
    chunks = frontend.decode_stream(codes, max(1, int(SECONDS_AT_ONCE * frame_rate)))
    return _until(length, chunks)


def _until(length: int, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    for chunk in chunks:
        yield chunk[..., :length]
        length -= chunk.shape[-1]
        if length <= 0:
            return


def _measured(
    frontend: Frontend, model: SequenceModel, seconds: float, prompt: Tensor | None
) -> tuple[int, int, Tensor | None]:
    """Samples in all, new frames (at most), and the prompt encoded."""
    if not 0 < seconds < math.inf:
        raise ConfigError(f"seconds: must be above 0, got {seconds}")
    length = max(1, round(seconds * frontend.spec.sample_rate))
    num_frames = frontend.num_frames(length)
    if prompt is not None:
        prompt = prompt.reshape(1, 1, -1).to(model.bos.device)
        length += prompt.shape[-1]
        prompt = frontend.encode(prompt)
    return length, num_frames, prompt
