"""Compare the labels that a run was asked for with those that are heard in the sound that it generates.

A judge hears (see judges.py). How often it is right on held-out recordings, and on their round trips through the run's
front-end, stands beside what it says of generated sound, which can't be recognised better than these.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.conditioning import Label
from ..runs.run import Run
from ..utils.text import fold
from .judges import Judge, train_judge
from .sounds import CLIP_SECONDS, Labelled

log = logging.getLogger("audiogen")

#: Maximum number of held-out sounds that are judged.
MOST_HELD_OUT = 200
#: Maximum seconds of training codes that are decoded where the recordings are not at hand.
DECODED_SECONDS = 300.0


def label_values(run: Run) -> dict[str, tuple[str, ...]]:
    """Return the values of those conditions of a run that are labels, by name."""
    return {name: config.values for name, config in run.config.conditions.items() if isinstance(config, Label.Config)}


def judge_of(run: Run, training: Iterable[Labelled]) -> Judge:
    """Train a judge of the labels of a run on its training files, at its sample rate."""
    values = label_values(run)
    log.info("training a small classifier of %s, to compare generated sound with what is asked for", ", ".join(values))
    return train_judge(training, values, run.sample_rate)


def decoded_training(run: Run) -> Iterator[Labelled]:
    """Decode training codes of a run, at most DECODED_SECONDS; for when its recordings are not at hand."""
    sequences, left = run.training_sequences(), DECODED_SECONDS
    if sequences is None:
        return
    for i in range(len(sequences)):
        wav = _decode(run, sequences[i])
        yield wav, run.labels.files.get(sequences.piece(i).sha256, {})
        left -= wav.shape[1] / run.sample_rate
        if left <= 0:
            break


def heard_as_asked(
    judge: Judge, run: Run, generated: Iterable[Labelled], held_out: Sequence[Labelled]
) -> dict[str, dict[str, Any]]:
    """Compare what a judge hears in generated sound with what was asked for, and judge the judge on held-out files.

    Args:
        judge: a judge of the run's labels.
        run: the run, whose front-end makes the round trips.
        generated: generated sounds with what they were asked for.
        held_out: held-out recordings with their labels.

    Returns:
        JSON values by label: `generated`, `held_out` and `round_trips`, a `tally` each.
    """
    recordings = [(wav[:, : int(CLIP_SECONDS * run.sample_rate)], row) for wav, row in held_out[:MOST_HELD_OUT]]
    sets = {
        "generated": generated,
        "held_out": recordings,
        "round_trips": ((_round_trip(run, wav), row) for wav, row in recordings),
    }
    heard = {name: [(row, judge.hear(wav)) for wav, row in sounds] for name, sounds in sets.items()}
    found: dict[str, dict[str, Any]] = {}
    for label, values in judge.values.items():
        pairs = {
            name: [(row[label], words[label]) for row, words in rows if label in row] for name, rows in heard.items()
        }
        found[label] = {name: tally(some, values) for name, some in pairs.items()}
    return found


def tally(pairs: Iterable[tuple[str, str]], values: Sequence[str]) -> dict[str, Any]:
    """Count how often what is heard is what was asked for.

    Args:
        pairs: asked and heard value of each sound; pairs whose asked value is unknown are skipped.
        values: the known values.

    Returns:
        JSON values: `n`, number of sounds; `right`, the share heard as asked, with its 95 % interval `low` to `high`
        (None without sounds); `spread`, how many values are heard, counted as the perplexity of their shares; `values`,
        by value: `n`, `right`, and `mistaken`, the value most often heard instead, or None.

    Source: Wilson 1927, Probable Inference, for the interval.
    """
    spelled = {fold(value): value for value in values}
    counts = {value: Counter() for value in values}
    for asked, heard in pairs:
        if fold(asked) in spelled:
            counts[spelled[fold(asked)]][heard] += 1
    every = sum(counts.values(), start=Counter())
    shares = [count / every.total() for count in every.values()]
    rows = {}
    for value, heard in counts.items():
        wrong = [other for other, _ in heard.most_common() if other != value]
        share = heard[value] / heard.total() if heard else None
        rows[value] = {"n": heard.total(), "right": share, "mistaken": wrong[0] if wrong else None}
    n, right = every.total(), sum(heard[value] for value, heard in counts.items())
    low, high = interval(right, n) if n else (None, None)
    spread = math.exp(-sum(share * math.log(share) for share in shares)) if n else None
    return {"n": n, "right": right / n if n else None, "low": low, "high": high, "spread": spread, "values": rows}


def interval(count: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, of which `count` of `n` are seen."""
    z = 1.96
    share = count / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (max(0.0, (centre - reach) / (1 + z * z / n)), min(1.0, (centre + reach) / (1 + z * z / n)))


@torch.inference_mode()
def _decode(run: Run, x: Tensor) -> Tensor:
    return run.frontend.decode(x[None].to(run.frontend.device))[0].cpu()


@torch.inference_mode()
def _round_trip(run: Run, wav: Tensor) -> Tensor:
    return _decode(run, run.frontend.encode(wav[None].to(run.frontend.device))[0])[:, : wav.shape[1]]
