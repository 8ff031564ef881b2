"""Shared by the lessons on models with a fixed context: training examples, scoring, drawing, and decoding to sound.

V marks the start of a sequence, and V + 1 the positions before it, so there are V + 2 symbols to embed.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..frontends import Frontend


def examples(sequences: Iterable[Tensor], context: int, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Return every code of every sequence, with the n codes before it.

        n = 3, codes 7 4 9:     V+1 V+1 V -> 7    V+1 V 7 -> 4    V 7 4 -> 9

    Args:
        sequences: sequences of codes (1, T).
        context: n.
        codebook_size: V.

    Returns:
        contexts (N, n) and the codes that follow (N,), N being the total number of codes.
    """
    contexts, following = [], []
    for codes in sequences:
        start = torch.tensor([codebook_size + 1] * (context - 1) + [codebook_size])
        contexts.append(torch.cat([start, codes[0]]).unfold(0, context, 1)[:-1])
        following.append(codes[0])
    return torch.cat(contexts), torch.cat(following)


@torch.no_grad()
def bits(logits: Callable[[Tensor], Tensor], contexts: Tensor, following: Tensor) -> float:
    """Return the loss of a model in bits per code.

    Args:
        logits: maps contexts (N, n) to logits (N, V).
        contexts: (N, n), from `examples`.
        following: (N,), from `examples`.
    """
    nats = [
        F.cross_entropy(logits(x), y, reduction="sum")
        for x, y in zip(contexts.split(8192), following.split(8192), strict=True)
    ]
    return float(sum(nats)) / len(following) / math.log(2)


@torch.no_grad()
def draw(
    logits: Callable[[Tensor], Tensor], context: int, codebook_size: int, length: int, generator: torch.Generator
) -> Tensor:
    """Draw a sequence (length,) code by code.

    Args:
        logits: maps contexts (N, n) to logits (N, V).
        context: n.
        codebook_size: V.
        length: number of codes.
        generator: source of random numbers.
    """
    codes = torch.tensor([codebook_size + 1] * (context - 1) + [codebook_size])
    for _ in range(length):
        p = F.softmax(logits(codes[-context:][None]), dim=1)
        codes = torch.cat([codes, torch.multinomial(p[0], 1, generator=generator)])
    return codes[context:]


@torch.inference_mode()
def joined(frontend: Frontend, sequences: Sequence[Tensor], pause: float = 0.15) -> Tensor:
    """Decode sequences of codes (T,), and join the sounds with pauses (seconds) between them: (1, N)."""
    silence = torch.zeros(1, round(pause * frontend.spec.sample_rate))
    wavs = [wav for codes in sequences for wav in (silence, frontend.decode(codes[None, None])[0])]
    return torch.cat(wavs[1:], dim=1)
