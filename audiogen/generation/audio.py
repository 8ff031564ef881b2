"""From a front-end and a model of its codes to new sound: at once, or in chunks while it is made."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..frontends import Frontend
from ..models.sequence_model import SequenceModel
from .generate import generate, stream
from .request import Generation, Request, Until

#: Seconds of sound that are decoded at a time while it streams: less is heard sooner, more costs fewer calls.
SECONDS_AT_ONCE = 0.05
#: Samples of all items that are made at once: with the codes and what decoding takes, some GiB. About 100 minutes of
#: music at 44.1 kHz, or 9 hours of speech at 8 kHz.
MAX_SAMPLES = 2**28
#: Seconds of a stream: a day. Its memory does not grow; what is longer is a slip, and at 24 kHz no WAV holds it.
MAX_STREAM_SECONDS = 86_400


def generate_sound(frontend: Frontend, model: SequenceModel, seconds: float, request: Request) -> Generation:
    """Make new sound.

    Args:
        seconds: of new sound, beyond the prompt.
        request: its prompt is a wav (1, N), which all items go on from. Codes of a variable rate end where the sound is
            long enough, whatever its stop rule.

    Returns:
        x (B, 1, N) float32 in [-1, 1], beginning with the prompt as the front-end renders it.

    Raises:
        ConfigError: the length is out of range.
        GenerationError: what the model predicts is not a number.
    """
    length, num_frames, request = _measured(frontend, model, seconds, request, MAX_SAMPLES / request.batch_size)
    codes = generate(model, num_frames, request)
    with torch.no_grad():
        wav = frontend.decode(codes.x)[..., :length]
    return Generation(wav, codes.seeds, (length,) * len(codes.seeds))


def stream_sound(frontend: Frontend, model: SequenceModel, seconds: float, request: Request) -> Iterator[Tensor]:
    """Make the same in chunks (B, 1, n) of about `SECONDS_AT_ONCE`, each as soon as its codes are drawn.

    Memory does not grow with the length.

    Raises:
        ConfigError: the length is out of range; the front-end decodes only the whole; or its rate varies, and there is
            more than one item, which would get out of step.
    """
    if frontend.spec.hop_length is None and request.batch_size != 1:
        raise ConfigError(f"num: codes of a variable rate stream one item at a time, not {request.batch_size}")
    most = MAX_STREAM_SECONDS * frontend.spec.sample_rate
    length, num_frames, request = _measured(frontend, model, seconds, request, most)
    frame_rate = (frontend.base or frontend).spec.frame_rate  # of what decodes them in the end
    chunks = frontend.decode_stream(stream(model, num_frames, request), max(1, int(SECONDS_AT_ONCE * frame_rate)))
    return _trimmed(length, chunks)


def _trimmed(length: int, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    for chunk in chunks:
        yield chunk[..., :length]
        length -= chunk.shape[-1]
        if length <= 0:
            return


def _measured(
    frontend: Frontend, model: SequenceModel, seconds: float, request: Request, most: float
) -> tuple[int, int, Request]:
    """Samples of each item in all, new frames (at most), and what the model is asked for.

    Args:
        most: samples of each item.
    """
    rate, wav = frontend.spec.sample_rate, request.prompt
    given = 0 if wav is None else wav.shape[-1]
    if not 0 < seconds < math.inf:
        raise ConfigError(f"seconds: must be above 0, got {seconds}")
    if seconds * rate + given > most:
        items = f"{request.batch_size} items " if request.batch_size > 1 else ""
        raise ConfigError(
            f"seconds: {items}of at most {most / rate:,.0f} s can be made, the prompt included, got {seconds:g}; "
            "choose fewer, or a stream (--stream), which may be a day long"
        )
    new = max(1, round(seconds * rate))
    prompt = None if wav is None else frontend.encode(wav.reshape(1, 1, -1).to(model.bos.device))
    until = Until(given + new, frontend.frame_lengths) if frontend.spec.hop_length is None else request.until
    return given + new, frontend.num_frames(new), replace(request, prompt=prompt, until=until)
