"""What generation is asked for, and what it returns."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from ..models.conditioning import Conditions
from ..models.sampling import Sampling, fresh_seeds

log = logging.getLogger("audiogen")

#: How an engine may hold the weights while it generates. Sums of products are always taken in fp32.
PRECISIONS = ("fp32", "bf16", "int8")
#: Items side by side. Each has a state of its own, and no engine gains by more than some hundreds.
MAX_BATCH_SIZE = 2**16
#: Beyond this, guidance leaves nothing of what the model has learned.
MAX_GUIDANCE = 100.0


def check_precision(precision: str) -> None:
    """Raise a ConfigError if the precision is unknown."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: {precision!r} is unknown; choose {', '.join(PRECISIONS)}")


def choose_seeds(num: int, seed: int | None = None) -> range:
    """Return `num` seeds that count up from `seed`, or from a fresh one; no list of them is made.

    Raises:
        ConfigError: `num` is below 1, or a seed is out of range.
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
        num_samples: of each item, the prompt included.
        frame_lengths: (B, C, T) -> (B, T), the samples that each frame stands for.
    """

    num_samples: int
    frame_lengths: Callable[[Tensor], Tensor]

    def cut(self, pieces: Iterable[Tensor], hole: float) -> Iterator[Tensor]:
        """Yield pieces (B, C, n) with holes behind the end of each item, up to the end of the longest.

        So an item is what it would be alone, however long the others take.
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
    """All that decides what is generated, besides the model and the length.

    The prompt, the seeds, the conditions and `batch_size` say together how many items there are; one prompt, or one
    value of a condition, serves all of them.

    Attributes:
        prompt: what to go on from: codes or frames (B, C, P) for `generate`, a wav (1, N) for `generate_sound`.
        batch_size: items, B.
        seeds: one per item, from 0 to 2**64 - 1; an item's draws depend on its own seed alone. If none are given, fresh
            ones are drawn here and logged, so that whoever holds the request can repeat it.
        sampling: temperature and filters.
        precision: "fp32", "bf16" or "int8": to what an engine may round the weights, for speed. Those of the model
            stay as they are.
        until: where each item ends, before the number of frames that is asked for.
        conditions: what is asked of each item, (B or 1, F, T or 1) by name; T counts the frames of the prompt too.
        guidance: how far to go from what the model does without conditions to what it does with them, and beyond:
            1 is the model as it is; 0 ignores the conditions. Any other value takes a second row for each item.

    Raises:
        ConfigError: the items do not match, there are too many, or a seed or the precision is out of range.

    Example:
        >>> Request(seeds=[5, 6]).batch_size
        2
    """

    prompt: Tensor | None = None
    batch_size: int = 1
    seeds: Sequence[int] = ()
    sampling: Sampling = Sampling()
    precision: str = "fp32"
    until: Until | None = None
    conditions: Conditions | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        check_precision(self.precision)
        prompts = 1 if self.prompt is None or not self.prompt.ndim else self.prompt.shape[0]
        asked = {name: len(values) for name, values in (self.conditions or {}).items()}
        count = max(self.batch_size, prompts, len(self.seeds), *asked.values())
        if self.batch_size < 1 or count > MAX_BATCH_SIZE:
            got = self.batch_size if self.batch_size < 1 else count
            raise ConfigError(f"batch_size: must be from 1 to {MAX_BATCH_SIZE:,} items, got {got:,}")
        if self.batch_size not in (1, count) or prompts not in (1, count):
            raise ConfigError(f"prompt: one per item is needed, or one for all {count}, got {prompts}")
        if len(self.seeds) not in (0, count):
            raise ConfigError(f"seeds: one per item is needed, {count} in all, got {len(self.seeds)}")
        for name, items in asked.items():
            if items not in (1, count):
                raise ConfigError(f"conditions: one {name} per item is needed, or one for all {count}, got {items}")
        if not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ConfigError(f"guidance: must be from 0 to {MAX_GUIDANCE:g}, got {self.guidance}")
        seeds = tuple(choose_seeds(1, int(seed))[0] for seed in self.seeds)
        if not seeds:
            seeds = tuple(fresh_seeds(count))
            log.info("seeds drawn: %s", " ".join(map(str, seeds)))
        object.__setattr__(self, "batch_size", count)
        object.__setattr__(self, "seeds", seeds)

    @property
    def guided(self) -> bool:
        """Whether each item needs a second row, without its conditions."""
        return bool(self.conditions) and self.guidance != 1


@dataclass(frozen=True, eq=False)
class Generation:
    """What was generated.

    Attributes:
        x: codes (B, K, T), frames (B, F, T) or a wav (B, 1, N), beginning with the prompt.
        seeds: of each item.
        lengths: frames of each item, or samples of a wav; behind a shorter one are holes.
    """

    x: Tensor
    seeds: tuple[int, ...]
    lengths: tuple[int, ...]
