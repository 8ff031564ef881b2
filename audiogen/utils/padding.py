"""Join items of different lengths to a batch, with a mask of what is padding."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Padded(NamedTuple):
    """A padded batch.

    Attributes:
        x: codes (B, K, T) int64, frames (B, F, T) float32 or wavs (B, 1, N), 0 after the end of shorter items.
        lengths: (B,) int64, the T of each item.
        mask: (B, T) bool, True before the end of the item.
    """

    x: Tensor
    lengths: Tensor
    mask: Tensor


def collate(items: Sequence[Tensor]) -> Padded:
    """Join items (C, T), padded with 0 at the end: the `collate_fn` of a DataLoader over an `EncodedCache`.

    Example:
        >>> x, lengths, mask = collate([torch.ones(2, 3), torch.ones(2, 5)])
        >>> x.shape, lengths.tolist(), mask.sum().item()
        (torch.Size([2, 2, 5]), [3, 5], 8)
    """
    lengths = torch.tensor([item.shape[-1] for item in items])
    x = pad_sequence([item.movedim(-1, 0) for item in items], batch_first=True).movedim(1, -1)  # (B, C, T)
    return Padded(x, lengths, torch.arange(x.shape[-1]) < lengths[:, None])
