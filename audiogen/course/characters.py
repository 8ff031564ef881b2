"""Text as codes, for lessons whose published losses are on text."""

import torch
from torch import Tensor

from ..spec import TokenSpec


class Characters:
    """A code for each character that occurs in a text, in the order of Unicode: "abba" -> 0 1 1 0.

    Args:
        text: a text with all characters that will be encoded.
    """

    def __init__(self, text: str):
        self.symbols = sorted(set(text))
        self.spec = TokenSpec(sample_rate=1, hop_length=1, num_codebooks=1, codebook_size=len(self.symbols))
        self._codes = {symbol: code for code, symbol in enumerate(self.symbols)}

    def encode(self, text: str) -> Tensor:
        """Convert text to codes (1, T) int64.

        Raises:
            KeyError: a character did not occur in the text given to __init__.
        """
        return torch.tensor([[self._codes[symbol] for symbol in text]], dtype=torch.int64)

    def decode(self, codes: Tensor) -> str:
        """Convert codes (1, T) to text."""
        return "".join(self.symbols[code] for code in codes[0].tolist())
