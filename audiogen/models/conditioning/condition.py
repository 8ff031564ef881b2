"""What all conditions share: the base class, and the parts that embed and read values."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import ConfigError

#: Maximum number of values of a label, of numbers per frame, and of embeddings of codes. They catch typos and untrusted
#: configs that would exhaust memory.
MAX_VALUES, MAX_FEATURES, MAX_EMBEDDINGS = 2**16, 2**12, 2**20
#: Number of sines, and of cosines, that encode a number at least; maximum number of doublings of the finest of them.
WAVES, MAX_OCTAVES = 8, 8


class Condition(nn.Module):
    """Base class of conditions. A condition is built by `__init__(config, dim)` from its nested Config.

    Attributes:
        num_features: F, numbers for each frame.
        stays_open: whether the condition is null by default: in half of the training crops, in evaluation, and in
            generation unless the user gives it. Other conditions are filled in from a training file.
        one_word: whether a value is a word, a number or a text that applies to a whole item.
    """

    Config: Any  # a frozen dataclass of settings
    num_features: int
    stays_open: ClassVar[bool] = False
    one_word: ClassVar[bool] = False

    def __init__(self, config: Any, dim: int):
        super().__init__()
        self.config = config
        self.null = nn.Parameter(torch.zeros(dim))

    def embed(self, x: Tensor) -> Tensor:
        """Embed values (B, F, T) that are all given -> (B, T, D)."""
        raise NotImplementedError

    def parse(self, name: str, value: Any) -> Tensor:
        """Convert a value given by the user to values (F, T).

        Args:
            name: name of the condition, for messages.
            value: what the user gave.

        Raises:
            ConfigError: the value is not allowed.
        """
        raise NotImplementedError

    def describe(self, x: Tensor) -> str | None:
        """Describe the values (F, T) of an item in a word; None if they are not given or can't be described so."""
        return None

    @classmethod
    def has_same_weights(cls, config: Any, other: Any) -> bool:
        """Whether trained weights mean the same with another config of this kind."""
        return config == other

    def missing(self, x: Tensor) -> Tensor:
        """Return where values (B, F, T) are not given: (B, T) bool."""
        return x.isnan().any(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map values (B, F, T) to vectors (B, T, D), with the null vector where they are not given."""
        x = x.to(self.null)
        y = self.embed(x.nan_to_num(0.0))
        return torch.where(self.missing(x)[..., None], self.null, y)


class Affine(nn.Module):
    """A linear layer initialised to zero. It draws no random numbers, so other initial weights do not change."""

    def __init__(self, num_features: int, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(dim, num_features)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def waves_of(x: Tensor, low: float, high: float, octaves: int = 0) -> Tensor:
    """Encode numbers (B, 1, T) by sines and cosines over their range, so that near numbers have similar codes.

    The frequencies are 1, 2, ..., WAVES half periods per range, then `octaves` doublings of the last.

    Source: Tancik et al. 2020, Fourier Features Let Networks Learn High Frequency Functions, section 4.

    Returns:
        (B, T, 2 (WAVES + octaves)).
    """
    u = (x - low) / max(high - low, 1e-9)  # from 0 to 1
    first = torch.arange(1, WAVES + 1, device=x.device, dtype=x.dtype)
    doubled = WAVES * 2 ** torch.arange(1, octaves + 1, device=x.device, dtype=x.dtype)
    angles = math.pi * torch.cat([first, doubled])[:, None] * u  # (B, waves, T)
    return torch.cat([angles.sin(), angles.cos()], dim=1).transpose(1, 2)


def framewise(name: str, value: Any, num_features: int) -> Tensor:
    """Convert a user's array to values (F, T); NaN is "not given".

    Raises:
        ConfigError: it is of another shape, or of no numbers; begins with the condition's `name`.
    """
    wanted = f"{name}: must have the shape ({num_features}, frames)"
    try:
        x = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{wanted}, got {str(value)[:40]!r}") from None
    if x.ndim != 2 or x.shape[0] != num_features or not x.shape[1]:
        raise ConfigError(f"{wanted}, got {tuple(x.shape)}")
    return x


def span(x: Tensor) -> str:
    """Format the range of values: "0 to 1"."""
    return f"{float(x.nan_to_num(0.0).amin()):g} to {float(x.nan_to_num(0.0).amax()):g}"
