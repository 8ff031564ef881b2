"""Measure how well generated sound follows the melody that it was asked for."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..audio.io import mono
from ..data import compute_descriptor
from ..models.conditioning import Melody
from ..runs.run import Run
from .sounds import BATCH, CLIP_SECONDS

#: Minimum seconds of a piece of a recording whose melody is asked for.
LEAST_SECONDS = 1.0
REPLICATES = 200


def melody_name(run: Run) -> str | None:
    """Return the name of the condition of a run that is a melody, if it has one."""
    names = (name for name, config in run.config.conditions.items() if isinstance(config, Melody.Config))
    return next(names, None)


@torch.inference_mode()
def melodies_followed(run: Run, recordings: Iterable[Tensor], num: int, seed: int = 0) -> dict[str, Any] | None:
    """Ask a run for the melodies of held-out recordings, and compare them with those of the generated sound.

    Args:
        run: a run with a melody among its conditions.
        recordings: held-out wavs (1, N) at the run's sample rate.
        num: maximum number of clips to generate, one for each piece of the recordings.
        seed: seed of the first clip; clip i uses seed + i.

    Returns:
        JSON values: `num`, number of clips; `generated` and `round_trips`, what `followed` says of generated sound and
        of the round trips of the recordings, the ceiling. None if no recording is long enough.
    """
    name, pieces = melody_name(run), _pieces(recordings, run.sample_rate)
    if name is None or not pieces:
        return None
    pieces = [pieces[i * len(pieces) // num] for i in range(num)] if num < len(pieces) else pieces
    made: list[Tensor] = []
    for first in range(0, len(pieces), BATCH):
        some = pieces[first : first + BATCH]
        seconds = max(piece.shape[1] for piece in some) / run.sample_rate
        seeds = range(seed + first, seed + first + len(some))
        made += mono(run.generate(seconds, seeds=seeds, conditions={name: [piece[None] for piece in some]})).cpu()
    front = run.frontend
    trips = [front.decode(front.encode(piece[None].to(front.device)))[0].cpu() for piece in pieces]
    asked, generated, back = ([_melody(run, wav) for wav in wavs] for wavs in (pieces, made, trips))
    return {"num": len(pieces), "generated": followed(asked, generated), "round_trips": followed(asked, back)}


def followed(asked: Sequence[Tensor], heard: Sequence[Tensor]) -> dict[str, float] | None:
    """Compare melodies by the mean cosine between their frames, over frames in which a pitch is asked for.

    Args:
        asked: melodies (12, T).
        heard: melodies (12, T) of what is heard instead of each; frames beyond their ends count as silence.

    Returns:
        `value`, with its interval of 95 % (`low` to `high`, from resampling clips); `shuffled`, the same with the
        melodies asked of all other clips: the floor. None if no pitch, or a single melody, is asked for.

    Source: Copet et al. 2023, MusicGen, section 4.4 (chroma cosine similarity).
    """
    sums, counts = (torch.zeros(len(asked), len(heard), dtype=torch.float64) for _ in range(2))
    for i, wanted in enumerate(asked):
        for j, found in enumerate(heard):
            length = wanted.shape[1]
            given = torch.nn.functional.pad(found, (0, max(0, length - found.shape[1])))[:, :length]
            pitched = wanted.any(dim=0)
            sums[i, j] = torch.nn.functional.cosine_similarity(wanted, given, dim=0)[pitched].sum()
            counts[i, j] = pitched.sum()
    others = ~torch.eye(len(asked), dtype=torch.bool)
    own, own_counts = sums.diagonal(), counts.diagonal()
    if not counts.sum() or len(asked) < 2:
        return None
    drawn = torch.randint(len(asked), (REPLICATES, len(asked)), generator=torch.Generator().manual_seed(0))
    replicates = own[drawn].sum(dim=1) / own_counts[drawn].sum(dim=1).clamp_min(1)
    low, high = replicates.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    shuffled = float(sums[others].sum() / counts[others].sum())
    return {"value": float(own.sum() / own_counts.sum()), "low": low, "high": high, "shuffled": shuffled}


def _pieces(recordings: Iterable[Tensor], sample_rate: int) -> list[Tensor]:
    """Cut recordings (1, N) into pieces of CLIP_SECONDS, without those shorter than LEAST_SECONDS."""
    pieces = (piece for wav in recordings for piece in wav.split(round(CLIP_SECONDS * sample_rate), dim=1))
    return [piece for piece in pieces if piece.shape[1] >= LEAST_SECONDS * sample_rate]


def _melody(run: Run, wav: Tensor) -> Tensor:
    """Find the melody of a wav (1, N): (12, T)."""
    return torch.cat(list(compute_descriptor(Melody, [wav], run.frontend.spec)), dim=1)
