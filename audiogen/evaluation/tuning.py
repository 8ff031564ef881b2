"""Choose how a run draws: by which temperature its sound comes closest to the recordings."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..generation.generate import generate
from ..models.sampling import Sampling
from ..runs.run import Run
from .distribution import Distance, kad, log_mel_statistics, mean_and_deviation

#: A density is drawn with less noise, codes also without the tail of improbable ones.
TEMPERATURES, TOP_PS = (1.0, 0.9, 0.8, 0.7, 0.6), (None, 0.95)
#: Generated clips, seconds of each; seconds of a window, and windows of recordings that are enough.
NUM_CLIPS, CLIP_SECONDS, WINDOW_SECONDS, ENOUGH = 16, 4.0, 1.0, 48
#: Codes or frames per second above which trying takes too long.
MOST_STEPS = 1000.0


@dataclass(frozen=True)
class Tried:
    """A way to draw, and the distance of what it gives from the recordings."""

    sampling: Sampling
    distance: Distance


def choose_sampling(run: Run, held_out: Iterable[Tensor], training: Iterable[Tensor] = ()) -> list[Tried]:
    """Generate with each candidate and measure its distance (KAD) from held-out recordings.

    Of those that are within one standard error of the closest, the most diverse one is chosen: the highest temperature.

    Args:
        run: a trained run; its `sampling` is not looked at.
        held_out: sequences (C, T) of recordings that the model was not trained on.
        training: sequences that make up for too few of them.

    Returns:
        The candidates, the chosen one first; empty where there is too little sound to compare with, or where a second
        takes more than MOST_STEPS steps.

    Source: Breiman et al. 1984, Classification and Regression Trees, section 3.4.3 (the rule of one standard error).
    """
    spec = run.frontend.spec
    steps = None if spec.frame_rate is None else spec.frame_rate * run.model.pattern.stride
    if steps is None or steps > MOST_STEPS:
        return []
    reference = _embed(run, _enough(held_out, training, ENOUGH * WINDOW_SECONDS * spec.frame_rate))
    if len(reference) < 2:
        return []
    top_ps = TOP_PS if spec.discrete else (None,)
    tried = []
    for sampling in (Sampling(temperature, top_p=top_p) for temperature in TEMPERATURES for top_p in top_ps):
        request = run.request(seeds=range(NUM_CLIPS), sampling=sampling)
        made = generate(run.model, math.ceil(CLIP_SECONDS * spec.frame_rate), request).x
        tried.append(Tried(sampling, kad(reference, _embed(run, made))))
    closest = min((one.distance for one in tried), key=lambda distance: distance.value)
    error = (closest.high - closest.low) / (2 * 1.96)  # from an interval of 95 %
    return sorted(tried, key=lambda one: one.distance.value > closest.value + error)  # stable: by temperature


def _enough(held_out: Iterable[Tensor], training: Iterable[Tensor], num_frames: float) -> list[Tensor]:
    """Take held-out sequences (C, T), and training ones until there are so many frames."""
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

    A front-end of mel frames has these bands already, so nothing is decoded.
    """
    front = run.frontend
    frames_of = getattr(front, "frames_of", None)
    if frames_of is None:
        wavs = [front.decode(x[None].to(front.device))[0].cpu() for x in sequences]
        return log_mel_statistics(wavs, front.spec.sample_rate, WINDOW_SECONDS)
    frames = torch.cat([frames_of(x[None].to(front.device))[0].cpu() for x in sequences], dim=1)  # (F, T)
    length = round(WINDOW_SECONDS * front.spec.frame_rate)
    windows = frames[:, : frames.shape[1] // length * length].unflatten(1, (-1, length)).transpose(0, 1)
    return mean_and_deviation(windows)
