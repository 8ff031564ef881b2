"""Cascades: stages that run in order, each of which is conditioned on what the one before generates.

    semantic    codes of the prompt, then new ones    p p p p x x x x
                                                      | | | | | | | |
    mel         frames of the prompt, then new ones   p p p p y y y y  -> sound

A stage is an ordinary model whose condition arrives while it is needed (`Arriving`): each frame that the last stage
draws asks the stage before for the codes that belong to it. So a stream is never more than a chunk behind its first
stage, and equals the whole.

Source: Borsos et al. 2022, AudioLM, a Language Modeling Approach to Audio Generation, section 3.3.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..frontends import Frontend
from ..models.stages import Alignment, Arriving
from ..spec import Spec
from .generate import stream
from .request import Request


def stage_seed(seed: int, distance: int) -> int:
    """Return the seed of an item in the stage `distance` stages before the last one, which draws with `seed` itself."""
    return int(np.random.SeedSequence([seed, distance]).generate_state(1, np.uint64)[0]) if distance else seed


def encoded(frontend: Frontend, request: Request, *more: Tensor) -> Request:
    """Replace the prompt of a request, a wav (1, N), by its codes or frames, followed by those of further wavs."""
    wavs = [wav for wav in (request.prompt, *more) if wav is not None]
    if not wavs:
        return request
    with torch.no_grad():
        codes = [frontend.encode(wav.reshape(1, 1, -1).to(frontend.device, frontend.dtype)) for wav in wavs]
    return replace(request, prompt=torch.cat(codes, dim=2))


def with_stages_before(request: Request, spec: Spec, num_frames: int) -> Request:
    """Add the codes of the stage before to the conditions of a request.

    Args:
        request: to a stage, its prompt encoded.
        spec: of the front-end of this stage.
        num_frames: its new frames.
    """
    before = request.before
    if before is None:
        return request
    alignment = Alignment(before.frontend.spec, spec)
    own = encoded(before.frontend, before.request, *(() if before.meaning is None else (before.meaning,)))
    known = 0 if own.prompt is None else own.prompt.shape[2]
    total = num_frames + (0 if request.prompt is None else request.prompt.shape[2])
    new = max(0, alignment.num_needed(total) - known)
    pieces = stream(before.model, new, with_stages_before(own, before.frontend.spec, new))
    arriving = Arriving(pieces, alignment, own.batch_size, total)
    return replace(request, conditions={**(request.conditions or {}), before.name: arriving}, before=None)
