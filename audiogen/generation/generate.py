"""One loop from a model to codes or frames: draw a step, observe it, draw the next."""

import bisect
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import ConfigError
from ..models.sampling import Sampling, fresh_seeds, uniforms
from ..models.sequence_model import SequenceModel
from .engines import choose

log = logging.getLogger("audiogen")

#: Steps whose uniform numbers are made at once.
UNIFORMS_BLOCK = 1024


def generate(
    model: SequenceModel,
    num_frames: int,
    prompt: Tensor | None = None,
    batch_size: int = 1,
    sampling: Sampling = Sampling(),
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Draws `num_frames` frames after the prompt.

    Args:
        model: it is used in evaluation mode, on the device of its weights.
        num_frames: new frames, 0 or more.
        prompt: (B, C, P) codes or frames to go on from, or (1, C, P) for all of `batch_size` items.
        batch_size: items where no prompt says it.
        sampling: the filters.
        seeds: one an item; an item's draws depend on its own seed alone. None draws fresh ones, and logs them.

    Returns:
        (B, C, P + num_frames), beginning with the prompt; its attribute `seeds` is the list of seeds used.
    """
    prompt, seeds = _checked(model, num_frames, prompt, batch_size, seeds)
    result = torch.cat([prompt, *_frames(model, prompt, num_frames, sampling, seeds)], dim=2)
    result.seeds = seeds
    return result


def generate_until(
    model: SequenceModel,
    num_samples: int,
    frame_lengths: Callable[[Tensor], Tensor],
    num_frames: int,
    prompt: Tensor | None = None,
    batch_size: int = 1,
    sampling: Sampling = Sampling(),
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Draws frames of varying length until each item stands for so many samples, those of the prompt included.

    Args:
        num_samples: of each item, prompt and new frames together.
        frame_lengths: (B, C, T) -> (B, T), the samples that each frame stands for.
        num_frames: new frames that this can take at most.
        prompt, batch_size, sampling, seeds: as in `generate`.

    Returns:
        (B, C, T) beginning with the prompt, with its attribute `seeds`. An item ends with the frame that reaches
        `num_samples`; behind it are holes, so that it is what it would be alone, however long the others take.
    """
    prompt, seeds = _checked(model, num_frames, prompt, batch_size, seeds)
    result = torch.cat(
        list(stream_until(model, num_samples, frame_lengths, num_frames, prompt, batch_size, sampling, seeds)), dim=2
    )
    result.seeds = seeds
    return result


def stream_until(
    model: SequenceModel,
    num_samples: int,
    frame_lengths: Callable[[Tensor], Tensor],
    num_frames: int,
    prompt: Tensor | None = None,
    batch_size: int = 1,
    sampling: Sampling = Sampling(),
    seeds: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """The same as it goes, as `stream`."""
    reached = 0
    for piece in stream(model, num_frames, prompt, batch_size, sampling, seeds):
        lengths = frame_lengths(piece)  # (B, n)
        before = reached + lengths.cumsum(dim=1) - lengths
        yield piece.masked_fill((before >= num_samples)[:, None], model.hole)
        reached = reached + lengths.sum(dim=1, keepdim=True)  # (B, 1)
        if bool((reached >= num_samples).all()):
            return


def stream(
    model: SequenceModel,
    num_frames: int,
    prompt: Tensor | None = None,
    batch_size: int = 1,
    sampling: Sampling = Sampling(),
    seeds: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """The same as it goes: (B, C, n) pieces, the prompt first, then frames as soon as all their rows are drawn."""
    prompt, seeds = _checked(model, num_frames, prompt, batch_size, seeds)
    return itertools.chain([prompt], _frames(model, prompt, num_frames, sampling, seeds))


def _frames(
    model: SequenceModel, prompt: Tensor, num_frames: int, sampling: Sampling, seeds: Sequence[int]
) -> Iterator[Tensor]:
    """The frames after the prompt, (B, C, n) each. A step draws all rows, and those known before are put back:

    delay, K = 3, a prompt of 2 frames and 3 new ones

    p p x x x . .       p prompt, x drawn, . hole
    . p p x x x .       steps 0 and 1 are known whole and are observed as one chunk;
    . . p p x x x       from step 2 on each step is drawn, its known rows are kept
    """
    batch_size, num_rows, P = prompt.shape
    total = P + num_frames
    padded = torch.cat([prompt, prompt.new_full((batch_size, num_rows, num_frames), model.hole)], dim=2)
    seq, index = model.pattern.apply(padded, model.hole)  # (B, C, S), (K, S)
    steps = model.pattern.step_index(total).to(prompt.device)  # (K, T)
    last_step = steps.amax(dim=0).tolist()
    known = index < P  # of the prompt, or a hole
    unknown_steps = (~known).any(dim=0).nonzero()
    if not len(unknown_steps):
        return
    S, first, emitted = seq.shape[2], int(unknown_steps[0]), P
    with _evaluating(model), _bar(S - first) as bar:
        engine = choose(model, batch_size)
        engine.prefill(seq[:, :, :first])
        frames_at_once = int(engine.seconds_at_once * (model.spec.frame_rate or 0))
        at_once = max(1, frames_at_once * (model.pattern.num_steps(2) - model.pattern.num_steps(1)))
        for begin in range(first, S, UNIFORMS_BLOCK):
            end = min(begin + UNIFORMS_BLOCK, S)
            numbers = uniforms(seeds, begin, end, model.head.num_uniforms).to(prompt.device)
            for start in range(begin, end, at_once):
                stop = min(start + at_once, end)
                engine.decode(
                    seq[:, :, start:stop], known[:, start:stop], numbers[:, start - begin : stop - begin], sampling
                )
                bar.update(stop - start)
                whole = bisect.bisect_left(last_step, stop)  # frames whose last row is drawn
                if whole > emitted:
                    yield seq.gather(2, steps[:, emitted:whole].expand(batch_size, num_rows, -1))
                    emitted = whole


def _bar(steps: int) -> tqdm:
    """Of what takes longer than a moment, where the output is a terminal."""
    return tqdm(total=steps, unit="step", desc="generating", delay=2.0, disable=None, leave=False, dynamic_ncols=True)


@contextmanager
def _evaluating(model: SequenceModel) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _checked(
    model: SequenceModel, num_frames: int, prompt: Tensor | None, batch_size: int, seeds: Sequence[int] | None
) -> tuple[Tensor, list[int]]:
    """The prompt, one an item (of no frames if there is none), and the seeds."""
    if num_frames < 0:
        raise ConfigError(f"num_frames: must be 0 or more, got {num_frames}")
    empty = model.embed.empty(batch_size)
    prompt = empty if prompt is None else prompt.to(empty)
    if prompt.ndim != 3 or prompt.shape[1] != empty.shape[1]:
        raise ConfigError(
            f"prompt: expected shape (B, {empty.shape[1]}, P) from this model's front-end, got {tuple(prompt.shape)}"
        )
    model.embed.check(prompt)
    if prompt.shape[0] == 1:
        prompt = prompt.expand(batch_size, -1, -1)
    if seeds is None:
        seeds = fresh_seeds(prompt.shape[0])
        log.info("seeds drawn: %s", " ".join(map(str, seeds)))
    if len(seeds) != prompt.shape[0]:
        raise ConfigError(f"seeds: one an item is needed, {prompt.shape[0]} in all, got {len(seeds)}")
    return prompt, [int(seed) for seed in seeds]
