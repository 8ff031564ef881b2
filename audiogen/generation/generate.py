"""One loop from a model to codes or frames: draw a step, observe it, draw the next."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import ConfigError, GenerationError
from ..models.sampling import uniforms
from ..models.sequence_model import SequenceModel
from .engines import choose
from .request import Generation, Request

#: Steps that are laid out at once, whose uniform numbers are made at once too: memory does not grow with the length.
WINDOW = 1024
#: Codes, or values of frames, that `generate` returns at most: 2 GiB of codes. A stream has no end.
MAX_VALUES = 2**28


def generate(model: SequenceModel, num_frames: int, request: Request) -> Generation:
    """Draw frames after the prompt.

    Args:
        model: used in evaluation mode, on the device of its weights.
        num_frames: new frames, 0 or more; with a stop rule, at most so many.
        request: the prompt, the seeds, the filters and all else.

    Returns:
        x (B, C, P + num_frames), or as far as the longest item goes by the stop rule, beginning with the prompt.

    Raises:
        ConfigError: the prompt does not fit the model, or the length is out of range.
        GenerationError: what the model predicts is not a number.
    """
    prompt = _prompt(model, num_frames, request)
    size = prompt.shape[0] * prompt.shape[1] * (prompt.shape[2] + num_frames)
    if size > MAX_VALUES:
        raise ConfigError(
            f"num_frames: {num_frames:,} frames of {len(prompt)} items are {size:,} values, and at most {MAX_VALUES:,} "
            "are generated at once; choose fewer, or a stream"
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
    """Draw the same in pieces (B, C, n): the prompt, then frames as soon as all their rows are drawn.

    Memory does not grow with `num_frames`.
    """
    return _pieces(model, _prompt(model, num_frames, request), num_frames, request)


def _pieces(model: SequenceModel, prompt: Tensor, num_frames: int, request: Request) -> Iterator[Tensor]:
    pieces = itertools.chain([prompt], _frames(model, prompt, num_frames, request))
    return pieces if request.until is None else request.until.cut(pieces, model.hole)


def _frames(model: SequenceModel, prompt: Tensor, num_frames: int, request: Request) -> Iterator[Tensor]:
    """Yield the frames after the prompt, (B, C, n) each. A step draws all rows, and those known before are put back:

    delay, K = 3, a prompt of 2 frames and 3 new ones

    p p x x x . .       p prompt, x drawn, . hole
    . p p x x x .       steps 0 and 1 are known whole and are observed as one chunk;
    . . p p x x x       from step 2 on each step is drawn, its known rows are kept

    Of the steps drawn, a window is kept that moves along, and of those before it what unfinished frames need.
    """
    if not num_frames:
        return
    pattern, hole, P = model.pattern, model.hole, prompt.shape[2]
    total, begun = P + num_frames, pattern.stride * P  # the step at which the first new frame begins
    num_steps, emitted = pattern.num_steps(total), P
    low, seq = begun, prompt[:, :, :0]  # steps [low, ...)
    with _evaluating(model), _bar(num_steps - begun) as bar:
        engine = choose(model, request)
        engine.prefill(pattern.apply(prompt, hole, 0, begun))
        at_once = max(1, int(engine.seconds_at_once * (model.spec.frame_rate or 0)) * pattern.stride)
        for begin in range(begun, num_steps, WINDOW):
            end = min(begin + WINDOW, num_steps)
            kept = seq[:, :, pattern.stride * emitted - low :]
            low, seq = begin - kept.shape[2], torch.cat([kept, pattern.apply(prompt, hole, begin, end)], dim=2)
            known = pattern.frame_index(total, begin, end, prompt.device) < P  # of the prompt, or a hole
            numbers = uniforms(request.seeds, begin, end, model.head.num_uniforms).to(prompt.device, non_blocking=True)
            for start in range(begin, end, at_once):
                stop = min(start + at_once, end)
                drawn = slice(start - begin, stop - begin)
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
    """Raise a GenerationError if one of the drawn (B, rows, n) is a hole, which a draw from no numbers is.

    Args:
        holes: (B, rows, n) bool.
        steps: (rows, n) at which they were drawn.
    """
    if bool(holes.any()):
        step = int(steps[holes.any(dim=0)].min())
        raise GenerationError(
            f"step {step}: what the model predicts is not a number (NaN or infinite), so nothing can be drawn; its "
            "weights have run away: train it anew with a lower training.learning_rate"
        )


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


def _prompt(model: SequenceModel, num_frames: int, request: Request) -> Tensor:
    """Check the length and the prompt -> the prompt of each item, (B, C, P), of no frames if there is none."""
    if num_frames < 0:
        raise ConfigError(f"num_frames: must be 0 or more, got {num_frames}")
    empty = model.embed.empty(request.batch_size)
    prompt = empty if request.prompt is None else request.prompt.to(empty)
    if prompt.ndim != 3 or prompt.shape[1] != empty.shape[1]:
        raise ConfigError(
            f"prompt: expected shape (B, {empty.shape[1]}, P) from this model's front-end, got {tuple(prompt.shape)}"
        )
    model.embed.check(prompt)
    total = prompt.shape[2] + num_frames
    for name, values in (request.conditions or {}).items():
        if values.shape[2] != 1 and values.shape[2] < total:
            raise ConfigError(
                f"conditions: {name} has {values.shape[2]:,} frames, and {total:,} are generated, the prompt included; "
                "give as many, or one for all"
            )
    return prompt.expand(request.batch_size, -1, -1)
