"""The generation loop: draw a step, observe it, draw the next."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import ConfigError, GenerationError
from ..models.conditioning import AskedConditions
from ..models.sampling import uniforms
from ..models.sequence_model import SequenceModel
from .engines import Engine, choose
from .request import Generation, Request

#: Steps laid out at a time, with their uniform numbers, so that memory does not grow with the length.
WINDOW = 1024
#: Maximum number of values (codes, or real values of frames) that `generate` returns: 2 GiB of codes.
MAX_VALUES = 2**28


def generate(model: SequenceModel, num_frames: int, request: Request) -> Generation:
    """Generate frames after the prompt.

    Args:
        model: runs in evaluation mode, on the device of its weights.
        num_frames: number of new frames, 0 or more; with a stop rule, their maximum.
        request: prompt, seeds, sampling and so on.

    Returns:
        x (B, C, P + num_frames), beginning with the prompt; with a stop rule, up to the end of the longest item.

    Raises:
        ConfigError: the prompt does not fit the model, or the length is out of range.
        GenerationError: the model predicts NaN or infinity.
    """
    prompt = _prompt(model, num_frames, request)
    size = prompt.shape[0] * prompt.shape[1] * (prompt.shape[2] + num_frames)
    if size > MAX_VALUES:
        raise ConfigError(
            f"num_frames: {num_frames:,} frames of {len(prompt)} items are {size:,} values, more than the limit of "
            f"{MAX_VALUES:,}; choose fewer, or a stream"
        )
    x, filled = prompt.new_empty(*prompt.shape[:2], prompt.shape[2] + num_frames), 0
    for piece in _pieces(model, prompt, num_frames, request):
        x[:, :, filled : filled + piece.shape[2]] = piece
        filled += piece.shape[2]
    if filled < x.shape[2]:
        x = x[:, :, :filled].clone()
    lengths = (~model.embed.is_hole(x)).all(dim=1).sum(dim=1)
    return Generation(x, tuple(request.seeds), tuple(lengths.tolist()))


def stream(model: SequenceModel, num_frames: int, request: Request) -> Iterator[Tensor]:
    """Generate the same frames in pieces (B, C, n): first the prompt, then frames as soon as they are complete.

    Memory does not grow with `num_frames`. Arguments and errors are those of `generate`.
    """
    return _pieces(model, _prompt(model, num_frames, request), num_frames, request)


def _pieces(model: SequenceModel, prompt: Tensor, num_frames: int, request: Request) -> Iterator[Tensor]:
    pieces = itertools.chain([prompt], _frames(model, prompt, num_frames, request))
    return pieces if request.until is None else request.until.cut(pieces, model.hole)


def _frames(model: SequenceModel, prompt: Tensor, num_frames: int, request: Request) -> Iterator[Tensor]:
    """Yield the frames after the prompt in pieces (B, C, n).

    Each step draws all rows, and rows that are already known keep their values:

        delay, K = 3, a prompt of 2 frames and 3 new ones

        p p x x x . .       p prompt, x drawn, . hole
        . p p x x x .       steps 0 and 1 are known completely and are observed as one chunk;
        . . p p x x x       every step from 2 on is drawn, except for its known rows

    Steps are kept in a moving window, with those before it that unfinished frames still need.
    """
    if not num_frames:
        return
    pattern, hole, P = model.pattern, model.hole, prompt.shape[2]
    total, begun = P + num_frames, pattern.stride * P  # the step at which the first new frame begins
    num_steps, emitted = pattern.num_steps(total), P
    low, seq = begun, prompt[:, :, :0]  # steps [low, ...)
    with evaluating(model), _bar(num_steps - begun) as bar:
        engine = choose(model, replace(request, conditions=extended(request.conditions, total)))
        engine.prefill(pattern.apply(prompt, hole, 0, begun))
        # Conditions change at the same frames in every engine.
        seconds_at_once = engine.seconds_at_once if request.changes is None else Engine.seconds_at_once
        at_once = max(1, int(seconds_at_once * (model.spec.frame_rate or 0))) * pattern.stride
        for begin in range(begun, num_steps, WINDOW):
            end = min(begin + WINDOW, num_steps)
            kept = seq[:, :, pattern.stride * emitted - low :]
            low, seq = begin - kept.shape[2], torch.cat([kept, pattern.apply(prompt, hole, begin, end)], dim=2)
            known = pattern.frame_index(total, begin, end, prompt.device) < P  # prompt or hole
            numbers = uniforms(request.seeds, begin, end, model.head.num_uniforms).to(prompt.device, non_blocking=True)
            if begin == 0:
                numbers[:, 0] = model.head.at_start(numbers[:, 0])
            for start in range(begin, end, at_once):
                stop = min(start + at_once, end)
                if request.on_chunk is not None:
                    request.on_chunk()
                drawn = slice(start - begin, stop - begin)
                if request.changes is not None and start > begun:
                    following = next(request.changes, None)
                    if following is not None:
                        engine.change(extended(following, total))
                engine.decode(seq[:, :, start - low : stop - low], known[:, drawn], numbers[:, drawn])
                bar.update(stop - start)
                whole = min(pattern.num_whole_frames(stop), total)
                if whole > emitted:
                    steps = pattern.step_index(emitted, whole, prompt.device)  # (K, n)
                    piece = seq.gather(2, (steps - low).expand(*seq.shape[:2], -1))
                    _check_drawn(model.embed.is_hole(piece), steps)
                    yield piece
                    emitted = whole


def _check_drawn(holes: Tensor, steps: Tensor) -> None:
    """Check that no drawn value is a hole, which is what a draw from NaN or infinity gives.

    Args:
        holes: (B, rows, n) bool.
        steps: (rows, n), the step at which each was drawn.

    Raises:
        GenerationError: one is a hole.
    """
    if bool(holes.any()):
        step = int(steps[holes.any(dim=0)].min())
        raise GenerationError(
            f"step {step}: the model's prediction is not a number (NaN or infinity), since its weights have diverged; "
            "train again with a lower training.learning_rate"
        )


def _bar(steps: int) -> tqdm:
    """Return a progress bar that is shown on terminals only, after two seconds."""
    return tqdm(total=steps, unit="step", desc="generating", delay=2.0, disable=None, leave=False, dynamic_ncols=True)


@contextmanager
def evaluating(model: SequenceModel) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def extended(conditions: AskedConditions | None, num_frames: int) -> AskedConditions:
    """Say nothing after the end of conditions of fewer frames: beyond their last frame, that one holds."""
    conditions = conditions or {}
    longer = {
        name: torch.cat([x, torch.full_like(x[:, :, :1], math.nan)], dim=2)
        for name, x in conditions.items()
        if isinstance(x, Tensor) and 1 < x.shape[2] < num_frames
    }
    return {**conditions, **longer}


def _prompt(model: SequenceModel, num_frames: int, request: Request) -> Tensor:
    """Check the length and the prompt, and return the prompt of each item, (B, C, P); P is 0 if there is none."""
    if num_frames < 0:
        raise ConfigError(f"num_frames: must be 0 or more, got {num_frames}")
    empty = model.embed.empty(request.batch_size)
    prompt = empty if request.prompt is None else request.prompt.to(empty)
    if prompt.ndim != 3 or prompt.shape[1] != empty.shape[1]:
        raise ConfigError(
            f"prompt: expected shape (B, {empty.shape[1]}, P) from this model's front-end, got {tuple(prompt.shape)}"
        )
    model.embed.check(prompt)
    return prompt.expand(request.batch_size, -1, -1)
