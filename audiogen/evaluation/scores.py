"""One yardstick: what a held-out loss means beside its front-end and beside counting."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..models.sequence_model import SequenceModel
from ..spec import Spec
from .likelihood import FileLikelihood, file_likelihoods
from .ngram import held_out_counts


@dataclass(frozen=True)
class Score:
    """The likelihood of held-out files.

    Attributes:
        loss: bits per code, or nats per frame: the unit of the spec.
        per_second: the same per second of audio.
        per_sample: bits per sample where a code is one sample (mu-law), else None.
        files, seconds: how much was held out.
    """

    loss: float
    unit: str
    per_second: float
    per_sample: float | None
    files: int
    seconds: float


def score(spec: Spec, results: Sequence[FileLikelihood], seconds: float | None = None) -> Score:
    """Sums up files: every code counts alike, whatever the file it is in.

    Args:
        seconds: of sound that they stand for (`Frontend.seconds`); None goes by the frame rate, where it is fixed.
    """
    nats, entries = sum(r.nats for r in results), sum(r.entries for r in results)
    if seconds is None:
        if spec.frame_rate is None:
            raise ValueError("the rate of these codes varies: give the seconds of sound that they stand for")
        seconds = sum(r.frames for r in results) / spec.frame_rate
    total = nats / math.log(2) if spec.unit == "bits" else nats
    one_to_one = spec.unit == "bits" and spec.hop_length == spec.num_codebooks == 1
    return Score(
        total / entries, spec.unit, total / seconds, total / entries if one_to_one else None, len(results), seconds
    )


def held_out_score(model: SequenceModel, sequences: Iterable[Tensor], seconds: float | None = None) -> Score:
    """The model's score on sequences (C, T), each taken by itself; `seconds` as in `score`."""
    return score(model.spec, list(file_likelihoods(model, sequences)), seconds)


def baselines(spec: Spec, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> dict[str, float] | None:
    """Bits per code of the uniform, unigram and bigram models counted on the training codes; None for densities.

    Args:
        training, held_out: re-iterable sequences of codes (K, T).
    """
    if spec.unit != "bits":
        return None
    return {
        "uniform": math.log2(spec.codebook_size),
        **held_out_counts(training, held_out, spec.num_codebooks, spec.codebook_size),
    }
