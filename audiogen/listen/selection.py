"""Select the samples of a run for the page, and caption them."""

from dataclasses import dataclass
from pathlib import Path

from .clips import Clip
from .run_reader import RunFolder, Sample, number

# Per run; with clips of a few seconds, the page stays below 10 MB.
MOST_PAIRS, MOST_GENERATED, MOST_ALONG, MOST_OTHER = 4, 8, 4, 4


@dataclass(frozen=True)
class Choice:
    """The clips of one run, in the order of the page.

    Attributes:
        pairs: originals, each followed by its round trip.
        generated: from the final weights, or the newest ones during training; those with a prompt last.
        along: one clip for each of some other training steps, in order.
        other: clips without a description.
        left_out: number of samples that are not on the page.
    """

    pairs: list[Clip]
    generated: list[Clip]
    along: list[Clip]
    other: list[Clip]
    left_out: int

    @property
    def groups(self) -> tuple[list[Clip], ...]:
        """All groups of clips, in order."""
        return self.pairs, self.generated, self.along, self.other


def choose(run: RunFolder) -> Choice:
    """Choose a limited number of samples for each group."""
    originals = [s for s in run.samples if s.kind == "original"]
    trips = [s for s in run.samples if s.kind == "round-trip"]
    paired = []
    for original in originals:
        partner = next((s for s in trips if s.source == original.source and s.source is not None), None)
        if partner:
            trips.remove(partner)
        paired.append([original, partner] if partner else [original])
    paired += [[trip] for trip in trips]

    made = [s for s in run.samples if s.kind == "generated"]
    # The run keeps its best weights, which need not be the last.
    steps = {s.step for s in made if s.step is not None}
    kept = number(run.last("final").get("step"))
    kept = kept if kept in steps else max(steps, default=None)
    generated = sorted((s for s in made if s.step in (kept, None)), key=lambda s: bool(s.prompt_seconds))
    along = [next(s for s in made if s.step == step) for step in spread(sorted(steps - {kept}), MOST_ALONG)]
    other = [s for s in run.samples if s not in (*originals, *made) and s.kind != "round-trip"]

    shown = [[s for pair in paired[:MOST_PAIRS] for s in pair], generated[:MOST_GENERATED], along, other[:MOST_OTHER]]
    groups = [[describe(s) for s in group] for group in shown]
    return Choice(*groups, left_out=len(run.samples) - sum(map(len, groups)))


def spread(values: list[int], most: int) -> list[int]:
    """Pick at most `most` values at equal distances, including the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def describe(sample: Sample) -> Clip:
    """Make the clip of a sample, with title and notes."""
    if sample.kind in ("original", "round-trip"):
        kind = "Original" if sample.kind == "original" else "Round trip"
        return Clip(sample.path, Path(sample.source or sample.path.name).name, kind)
    notes = []
    if sample.prompt_seconds:
        name = f", from {Path(sample.prompt).name}" if sample.prompt else ""
        notes.append(f"The first {sample.prompt_seconds:.1f} s are the prompt{name}; the rest is generated.")
    facts = [
        f"{name.replace('_', '-')} {value:g}"
        for name, value in sample.sampling.items()
        if isinstance(value, int | float)
    ]
    facts += [f"seed {sample.seed}"] if sample.seed is not None else []
    if facts:
        notes.append(", ".join(facts))
    kind = {"generated": "Generated"}.get(sample.kind, sample.kind)
    if sample.step is not None:
        kind += f" · step {sample.step:,}"
    return Clip(sample.path, sample.path.stem, kind, notes, sample.prompt_seconds or 0.0)
