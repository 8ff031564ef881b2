"""Choose the sampling of a run: the temperature at which its sound is closest to the recordings."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..generation.generate import generate
from ..models.conditioning import Conditions
from ..models.sampling import Sampling
from ..runs.run import Run
from .distribution import Distance, kad, log_mel_statistics, mean_and_deviation

#: Candidates beside the temperatures of the head. Only codes also try cutting off the tail of improbable ones.
TOP_PS = (None, 0.95)
#: Number of generated clips, seconds per clip, seconds per window of the embedding, maximum number of windows of
#: recordings.
NUM_CLIPS, CLIP_SECONDS, WINDOW_SECONDS, ENOUGH = 16, 4.0, 1.0, 48
#: Steps per second above which generating the clips takes too long.
MOST_STEPS = 1000.0


@dataclass(frozen=True)
class Tried:
    """A sampling, and the distance of sound generated with it from the recordings."""

    sampling: Sampling
    distance: Distance


def choose_sampling(
    run: Run, held_out: Iterable[Tensor], training: Iterable[Tensor] = (), conditions: Conditions | None = None
) -> list[Tried]:
    """Generate with each candidate and measure its distance (KAD) from held-out recordings.

    Choose the temperature nearest to 1, that of plain draws, among the candidates within one standard error of the
    smallest distance.

    Args:
        run: a trained run; its own `sampling` is ignored.
        held_out: sequences (C, T) of recordings that the model was not trained on.
        training: sequences to use in addition if the held-out ones are too short.
        conditions: further conditions of the NUM_CLIPS clips of CLIP_SECONDS, such as the codes of an earlier stage.

    Returns:
        The candidates, the chosen one first; an empty list if there is too little sound to compare with, if the
        front-end only encodes, if the rate varies, or if a second takes more than MOST_STEPS steps.

    Source: Breiman et al. 1984, Classification and Regression Trees, section 3.4.3 (the one-standard-error rule).
    """
    spec = run.frontend.spec
    rate = spec.frame_rate
    if not run.frontend.decodes or rate is None or rate * run.model.pattern.stride > MOST_STEPS:
        return []
    reference = _embed(run, _enough(held_out, training, ENOUGH * WINDOW_SECONDS * rate))
    if len(reference) < 2:
        return []
    top_ps = TOP_PS if spec.discrete else (None,)
    tried = []
    for temperature, top_p in itertools.product(run.model.head.temperatures, top_ps):
        sampling = Sampling(temperature, top_p=top_p)
        request = run.request(seeds=range(NUM_CLIPS), sampling=sampling, seconds=CLIP_SECONDS)
        request = replace(request, conditions={**(request.conditions or {}), **(conditions or {})})
        made = generate(run.model, math.ceil(CLIP_SECONDS * rate), request).x
        tried.append(Tried(sampling, kad(reference, _embed(run, list(made)))))
    closest = min((one.distance for one in tried), key=lambda distance: distance.value)
    error = (closest.high - closest.low) / (2 * 1.96)  # half of a 95 % interval is 1.96 standard errors
    # The sort is stable, and plain draws were tried first.
    return sorted(tried, key=lambda one: one.distance.value > closest.value + error)


def _enough(held_out: Iterable[Tensor], training: Iterable[Tensor], num_frames: float) -> list[Tensor]:
    """Take held-out sequences (C, T), then training ones, up to `num_frames` frames in total."""
    taken, left = [], num_frames
    for sequences in (held_out, training):
        for x in sequences:
            if left <= 0:
                break
            taken.append(x[:, : math.ceil(left)])
            left -= x.shape[1]
    return taken


@torch.inference_mode()
def _embed(run: Run, sequences: Sequence[Tensor]) -> Tensor:
    """Embed sequences (C, T) by `mean_and_deviation` of log-mel bands over windows: (N, D).

    The frames of mel front-ends are used as they are, without decoding.
    """
    front = run.frontend
    items = [x[None].to(front.device) for x in sequences]
    found = [frames[0].cpu() for x in items if (frames := front.frames_of(x)) is not None]
    if not found:
        wavs = [front.decode(x)[0].cpu() for x in items]
        return log_mel_statistics(wavs, front.spec.sample_rate, WINDOW_SECONDS)
    frames = torch.cat(found, dim=1)  # (F, T)
    # A frame of the model may be several of these.
    rate = front.spec.frame_rate * frames.shape[1] / sum(x.shape[2] for x in items)
    length = round(WINDOW_SECONDS * rate)
    windows = frames[:, : frames.shape[1] // length * length].unflatten(1, (-1, length)).transpose(0, 1)
    return mean_and_deviation(windows)
