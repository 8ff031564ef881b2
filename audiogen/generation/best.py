"""Best of several: draw items several times, and keep those that say most clearly what was asked for."""

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..models.conditioning import Conditions
from ..models.sequence_model import SequenceModel
from .generate import WINDOW, evaluating, extended, generate
from .request import Generation, Request


def generate_best(model: SequenceModel, num_frames: int, request: Request) -> Generation:
    """Generate each item `best_of` times, with the seeds s, s + 1, ..., and keep the one with the most evidence.

    The evidence for the conditions c in what follows the prompt is log p(x | c) - log p(x | nothing), by the model
    itself, which thus is a classifier that needs no training. Where sounds begin and end is given on both sides.

    Returns:
        What `generate` returns for the seeds that are kept.

    Raises:
        ConfigError: nothing is asked for, items end by a stop rule, or as in `generate`.

    Source: Ho and Salimans 2022, Classifier-Free Diffusion Guidance, section 3.2 (the implicit classifier).
    """
    if request.until is not None:
        raise ConfigError("best_of: needs a front-end with a constant frame rate; leave it at 1")
    given, open_ = evident(model, request)
    best: Generation | None = None
    most = torch.full((request.batch_size,), -torch.inf, dtype=torch.float64)
    for number in range(request.best_of):
        seeds = tuple((seed + number) % 2**64 for seed in request.seeds)
        made = generate(model, num_frames, replace(request, seeds=seeds, best_of=1))
        found = evidence(model, made.x, given, open_, made.x.shape[2] - num_frames)
        better = found > most
        if best is None:
            best, better = made, torch.ones_like(better)
        most = torch.where(better, found, most)
        chosen = better.tolist()
        best = Generation(
            torch.where(better.to(made.x.device)[:, None, None], made.x, best.x),
            tuple(new if use else old for new, old, use in zip(made.seeds, best.seeds, chosen, strict=True)),
            tuple(new if use else old for new, old, use in zip(made.lengths, best.lengths, chosen, strict=True)),
        )
    assert best is not None
    return best


def evident(model: SequenceModel, request: Request) -> tuple[Conditions, Conditions]:
    """Return the conditions of a request for which there can be evidence, with and as those that are always given.

    Raises:
        ConfigError: nothing is asked for.
    """
    given = {name: x for name, x in (request.conditions or {}).items() if isinstance(x, Tensor)}
    parts = {} if model.conditioner is None else model.conditioner.parts
    open_ = {name: x for name, x in given.items() if parts[name].stays_open}
    if len(given) == len(open_) or len(given) < len(request.conditions or {}):
        raise ConfigError("best_of: nothing is asked for that a sound could say more or less clearly; leave it at 1")
    return given, open_


@torch.no_grad()
def evidence(model: SequenceModel, x: Tensor, given: Conditions, null: Conditions, first: int) -> Tensor:
    """Compute log p(x | given) - log p(x | null) of the frames from `first` on.

    Args:
        model: the model.
        x: codes (B, K, T) or frames (B, F, T).
        given: conditions of the items.
        null: those that are given on both sides. Frames after the end of a sound, which they tell, do not count.
        first: frame from which on they count.

    Returns:
        (B,) float64, in nats.
    """
    nats = [_nats(model, x, conditions) for conditions in (null, given)]  # (B, rows, T) each
    difference = (nats[0] - nats[1])[:, :, first:]
    for values in _extended(null, x.shape[2]).values():
        if values.shape[2] > 1:
            ended = values.isnan().any(dim=1, keepdim=True)[:, :, first : x.shape[2]]
            difference = difference.masked_fill(ended.to(difference.device), 0.0)
    return difference.sum(dim=(1, 2)).cpu()


def _extended(conditions: Conditions, num_frames: int) -> dict[str, Tensor]:
    return {name: x for name, x in extended(conditions, num_frames).items() if isinstance(x, Tensor)}


def _nats(model: SequenceModel, x: Tensor, conditions: Conditions) -> Tensor:
    """Return the negative log-likelihood of each entry, (B, rows, T) float64, in bounded memory."""
    seq = model.pattern.apply(x, model.hole)
    found, state = [], None
    with evaluating(model):
        prepared = model.prepare({name: y.to(x.device) for name, y in _extended(conditions, x.shape[2]).items()})
        for start in range(0, seq.shape[2], WINDOW):
            piece = seq[:, :, start : start + WINDOW]
            place = (start, start + piece.shape[2])
            nats, state = model.nll_of_steps(
                piece, state, model.added(prepared, *place), model.memory(prepared, *place)
            )
            found.append(nats.double())
    return model.pattern.invert(torch.cat(found, dim=2), x.shape[2])
