"""The interface between front-ends and models: a front-end declares a spec, a model is built from it.

A spec answers every question that other code has about a signal, so that no other code checks which kind it is.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

#: numpy dtypes of a cache: for codes the smallest type that holds V of them ({largest V: dtype}), for frames float32.
CODE_TYPES, FRAME_TYPE = {2**8: "<u1", 2**16: "<u2", 2**32: "<u4"}, "<f4"


class Unit(StrEnum):
    """Unit of a loss: bits per code, or nats per frame for densities."""

    BITS = "bits"
    NATS = "nats"

    @property
    def per_entry(self) -> str:
        """The unit in words: "bits per code" or "nats per frame"."""
        return f"{self} per {'code' if self is Unit.BITS else 'frame'}"

    def of_nats(self, nats: float) -> float:
        """Convert nats to this unit."""
        return nats / math.log(2) if self is Unit.BITS else nats

    def bits(self, value: float) -> float | None:
        """Return `value` if this unit is bits, else None: nats of a density are not comparable with anything else."""
        return value if self is Unit.BITS else None

    def perplexity(self, loss: float) -> float | None:
        """Return 2 to the power of the loss, a number of equally likely codes; None for densities."""
        return 2**loss if self is Unit.BITS else None


@dataclass(frozen=True)
class TokenSpec:
    """Integer codes (B, K, T) in [0, V).

    Attributes:
        sample_rate: Hz of the wav that is encoded.
        hop_length: samples per frame; None where the rate varies (BPE).
        num_codebooks: K, rows of codes per frame.
        codebook_size: V, codes per row.
    """

    sample_rate: int
    hop_length: int | None
    num_codebooks: int
    codebook_size: int

    discrete = True  # codes, not real values
    unit = Unit.BITS
    stack = 1

    @property
    def signal(self) -> str:
        """What one code represents: a sample ("samples"), a frame ("frames"), or a run of frames ("runs")."""
        return {None: "runs", 1: "samples"}.get(self.hop_length, "frames")

    @property
    def num_rows(self) -> int:
        """Rows that a pattern lays out; each is predicted separately."""
        return self.num_codebooks

    @property
    def num_channels(self) -> int:
        """C of (B, C, T)."""
        return self.num_codebooks

    @property
    def values_per_entry(self) -> int:
        """Values that one entry of the loss covers: one code."""
        return 1

    @property
    def num_choices(self) -> int:
        """Number of probabilities that a model computes per frame: K V."""
        return self.num_codebooks * self.codebook_size

    @property
    def one_code_per_sample(self) -> bool:
        """Whether each sample is one code, as with mu-law."""
        return self.hop_length == self.num_codebooks == 1

    @property
    def uniform_loss(self) -> float | None:
        """Bits per code of a uniform guess: log2 V."""
        return math.log2(self.codebook_size)

    @property
    def storage_dtype(self) -> str:
        """The smallest numpy dtype that holds a code."""
        return next(dtype for size, dtype in CODE_TYPES.items() if self.codebook_size <= size)

    @property
    def frame_rate(self) -> float | None:
        """Frames per second, never rounded; None where the rate varies."""
        return None if self.hop_length is None else self.sample_rate / self.hop_length

    @property
    def rate_in_words(self) -> str:
        """What one second of audio becomes, in words: "62.5 frames of 4 codes out of 256"."""
        if self.frame_rate is None:
            return f"a varying number of codes out of {self.codebook_size:,}"
        codes = f"out of {self.codebook_size:,}"
        if self.num_codebooks == 1:
            return f"{self.frame_rate:,.6g} codes {codes}"
        return f"{self.frame_rate:,.6g} frames of {self.num_codebooks} codes {codes}"

    @property
    def bitrate(self) -> float | None:
        """Bits per second, K log2(V) frame_rate; None where the rate varies."""
        rate = self.frame_rate
        return None if rate is None else self.num_codebooks * math.log2(self.codebook_size) * rate


@dataclass(frozen=True)
class FrameSpec:
    """Real-valued frames (B, F, T), standardised per feature to mean 0, variance 1 over the training files.

    Attributes:
        sample_rate: Hz of the wav that is encoded.
        hop_length: samples per frame.
        num_features: F, values per frame.
        stack: short frames that a frame consists of. Its values are ordered by feature, then by time.
    """

    sample_rate: int
    hop_length: int
    num_features: int
    stack: int = 1

    discrete = False
    unit = Unit.NATS

    @property
    def signal(self) -> str:
        """What one frame represents: a vector of real values ("features")."""
        return "features"

    @property
    def num_rows(self) -> int:
        """Rows that a pattern lays out: one, since a frame is predicted as a whole."""
        return 1

    @property
    def num_channels(self) -> int:
        """C of (B, C, T)."""
        return self.num_features

    @property
    def values_per_entry(self) -> int:
        """Values that one entry of the loss covers: the F values of a frame."""
        return self.num_features

    @property
    def num_choices(self) -> int:
        """Number of densities that a model computes per frame: one."""
        return 1

    @property
    def one_code_per_sample(self) -> bool:
        """Whether each sample is one code: never."""
        return False

    @property
    def uniform_loss(self) -> float | None:
        """None: there is no uniform density over all real numbers."""
        return None

    @property
    def storage_dtype(self) -> str:
        """The numpy dtype that stores a value."""
        return FRAME_TYPE

    @property
    def frame_rate(self) -> float:
        """Frames per second, never rounded."""
        return self.sample_rate / self.hop_length

    @property
    def rate_in_words(self) -> str:
        """What one second of audio becomes, in words: "62.5 frames of 80 values"."""
        return f"{self.frame_rate:,.6g} frames of {self.num_features} values"


Spec = TokenSpec | FrameSpec
