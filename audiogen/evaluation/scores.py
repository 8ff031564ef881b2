"""One yardstick: what a held-out loss means beside its front-end and beside counting."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..models.sequence_model import SequenceModel
from ..spec import Spec, Unit
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

    @property
    def bits_per_second(self) -> float | None:
        """Bits per second of audio; None for densities."""
        return Unit(self.unit).bits(self.per_second)


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
    total = spec.unit.of_nats(nats)
    loss = total / entries
    per_sample = loss if spec.one_code_per_sample else None
    return Score(loss, spec.unit, total / seconds, per_sample, len(results), seconds)


def held_out_score(model: SequenceModel, sequences: Iterable[Tensor], seconds: float | None = None) -> Score:
    """The model's score on sequences (C, T), each taken by itself; `seconds` as in `score`."""
    return score(model.spec, list(file_likelihoods(model, sequences)), seconds)


def baselines(spec: Spec, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> dict[str, float] | None:
    """Bits per code of the uniform, unigram and bigram models counted on the training codes; None for densities.

    Args:
        training, held_out: re-iterable sequences of codes (K, T).
    """
    if spec.uniform_loss is None:
        return None
    return {"uniform": spec.uniform_loss, **held_out_counts(training, held_out, spec.num_codebooks, spec.codebook_size)}
