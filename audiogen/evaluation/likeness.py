"""Compare the files of another folder with those that a run was trained on."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from ..data import EncodedCache, FileEntry, Sequences
from ..models.conditioning import Conditions
from ..runs.run import Run
from .likelihood import EXACT_FRAMES, FileLikelihood, file_likelihoods

#: Number of the run's own held-out files that are compared: enough for a percentile.
MOST_OWN = 200
#: Share of its own held-out files that a file must exceed to count as harder.
HARDER = 0.95
#: Differences of level in dB, and ratios of length, below which nothing is said.
LEVEL, LENGTH = 6.0, 4.0
#: Shares of harder files from which on some are unlike, and all.
SOME, MOST = 0.25, 0.5


def likeness(
    run: Run,
    files: Sequence[FileEntry],
    scored: Sequence[FileLikelihood],
    given: Sequence[Conditions] | None,
    cache: EncodedCache | None,
) -> dict[str, Any]:
    """Compare files with those of the run.

    Args:
        run: the run.
        files: the files.
        scored: likelihoods of the files.
        given: their conditions; None for none.
        cache: the cache that the run was trained on; None if it is gone.

    Returns:
        JSON values: `level` (median dBFS RMS) and `seconds` (median length), each [of the files, of the run's training
        files]; `narrow`, the number of files whose sample rate is below the run's; and, with a cache, `own`: the
        `loss` of the run's own held-out files in the unit of its spec, their number `files`, and `harder`, how many of
        the files are harder to predict per frame than 95 % of them. Own files are given what these files are given:
        those without labels would be harder for that alone.
    """
    trained = [part.file for part in run.split().train]
    sides = [one for one in (files, trained) if len(one)]
    found: dict[str, Any] = {
        "level": [_level(statistics.median(file.rms for file in side)) for side in sides],
        "seconds": [statistics.median(file.duration for file in side) for side in sides],
        "narrow": sum(file.sample_rate < run.sample_rate for file in files),
    }
    if cache is None:
        return found
    own = Sequences(cache, run.split().held_out)
    if run.model.head.bounds:
        own = own.limited(EXACT_FRAMES)
    before = None if run.before is None else run.before.training_sequences()
    known = run.file_conditions(cache, before=None if before is None else before.cache)
    names = {name for item in given or () for name, x in item.items() if not bool(x.isnan().all())}
    rows = None if known is None else (known.of_item(own.piece(i)) for i in range(len(own)))
    kept = None if rows is None else [{n: x for n, x in row.items() if n in names} for row in islice(rows, MOST_OWN)]
    results = list(file_likelihoods(run.model, islice(own, MOST_OWN), kept))
    ranked = sorted(_per_frame(one) for one in results)
    limit = ranked[math.ceil(HARDER * len(ranked)) - 1]
    total = run.frontend.spec.unit.of_nats(sum(one.nats for one in results))
    found["own"] = {
        "loss": total / sum(one.entries for one in results),
        "files": len(results),
        "harder": sum(_per_frame(one) > limit for one in scored),
    }
    return found


def in_words(found: Mapping[str, Any], loss: float, num_files: int, per_entry: str, sample_rate: int) -> str:
    """Say in a few sentences how alike files are to those of a run.

    Args:
        found: what `likeness` returned.
        loss: of the files.
        num_files: their number.
        per_entry: unit of the loss.
        sample_rate: of the run, in Hz.
    """
    said = []
    if own := found.get("own"):
        share = own["harder"] / num_files
        kind = "The run predicts these files as well as its own"
        if share >= SOME:
            which = "These files" if share >= MOST else "Some of these files"
            kind = f"{which} are unlike what the run was trained on"
        those = "file" if own["files"] == 1 else f"{own['files']} files"
        said.append(
            f"{kind}: {own['harder']} of {num_files} are harder than {HARDER:.0%} of its own {those} held out "
            f"({loss:.3f} {per_entry} here, {own['loss']:.3f} there)"
        )
    differences = []
    if len(found["level"]) == 2 and None not in found["level"]:
        here, there = found["level"]
        if abs(here - there) >= LEVEL:
            how = f"{abs(here - there):.0f} dB {'louder' if here > there else 'quieter'}"
            differences.append(f"{how} (median {here:.0f} dBFS RMS, in training {there:.0f})")
    if len(found["seconds"]) == 2:
        here, there = found["seconds"]
        if max(here, there) >= LENGTH * min(here, there):
            how = "longer" if here > there else "shorter"
            differences.append(f"much {how} (median {here:.3g} s, in training {there:.3g} s)")
    if differences:
        said.append(f"They are {' and '.join(differences)}")
    if found["narrow"]:
        said.append(
            f"{found['narrow']} of {num_files} have a lower sample rate than the run, so they lack the upper part of "
            f"what it generates, up to {sample_rate // 2} Hz"
        )
    return "".join(f"{sentence}. " for sentence in said).strip()


def _level(rms: float) -> float | None:
    return 20 * math.log10(rms) if rms > 0 else None


def _per_frame(one: FileLikelihood) -> float:
    return one.nats / one.frames
