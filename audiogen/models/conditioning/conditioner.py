"""All conditions of a model: from values by name to the vectors that are added."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..layers import Memory
from ..stages import Arriving
from .condition import Condition
from .text import Text

#: Values by name; a name that is missing is not given.
Conditions = Mapping[str, Tensor]
#: In generation, those of an earlier stage may arrive while they are needed.
AskedConditions = Mapping[str, Tensor | Arriving]
#: Factor of the vectors that conditions add. The optimizer changes a weight by about the learning rate per step, so
#: without the factor, vectors that start at zero would take hundreds of steps to become as large as the embeddings. On
#: spoken digits, 160 steps of mel:gpt end at the same held-out loss with factors 1 and 4; digit and speaker account for
#: 0.15 nats per frame of it with factor 1, and for 0.37 with factor 4.
STRENGTH = 4.0


class Conditioner(nn.Module):
    """All conditions of a model: maps values by name to the sum of their vectors, (B, S, D).

    Args:
        parts: conditions by name.
    """

    def __init__(self, parts: Mapping[str, Condition]):
        super().__init__()
        self._names = tuple(parts)
        for name, part in parts.items():  # prefixed, since nn.Module has attributes such as `type` and `float`
            self.add_module(f"condition_{name}", part)

    @property
    def parts(self) -> dict[str, Condition]:
        """The conditions by name."""
        return {name: getattr(self, f"condition_{name}") for name in self._names}

    def forward(self, conditions: Conditions, frames: Tensor) -> Tensor:
        """Sum the vectors of all conditions: `prepare`, then `Prepared.at`."""
        return self.prepare(conditions).at(frames)

    def prepare(self, conditions: AskedConditions) -> "Prepared":
        """Check the values, and embed those that are constant.

        Args:
            conditions: values by name, (B, F, 1 or T) each; a B of 1 serves all items.

        Raises:
            ConfigError: the model has no such condition, or the shape is wrong.
        """
        parts = self.parts
        for name, x in conditions.items():
            if name not in parts:
                raise ConfigError(f"conditions: this model has no {name!r}; it has {', '.join(parts)}")
            shape = (len(x), x.num_features, 1) if isinstance(x, Arriving) else tuple(x.shape)
            if len(shape) != 3 or shape[1] != parts[name].num_features or not shape[2]:
                raise ConfigError(
                    f"conditions: {name} must have the shape (items, {parts[name].num_features}, frames or 1), "
                    f"got {shape}"
                )
        terms, memory = [], None
        for name, part in parts.items():
            x = conditions.get(name)
            if isinstance(part, Text) and part.num_layers:
                memory, x = part.memory(x if isinstance(x, Tensor) else None), None
            changes = isinstance(x, Arriving) or x is not None and x.shape[2] > 1
            terms.append((part, x) if changes else part.null[None, None] if x is None else part(x))
        return Prepared(terms, memory)


@dataclass(frozen=True)
class Prepared:
    """Conditions whose constant values are already embedded.

    Attributes:
        terms: for each condition its vectors (B or 1, 1, D) if it is constant, else itself and its values
            (B or 1, F, T).
        memory: the texts that the backbone attends to, `wanted` at each frame; None for none.
    """

    terms: list[Tensor | tuple[Condition, Tensor | Arriving]]
    memory: Memory | None = None

    def memory_at(self, frames: Tensor) -> Memory | None:
        """Return the texts with `wanted` at the frame of each step, (S,)."""
        if self.memory is None or self.memory.wanted.shape[1] == 1:
            return self.memory
        wanted = self.memory.wanted
        return self.memory._replace(wanted=wanted.index_select(1, frames.clamp(max=wanted.shape[1] - 1)))

    def at(self, frames: Tensor) -> Tensor:
        """Sum the vectors of all conditions.

        Args:
            frames: (S,) int64, the frame whose values hold at each step; beyond the last one, the last one.

        Returns:
            (B, S, D); S is 1 if all conditions are constant, and B is 1 if they are the same for all items.
        """
        vectors = []
        for term in self.terms:
            if isinstance(term, tuple):
                part, x = term
                if isinstance(x, Arriving):
                    values = x.at(frames)  # (B, F, S)
                else:
                    values = x.index_select(2, frames.clamp(max=x.shape[2] - 1))
                term = part(values)  # (B, S, D)
            vectors.append(term)
        return STRENGTH * sum(vectors[1:], start=vectors[0])


@dataclass(frozen=True)
class Changed:
    """Conditions that are replaced during generation.

    Attributes:
        before, after: the conditions before and from the frame `start`.
    """

    before: Prepared
    after: Prepared
    start: int

    def at(self, frames: Tensor) -> Tensor:
        """Sum the vectors of all conditions: (B, S, D), as `Prepared.at`."""
        return torch.where((frames >= self.start)[:, None], self.after.at(frames), self.before.at(frames))
