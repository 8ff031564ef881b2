"""What the two halves of the house know of each other: front-ends make a spec, models are made from one."""

import math
from dataclasses import dataclass


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

    @property
    def num_rows(self) -> int:
        return self.num_codebooks

    @property
    def unit(self) -> str:
        return "bits"

    @property
    def signal(self) -> str:
        """What a code stands for: one sample ("samples"), a frame ("frames"), or a run of frames ("runs")."""
        return {None: "runs", 1: "samples"}.get(self.hop_length, "frames")

    @property
    def frame_rate(self) -> float | None:
        """Frames per second, never rounded; None where the rate varies."""
        return None if self.hop_length is None else self.sample_rate / self.hop_length

    @property
    def bitrate(self) -> float | None:
        """K log2(V) frame_rate, in bits per second; None where the rate varies."""
        rate = self.frame_rate
        return None if rate is None else self.num_codebooks * math.log2(self.codebook_size) * rate


@dataclass(frozen=True)
class FrameSpec:
    """Real-valued frames (B, F, T), standardised per feature (mean 0, variance 1 over the training files).

    Attributes:
        sample_rate: Hz of the wav that is encoded.
        hop_length: samples per frame.
        num_features: F, values per frame.
    """

    sample_rate: int
    hop_length: int
    num_features: int

    @property
    def num_rows(self) -> int:
        return 1

    @property
    def unit(self) -> str:
        return "nats"

    @property
    def signal(self) -> str:
        """A frame is a vector of real values."""
        return "features"

    @property
    def frame_rate(self) -> float:
        """Frames per second, never rounded."""
        return self.sample_rate / self.hop_length


Spec = TokenSpec | FrameSpec
