"""Text as codes: for the lessons whose losses have been published on text."""

import torch
from torch import Tensor

from ..spec import TokenSpec


class Characters:
    """Each character that occurs is a code: "abba" -> 0 1 1 0. One code is one step, and there is no sound.

    Args:
        text: holds every character that will be encoded; their order is that of Unicode.
    """

    def __init__(self, text: str):
        self.symbols = sorted(set(text))
        self.spec = TokenSpec(sample_rate=1, hop_length=1, num_codebooks=1, codebook_size=len(self.symbols))
        self._codes = {symbol: code for code, symbol in enumerate(self.symbols)}

    def encode(self, text: str) -> Tensor:
        """-> (1, T) int64. Raises a KeyError for a character that did not occur."""
        return torch.tensor([[self._codes[symbol] for symbol in text]], dtype=torch.int64)

    def decode(self, codes: Tensor) -> str:
        """(1, T) -> text."""
        return "".join(self.symbols[code] for code in codes[0].tolist())
