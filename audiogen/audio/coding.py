"""How generated sound is stored: a container and a number of bits."""

from dataclasses import dataclass

from ..errors import ConfigError

_CODINGS = {  # by format and bits per sample
    "wav": {16: "PCM_16", 24: "PCM_24", 32: "FLOAT"},
    "flac": {16: "PCM_16", 24: "PCM_24"},
}


@dataclass(frozen=True)
class Coding:
    """How sound is stored without loss: a container and a number of bits.

    Samples are rounded without dither, so that what was read is written back unchanged. At 16 bits the error lies 98 dB
    below a full-scale sine.

    Attributes:
        format: "wav" or "flac".
        bits: bits per sample: 16 or 24, or in a WAV 32, which are floats.

    Raises:
        ConfigError: the format is unknown, or does not support this number of bits.

    Example:
        >>> Coding("flac", 24).subtype
        'PCM_24'
    """

    format: str = "wav"
    bits: int = 16

    def __post_init__(self) -> None:
        if self.format not in _CODINGS:
            raise ConfigError(f"format: {self.format!r} is unknown; choose {' or '.join(_CODINGS)}")
        if self.bits not in _CODINGS[self.format]:
            possible = ", ".join(map(str, _CODINGS[self.format]))
            raise ConfigError(f"bits: a {self.format} holds {possible} bits per sample here, not {self.bits}")

    @property
    def subtype(self) -> str:
        """The coding by libsndfile's name."""
        return _CODINGS[self.format][self.bits]
