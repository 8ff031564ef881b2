"""The input and output of generation: Request, with its stop rule Until, and Generation."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..models.sampling import Sampling, fresh_seeds

if TYPE_CHECKING:
    from torch import Tensor

    from ..frontends import Frontend
    from ..models.conditioning import AskedConditions
    from ..models.sequence_model import SequenceModel

log = logging.getLogger("audiogen")

#: Formats in which an engine may store the weights. It always accumulates in fp32.
PRECISIONS = ("fp32", "bf16", "int8")
#: Seconds of new sound where nothing else follows from the run or from what was asked for.
DEFAULT_SECONDS = 4.0
#: Maximum number of items. Each has a state of its own, and no engine gains from more than some hundreds.
MAX_BATCH_SIZE = 2**16
#: Beyond this, guidance leaves nothing of what the model has learned.
MAX_GUIDANCE = 100.0

#: More draws than this of an item find hardly a better one, and a typo would take hours.
MAX_BEST_OF = 64


def check_precision(precision: str) -> None:
    """Raise a ConfigError if the precision is unknown."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: {precision!r} is unknown; choose {', '.join(PRECISIONS)}")


def check_guidance(scale: float) -> None:
    """Raise a ConfigError if the scale of guidance is out of range."""
    if not 0 <= scale <= MAX_GUIDANCE:
        raise ConfigError(f"guidance: must be from 0 to {MAX_GUIDANCE:g}, got {scale}")


def check_best_of(count: int) -> None:
    """Raise a ConfigError if items are to be drawn less than once, or too often."""
    if not 1 <= count <= MAX_BEST_OF:
        raise ConfigError(f"best_of: must be from 1 to {MAX_BEST_OF}, got {count}")


def check_batch_size(count: int) -> None:
    """Raise a ConfigError if there are no items, or more than an engine runs at once."""
    if not 1 <= count <= MAX_BATCH_SIZE:
        raise ConfigError(f"batch_size: must be from 1 to {MAX_BATCH_SIZE:,} items, got {count:,}")


def choose_seeds(num: int, seed: int | None = None) -> range:
    """Return `num` consecutive seeds, beginning with `seed` or with a random one.

    Raises:
        ConfigError: `num` is below 1, or a seed is out of range.

    Example:
        >>> list(choose_seeds(3, seed=5))
        [5, 6, 7]
    """
    if num < 1:
        raise ConfigError(f"num: must be 1 or more, got {num}")
    seed = fresh_seeds(1)[0] if seed is None else seed
    if not 0 <= seed <= 2**64 - num:
        raise ConfigError(
            f"seed: must be from 0 to 2**64 - 1, got {seed}" + (f" to {seed + num - 1}" if num > 1 else "")
        )
    return range(seed, seed + num)


@dataclass(frozen=True)
class Until:
    """The stop rule for frames of varying length: an item ends with the frame that reaches a number of samples.

    Attributes:
        num_samples: samples of each item, including the prompt.
        frame_lengths: maps frames (B, C, T) to the number of samples of each, (B, T).
    """

    num_samples: int
    frame_lengths: "Callable[[Tensor], Tensor]"

    def cut(self, pieces: "Iterable[Tensor]", hole: float) -> "Iterator[Tensor]":
        """Yield pieces (B, C, n) with holes after the end of each item, up to the end of the longest.

        An item thus does not depend on how long the others are.
        """
        reached = 0
        for piece in pieces:
            lengths = self.frame_lengths(piece)  # (B, n)
            before = reached + lengths.cumsum(dim=1) - lengths
            yield piece.masked_fill((before >= self.num_samples)[:, None], hole)
            reached = reached + lengths.sum(dim=1, keepdim=True)  # (B, 1)
            if bool((reached >= self.num_samples).all()):
                return


@dataclass(frozen=True, eq=False)
class Request:
    """Everything that determines what is generated, apart from the model and the length.

    The number of items follows from the prompt, the seeds, the conditions or `batch_size`; a single prompt, or a single
    value of a condition, serves all items.

    Attributes:
        prompt: what to continue: codes or frames (B, C, P) for `generate`, a wav (1, N) for `generate_sound`.
        batch_size: B, the number of items.
        seeds: one per item, from 0 to 2**64 - 1; an item's draws depend on its own seed alone. If empty, random seeds
            are chosen and logged here, so that the request can be repeated.
        sampling: temperature and filters.
        precision: "fp32", "bf16" or "int8": the format to which an engine may round its copy of the weights.
        until: stop rule; ends items before the requested number of frames.
        conditions: conditions of each item by name, (B or 1, F, T or 1), whose frames are counted from the beginning of
            the prompt; after the last one, nothing is given.
        changes: conditions that replace those before, asked for before each chunk of about 0.05 s but the first; they
            hold from the next frame on, the last ones to the end; None changes nothing. Their frames, too, are counted
            from the beginning of the prompt.
        guidance: scale of classifier-free guidance: 0 ignores the conditions, 1 is the model without guidance, and
            more follows the conditions more closely. Any value but 1 needs a second row per item.
        on_chunk: called before each chunk of about 0.05 s is drawn, by `best_of` in each of its draws; what it raises
            ends the generation.
        before: for `generate_sound` and `stream_sound`, the stage whose codes are a condition of this one.
        best_of: for `generate_sound`, how often each item is drawn, with its seed and the ones after it; the one that
            says most clearly what is asked for is kept (see generation/best.py).

    Raises:
        ConfigError: the numbers of items differ or are too large, a seed or the precision is invalid, or items of
            stages or of changing conditions are to be drawn repeatedly.

    Example:
        >>> Request(seeds=[5, 6]).batch_size
        2
    """

    prompt: "Tensor | None" = None
    batch_size: int = 1
    seeds: Sequence[int] = ()
    sampling: Sampling = Sampling()
    precision: str = "fp32"
    until: Until | None = None
    conditions: "AskedConditions | None" = None
    changes: "Iterator[AskedConditions | None] | None" = None
    guidance: float = 1.0
    on_chunk: "Callable[[], None] | None" = None
    before: "Before | None" = None
    best_of: int = 1

    def __post_init__(self) -> None:
        check_precision(self.precision)
        prompts = 1 if self.prompt is None or not self.prompt.ndim else self.prompt.shape[0]
        asked = {name: len(values) for name, values in (self.conditions or {}).items()}
        count = max(self.batch_size, prompts, len(self.seeds), *asked.values())
        check_batch_size(count if self.batch_size > 0 else self.batch_size)
        if self.batch_size not in (1, count) or prompts not in (1, count):
            raise ConfigError(f"prompt: one per item is needed, or one for all {count}, got {prompts}")
        if len(self.seeds) not in (0, count):
            raise ConfigError(f"seeds: one per item is needed, {count} in all, got {len(self.seeds)}")
        for name, items in asked.items():
            if items not in (1, count):
                raise ConfigError(f"conditions: one {name} per item is needed, or one for all {count}, got {items}")
        check_guidance(self.guidance)
        check_best_of(self.best_of)
        if self.best_of > 1 and (self.before is not None or self.changes is not None):
            raise ConfigError("best_of: only for a run without stages, and not in a stream; leave it at 1")
        seeds = tuple(choose_seeds(1, int(seed))[0] for seed in self.seeds)
        if not seeds:
            seeds = tuple(fresh_seeds(count))
            log.info("seeds drawn: %s", " ".join(map(str, seeds)))
        object.__setattr__(self, "batch_size", count)
        object.__setattr__(self, "seeds", seeds)

    @property
    def guided(self) -> bool:
        """Whether each item needs a second row, without its conditions."""
        return (bool(self.conditions) or self.changes is not None) and self.guidance != 1

    @property
    def rows(self) -> int:
        """Number of rows that a model processes: one for each item, or with guidance two."""
        return self.batch_size * (2 if self.guided else 1)

    @property
    def renders(self) -> bool:
        """Whether a stage before is given a meaning; the prompt then lends its voice, and is not part of the sound."""
        return self.before is not None and (self.before.meaning is not None or self.before.request.renders)


@dataclass(frozen=True, eq=False)
class Before:
    """The stage before the one that a request is for.

    Attributes:
        name: name of the condition that takes its codes or frames.
        frontend, model: of the stage.
        request: what is asked of it, for the same items; the prompt is a wav (1, N) at the front-end's sample rate.
        meaning: a wav (1, N) whose codes follow those of the prompt, before new ones are drawn; None for none.
    """

    name: str
    frontend: "Frontend"
    model: "SequenceModel"
    request: Request
    meaning: "Tensor | None" = None


@dataclass(frozen=True, eq=False)
class Generation:
    """Generated items.

    Attributes:
        x: codes (B, K, T), frames (B, F, T) or wavs (B, C, N), beginning with the prompt.
        seeds: seed of each item.
        lengths: length of each item in frames, or in samples of a wav; shorter items are padded with holes.
        reductions: of wavs, by how many dB the limiter turned each item down at most.
    """

    x: "Tensor"
    seeds: tuple[int, ...]
    lengths: tuple[int, ...]
    reductions: tuple[float, ...] = ()
