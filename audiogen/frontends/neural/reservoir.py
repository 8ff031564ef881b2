"""Reservoir sampling: a uniform subset of rows too many to hold in memory."""

import torch
from torch import Tensor


class Reservoir:
    """Keeps a uniform sample of at most `capacity` of all rows added, in the order of adding."""

    def __init__(self, capacity: int, generator: torch.Generator):
        self.capacity = capacity
        self.generator = generator  # on the CPU
        self._rows: list[Tensor] = []
        self._keys: list[Tensor] = []  # a random number per row; the highest stay
        self._size = 0

    def add(self, rows: Tensor) -> None:
        """Add rows (M, ...), with the same trailing shape each time."""
        self._rows.append(rows)
        self._keys.append(torch.rand(len(rows), dtype=torch.float64, generator=self.generator))
        self._size += len(rows)
        if self._size > 2 * self.capacity:
            self._shrink()

    def rows(self) -> Tensor:
        """Return the sample: (min(capacity, rows added), ...)."""
        self._shrink()
        return self._rows[0]

    def _shrink(self) -> None:
        rows, keys = torch.cat(self._rows), torch.cat(self._keys)
        if len(keys) > self.capacity:
            kept = keys.topk(self.capacity).indices.sort().values
            rows, keys = rows[kept.to(rows.device)], keys[kept]
        self._rows, self._keys, self._size = [rows], [keys], len(keys)
