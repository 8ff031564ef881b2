"""Select the samples of a run for the page, and caption them."""

from dataclasses import dataclass
from pathlib import Path

from .clips import Clip
from .run_reader import RunFolder, Sample, number

# Per run; with clips of a few seconds, the page stays below 10 MB, or 20 MB with labels.
MOST_PAIRS, MOST_GENERATED, MOST_ASKED, MOST_ALONG, MOST_OTHER = 4, 8, 36, 4, 4


@dataclass(frozen=True)
class Choice:
    """The clips of one run, in the order of the page.

    Attributes:
        pairs: originals, each followed by its round trip.
        generated: from the final weights, or the newest ones during training; those with a prompt last.
        asked: takes of each value of a label, value by value.
        along: one clip for each of some other training steps, in order.
        other: clips without a description.
        left_out: number of samples that are not on the page.
        takes: number of takes of each value among `asked`.
    """

    pairs: list[Clip]
    generated: list[Clip]
    asked: list[Clip]
    along: list[Clip]
    other: list[Clip]
    left_out: int
    takes: int = 0

    @property
    def groups(self) -> tuple[list[Clip], ...]:
        """All groups of clips, in order."""
        return self.pairs, self.generated, self.asked, self.along, self.other


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
    asked = [s for s in run.samples if s.kind == "asked" and s.varied in s.conditions]
    takes = len({s.seed for s in asked})
    asked = asked[:MOST_ASKED] if takes and len(asked) % takes == 0 else []
    other = [s for s in run.samples if s not in (*originals, *made) and s.kind not in ("round-trip", "asked")]

    pairs = [s for pair in paired[:MOST_PAIRS] for s in pair]
    shown = [pairs, generated[:MOST_GENERATED], asked, along, other[:MOST_OTHER]]
    groups = [[describe(s) for s in group] for group in shown]
    return Choice(*groups, left_out=len(run.samples) - sum(map(len, groups)), takes=takes)


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
    if sample.kind == "asked" and sample.varied is not None:
        return describe_take(sample, sample.varied)
    notes = []
    if sample.prompt_seconds:
        name = f", from {Path(sample.prompt).name}" if sample.prompt else ""
        notes.append(f"The first {sample.prompt_seconds:.1f} s are the prompt{name}; the rest is generated.")
    if sample.meaning:
        voice = f", in the voice of {Path(sample.prompt).name}" if sample.prompt else ""
        notes.append(f"Renders {Path(sample.meaning).name}{voice}.")
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


def describe_take(sample: Sample, label: str) -> Clip:
    """Make the clip of a sample that varies a label; what is heard stands out if it is not what was asked."""
    title = str(sample.conditions[label])
    others = [f"{name} {value}" for name, value in sample.conditions.items() if name != label]
    notes = [", ".join([*others, f"seed {sample.seed}"])]
    wrong = {name: value for name, value in sample.heard.items() if sample.conditions.get(name, value) != value}
    if wrong:
        said = ", ".join(f"{name} {value}" for name, value in wrong.items())
        return Clip(sample.path, title, label, notes, warning=f"Heard as {said}")
    return Clip(sample.path, title, label, [*notes, *(["Heard as asked"] if sample.heard else [])])
