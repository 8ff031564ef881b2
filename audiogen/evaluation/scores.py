"""Convert held-out likelihoods to scores, and compute count-based baselines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..distributed import World
from ..models.conditioning import Conditions
from ..models.sequence_model import SequenceModel
from ..spec import Spec, Unit
from .gaussian import gaussian_baselines
from .likelihood import FileLikelihood, file_likelihoods
from .ngram import held_out_counts


@dataclass(frozen=True)
class Score:
    """The likelihood of held-out files.

    Attributes:
        loss: bits per code or nats per frame.
        unit: the unit of the spec, "bits" or "nats".
        per_second: bits or nats per second of audio.
        per_sample: bits per sample if a code is one sample (mu-law), else None.
        files: number of held-out files.
        seconds: their total duration.
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
    """Sum the likelihoods of files to one score, in which every code has equal weight.

    Args:
        spec: the model's spec.
        results: one result per file.
        seconds: their total duration (`Frontend.seconds`); None: from the frame rate, if it is fixed.

    Raises:
        ValueError: the rate varies and `seconds` is None.
    """
    nats, entries = sum(r.nats for r in results), sum(r.entries for r in results)
    if seconds is None:
        if spec.frame_rate is None:
            raise ValueError("the rate of these codes varies: give the seconds of audio that they represent")
        seconds = sum(r.frames for r in results) / spec.frame_rate
    total = spec.unit.of_nats(nats)
    loss = total / entries
    per_sample = loss if spec.one_code_per_sample else None
    return Score(loss, spec.unit, total / seconds, per_sample, len(results), seconds)


def held_out_score(
    model: SequenceModel,
    sequences: Iterable[Tensor],
    seconds: float | None = None,
    conditions: Iterable[Conditions] | None = None,
    world: World = World(),
    exact: bool = True,
) -> Score:
    """Score a model on sequences (C, T), each on its own; see `score` for `seconds`.

    `conditions` are those of each sequence by name, (1, F, 1 or T) each. The ranks of `world` share out the work. Where
    the head has a bound that takes less time, not `exact` takes that.
    """
    return score(model.spec, list(file_likelihoods(model, sequences, conditions, world, exact)), seconds)


def baselines(spec: Spec, training: Iterable[Tensor], held_out: Iterable[Tensor]) -> dict[str, float]:
    """Score simple models on held-out sequences, in the unit of the spec.

    For codes, uniform, unigram and bigram models that count; for frames, Gaussian models (see `gaussian_baselines`).

    Args:
        spec: the spec of the sequences.
        training: re-iterable sequences (C, T), to fit.
        held_out: re-iterable sequences (C, T), to score.
    """
    if spec.uniform_loss is None:
        return gaussian_baselines(training, held_out)
    counted = held_out_counts(training, held_out, spec.num_rows, spec.num_choices // spec.num_rows)
    return {"uniform": spec.uniform_loss, **counted}
