"""Batch: the input of a model in training and evaluation."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Items of equal length; shorter ones are padded with holes at the end.

    A NamedTuple, so that data loaders, DDP, FSDP2 and torch.compile find the tensors in it.

    Attributes:
        x: codes (B, K, T) int64 or frames (B, F, T) float32.
    """

    x: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the batch to a device, without waiting for the copy where the device allows it."""
        return Batch(self.x.to(device, non_blocking=True))
