"""Batch: the input of a model in training and evaluation."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.devices import send
from .conditioning import Conditions


class Batch(NamedTuple):
    """Items of equal length; shorter ones are padded with holes at the end.

    A NamedTuple, so that data loaders, DDP, FSDP2 and torch.compile find the tensors in it.

    Attributes:
        x: codes (B, K, T) int64 or frames (B, F, T) float32.
        conditions: those of the items; None if there are none.
        observed: steps (B, C, S) in the order of the model's pattern that replace x as input, not as target; None for
            x itself. See `SequenceModel.redraw` and `SequenceModel.perturb`.
    """

    x: Tensor
    conditions: Conditions | None = None
    observed: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the batch to a device, without waiting for the copy."""
        conditions = self.conditions and {name: send(values, device) for name, values in self.conditions.items()}
        observed = None if self.observed is None else send(self.observed, device)
        return Batch(send(self.x, device), conditions, observed)
