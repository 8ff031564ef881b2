"""What the lessons on models with a fixed context share: examples, score, draws, and how these sound.

V stands for the start of a sequence, V + 1 for what lies before it, so that there are V + 2 symbols to embed.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..frontends import Frontend


def examples(sequences: Iterable[Tensor], context: int, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Every code of every sequence, with the n codes before it.

        n = 3, codes 7 4 9:     V+1 V+1 V -> 7    V+1 V 7 -> 4    V 7 4 -> 9

    Args:
        sequences: of codes (1, T).
        context: n.
        codebook_size: V.

    Returns:
        contexts (N, n) and what followed (N,), N being the number of codes in all.
    """
    contexts, following = [], []
    for codes in sequences:
        start = torch.tensor([codebook_size + 1] * (context - 1) + [codebook_size])
        contexts.append(torch.cat([start, codes[0]]).unfold(0, context, 1)[:-1])
        following.append(codes[0])
    return torch.cat(contexts), torch.cat(following)


@torch.no_grad()
def bits(logits: Callable[[Tensor], Tensor], contexts: Tensor, following: Tensor) -> float:
    """Bits per code.

    Args:
        logits: contexts (N, n) -> (N, V).
        contexts, following: as `examples` gives them.
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
    """A sequence (length,) drawn code by code from its start.

    Args:
        logits: contexts (N, n) -> (N, V).
    """
    codes = torch.tensor([codebook_size + 1] * (context - 1) + [codebook_size])
    for _ in range(length):
        p = F.softmax(logits(codes[-context:][None]), dim=1)
        codes = torch.cat([codes, torch.multinomial(p[0], 1, generator=generator)])
    return codes[context:]


@torch.inference_mode()
def joined(frontend: Frontend, sequences: Sequence[Tensor], pause: float = 0.15) -> Tensor:
    """Sequences of codes (T,) as sounds one after the other, with pauses (seconds) between: (1, N)."""
    silence = torch.zeros(1, round(pause * frontend.spec.sample_rate))
    wavs = [wav for codes in sequences for wav in (silence, frontend.decode(codes[None, None])[0])]
    return torch.cat(wavs[1:], dim=1)
