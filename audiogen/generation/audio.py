"""Generate sound with a front-end and a model of its codes: all at once, or as a stream of chunks."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..audio.limiter import Limiter, log_reductions
from ..audio.stereo import StereoImage, StereoLimiter
from ..errors import ConfigError
from ..frontends import Frontend
from ..models.sequence_model import SequenceModel
from .best import generate_best
from .cascade import encoded, with_stages_before
from .generate import generate, stream
from .request import Generation, Request, Until

#: Seconds of sound that a stream decodes at a time: less lowers the latency, more needs fewer calls.
SECONDS_AT_ONCE = 0.05
#: Maximum samples of all items generated at once: some GiB with codes and decoding. About 100 minutes of music at
#: 44.1 kHz, or 9 hours of speech at 8 kHz.
MAX_SAMPLES = 2**28
#: Maximum seconds of a stream: a day. Memory does not grow, but more is surely a typo, and no WAV holds it at 24 kHz.
MAX_STREAM_SECONDS = 86_400


def generate_sound(
    frontend: Frontend, model: SequenceModel, seconds: float, request: Request, image: StereoImage | None = None
) -> Generation:
    """Generate sound.

    Args:
        frontend: decodes what the model generates.
        model: a model of the front-end's codes or frames.
        seconds: seconds of new sound, after the prompt.
        request: its prompt is a wav (1, N), which every item continues. Codes of a variable rate end when the sound is
            long enough, regardless of the request's stop rule.
        image: the stereo image that the sound gets; None for mono.

    Returns:
        x (B, C, N) float32 in [-1, 1], C being 1 for mono and 2 for stereo, beginning with the prompt as encoded and
        decoded by the front-end, unless the request `renders` a meaning. A limiter keeps true peaks below -1 dBTP;
        `reductions` says by how much it turned each item down.

    Raises:
        ConfigError: the length is out of range, or the front-end only encodes.
        GenerationError: the model predicts NaN or infinity.
    """
    begin, end, num_frames, request = _measured(frontend, seconds, request, MAX_SAMPLES / request.batch_size)
    make, limiter = generate if request.best_of == 1 else generate_best, _limiter(frontend, image)
    codes = make(model, num_frames, request)
    with torch.no_grad():
        wav = frontend.decode(codes.x, limiter)[..., begin:end]
    return Generation(wav, codes.seeds, (end - begin,) * len(codes.seeds), tuple(limiter.reductions))


def stream_sound(
    frontend: Frontend, model: SequenceModel, seconds: float, request: Request, image: StereoImage | None = None
) -> Iterator[Tensor]:
    """Generate the same sound in chunks (B, C, n) of about `SECONDS_AT_ONCE`, each as soon as its codes are drawn.

    Memory does not grow with the length. Arguments are those of `generate_sound`. At the end, one line is logged if the
    limiter has turned peaks down.

    Raises:
        ConfigError: the length is out of range, the front-end can't decode a stream, or its rate varies and there is
            more than one item.
        GenerationError: the model predicts NaN or infinity.
    """
    if request.best_of > 1:
        raise ConfigError("best_of: a stream plays what is drawn first; leave it at 1")
    if frontend.spec.hop_length is None and request.batch_size != 1:
        raise ConfigError(f"num: codes of a variable rate stream one item at a time, not {request.batch_size}")
    most = MAX_STREAM_SECONDS * frontend.spec.sample_rate
    begin, end, num_frames, request = _measured(frontend, seconds, request, most)
    frame_rate = (frontend.base or frontend).spec.frame_rate  # of the front-end that makes the sound
    frames, limiter = stream(model, num_frames, request), _limiter(frontend, image)
    chunks = frontend.decode_stream(frames, max(1, int(SECONDS_AT_ONCE * frame_rate)), limiter)
    return _trimmed(begin, end, chunks, limiter)


def _limiter(frontend: Frontend, image: StereoImage | None) -> Limiter:
    rate = frontend.spec.sample_rate
    return Limiter(rate) if image is None else StereoLimiter(image, rate)


def _trimmed(begin: int, end: int, chunks: Iterator[Tensor], limiter: Limiter) -> Iterator[Tensor]:
    for chunk in chunks:
        if begin < chunk.shape[-1]:
            yield chunk[..., begin:end]
        begin, end = max(0, begin - chunk.shape[-1]), end - chunk.shape[-1]
        if end <= 0:
            break
    log_reductions(limiter.reductions)


def _measured(frontend: Frontend, seconds: float, request: Request, most: float) -> tuple[int, int, int, Request]:
    """Return the samples [begin, end) of each item, the maximum number of new frames, and the request to the model.

    Args:
        frontend: as in `generate_sound`.
        seconds: as in `generate_sound`.
        request: as in `generate_sound`.
        most: maximum number of samples of each item.
    """
    frontend.check_decodes()
    rate, wav = frontend.spec.sample_rate, request.prompt
    given = 0 if wav is None else wav.shape[-1]
    if not 0 < seconds < math.inf:
        raise ConfigError(f"seconds: must be above 0, got {seconds}")
    if seconds * rate + given > most:
        items = f" for each of {request.batch_size} items" if request.batch_size > 1 else ""
        raise ConfigError(
            f"seconds: must be {most / rate:,.0f} or less{items}, including the prompt, got {seconds:g}; choose fewer, "
            "or a stream (--stream), which may be a day long"
        )
    new = max(1, round(seconds * rate))
    begin = given if request.renders else 0
    num_frames, request = frontend.num_frames(new), encoded(frontend, request)
    if frontend.spec.hop_length is None:
        request = replace(request, until=Until(given + new, frontend.frame_lengths))
    return begin, given + new, num_frames, with_stages_before(request, frontend.spec, num_frames)
