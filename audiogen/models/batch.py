"""Batch: what training and evaluation hand to a model."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Items of one length, with holes as padding behind the end of shorter ones.

    A NamedTuple, so that data loaders, DDP, FSDP2 and torch.compile reach the tensors in it.

    Attributes:
        x: codes (B, K, T) int64 or frames (B, F, T) float32.
    """

    x: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on a device, which need not be waited for."""
        return Batch(self.x.to(device, non_blocking=True))
