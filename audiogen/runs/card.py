"""Write the model card of a run: what it was trained on, how well it does beside simple models, and how to use it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Part, read_labels
from ..errors import RunError
from ..spec import Unit
from ..utils.files import open_regular
from ..utils.json_files import SETTINGS
from .event_log import read_metrics
from .folder import read_config, read_report, read_split

SAMPLES = "samples"
#: The generated part of a card; what users write outside of it stays.
BEGIN = "<!-- audiogen: this part is made from the run; what you write outside of it stays -->"
END = "<!-- audiogen: end -->"
#: Maximum number of values of a label that are listed.
MOST_VALUES = 20
#: What can be asked for besides labels and numbers, by kind of condition.
OTHERS = {
    "text": "captions",
    "melody": "that of a recording",
    "loudness": "that of a recording",
    "timbre": "that of a recording",
}
BASELINES = {
    "uniform": "uniform guess",
    "unigram": "counts of single codes",
    "bigram": "counts of pairs of codes",
    "gaussian": "one Gaussian, fitted to the training frames",
    "autoregression": "each frame linearly from the one before",
}


@dataclass(frozen=True)
class CardSample:
    """A generated sound for the card: its file, its seed, and what it was asked for."""

    path: Path
    seed: Any
    asked: Mapping[str, str]


def write_card(
    folder: Path, places: Sequence[Path], samples: Sequence[CardSample], license: str | None, name: str | None
) -> str:
    """Return the model card of a run, in Markdown with the metadata that the hub reads.

    Args:
        folder: the run folder. Its README.md, if there is one, is kept outside of the generated part; without
            metrics, as in a run from the hub, it is kept as it is.
        places: the folders of its stages in order, or its own.
        samples: sounds to list.
        license: identifier of a licence, such as "cc-by-4.0"; None for that of README.md, or "unknown".
        name: "OWNER/NAME" on the hub; None for a name to fill in.
    """
    old, measured = _read_old(folder), [_last(read_metrics(place), "final") for place in places]
    if license is not None and not re.fullmatch(r"[\w.+-]{1,64}", license):
        raise RunError(f"license: {license!r} is no identifier of a licence; write one such as cc-by-4.0")
    if old and measured[-1] is None:
        return _with_license(old, license)
    body = "\n\n".join(
        [
            BEGIN,
            *_introduction(places),
            *_how_to_use(places, name or "OWNER/NAME"),
            *_listed_samples(samples),
            *_training_data(places),
            *_figures(folder, places, measured),
            END,
        ]
    )
    if old and BEGIN in old and END in old:
        before, after = old.partition(BEGIN)[0], old.partition(END)[2]
        return _with_license(before + body + after, license)
    title = (name or folder.resolve().name).rpartition("/")[2]
    metadata = (
        f"---\nlibrary_name: audiogen\nlicense: {license or 'unknown'}\ntags:\n- audio\n- audio-generation\n---\n"
    )
    return f"{metadata}\n# {_plain(title)}\n\n{body}\n" + (f"\n{old}" if old else "")


def license_of(card: str) -> str:
    """Return the licence that a card states, "unknown" if none."""
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)", card)
    return found[1] if found else "unknown"


def _read_old(folder: Path) -> str:
    try:
        with open_regular(folder / "README.md") as file:
            return file.read(SETTINGS).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _with_license(card: str, license: str | None) -> str:
    head = re.match(r"---\n(?:.*\n)*?---\n", card)
    if license is None or head is None:
        return card
    kept = "".join(line for line in head[0].splitlines(True)[1:-1] if not line.startswith("license:"))
    return f"---\nlicense: {license}\n{kept}---\n" + card[head.end() :]


def _introduction(places: Sequence[Path]) -> list[str]:
    config = read_config(places[-1])
    size = sum((place / "model.safetensors").stat().st_size for place in places)
    kinds = " and then ".join(f"`{c.to_dict()['frontend']['kind']}`" for c in map(read_config, places))
    what = (
        f"A model of sound at {_rate(config):,} Hz, trained with `audiogen`: a `{config.to_dict()['backbone']['kind']}`"
    )
    said = f"{what} over the front-end {kinds}; {size / 1e6:,.1f} MB."
    if config.training.start == "base":
        said += (
            " It was fine-tuned from the base model that ships with audiogen, which was trained on recordings under "
            "CC0, CC BY and CC BY-SA licences; audiogen/weights/base/README.md names them and gives the credits."
        )
    return [said]


def _rate(config: Any) -> int:
    return int(config.to_dict()["frontend"].get("sample_rate", 0))


def _how_to_use(places: Sequence[Path], name: str) -> list[str]:
    config = read_config(places[-1])
    asked = {n: c.values[0] for n, c in config.conditions.items() if getattr(c, "values", None)}
    label = "".join(f" --label {n}={_quoted(value)}" for n, value in list(asked.items())[:1])
    given = f", conditions={dict(list(asked.items())[:1])!r}" if asked else ""
    return [
        "## How to use it",
        f"```sh\naudiogen generate hf://{name} --out out --num 4{label}\n```",
        "```python\nimport audiogen\n\n"
        f'run = audiogen.load_run("hf://{name}")\n'
        f"wavs = run.generate(seconds=4, num=4, seed=0{given})"
        f"  # (4, {config.num_channels}, N) at run.sample_rate\n```",
    ]


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w.-]+", value) else "'" + value.replace("'", r"'\''") + "'"


def _listed_samples(samples: Sequence[CardSample]) -> list[str]:
    if not samples:
        return []
    rows = []
    for sample in samples:
        asked = ", ".join(f"{name} {value}" for name, value in sample.asked.items()) or "nothing"
        rows.append([f"[{_plain(sample.path.name)}]({SAMPLES}/{sample.path.name})", str(sample.seed), _plain(asked)])
    return ["## Samples", "Generated, not chosen:", _table(["sound", "seed", "asked for"], rows)]


def _training_data(places: Sequence[Path]) -> list[str]:
    split, labels, config = read_split(places[-1]), read_labels(places[-1]), read_config(places[-1])
    if not split.train:
        return []

    def amount(side: Sequence[Part]) -> str:
        seconds = sum(part.seconds for part in side)
        return f"{len({part.file.sha256 for part in side}):,} files, {seconds / 60:,.1f} minutes"

    rates = sorted({part.file.sample_rate for part in split.train})
    at = f"{rates[0]:,} Hz" if len(rates) == 1 else f"{rates[0]:,} to {rates[-1]:,} Hz"
    said = [f"Trained on {amount(split.train)}, recorded at {at}; held out for the figures below: "
            f"{amount(split.held_out)}."]  # fmt: skip
    rows = []
    for name, part in config.to_dict().get("conditions", {}).items():
        if part["kind"] == "label":
            values, counts = part["values"], labels.column(name, split.train)
            shown = [f"{_plain(value)} ({counts.count(value)})" for value in values[:MOST_VALUES]]
            more = f", and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
            rows.append([_plain(name), ", ".join(shown) + more])
        elif "low" in part:
            rows.append([_plain(name), f"{part['low']:g} to {part['high']:g}"])
        elif part["kind"] in OTHERS:
            rows.append([_plain(name), OTHERS[part["kind"]]])
    if rows:
        said.append(_table(["can be asked for", "values (training files)"], rows))
    return ["## Training data", *said]


def _figures(folder: Path, places: Sequence[Path], measured: Sequence[dict[str, Any] | None]) -> list[str]:
    said: list[str] = []
    for place, final in zip(places, measured, strict=True):
        if final is None:
            continue
        unit = Unit(final["unit"])
        counted = final.get("baselines") or {}
        rows = [["this model", f"{final['loss']:.3f}", _bits(final.get("bits_per_second"))]]
        rows += [
            [BASELINES.get(name, _plain(name)), f"{values['loss']:.3f}", _bits(values.get("bits_per_second"))]
            for name, values in counted.items()
        ]
        title = f"{unit.per_entry} of held-out files" + (f", stage {place.name}" if len(places) > 1 else "")
        if all(row[2] == "" for row in rows):
            said.append(_table([title, "lower is better"], [row[:2] for row in rows]))
        else:
            said.append(_table([title, "lower is better", "bits per second of audio"], rows))
    final, report = measured[-1], read_report(places[-1])
    if report is not None and final is not None and report.get("step") == final.get("step"):
        said += _heard_distances(report)
    heard = (report or {}).get("heard") or (_last(read_metrics(places[-1]), "heard") or {}).get("labels")
    said += _asked(heard or {})
    return ["## Figures", *said] if said else []


def _heard_distances(report: Mapping[str, Any]) -> list[str]:
    """Return the distance (KAD) of generated sound to held-out recordings, if the report has it."""
    found = report.get("generated") or {}
    if not found.get("kad"):
        return []
    names = {
        "generated": "generated sound",
        "training": "training recordings (floor)",
        "noise": "noise of the same spectrum (ceiling)",
    }
    rows = []
    for name, words in names.items():
        if name in found["kad"]:
            value, low, high = (1000 * found["kad"][name][key] for key in ("value", "low", "high"))
            rows.append([words, f"{value:.0f} ({low:.0f} to {high:.0f})"])
    return [
        _table([f"KAD x 1000 of {found['num']} clips to held-out recordings (95 % interval)", "lower is better"], rows)
    ]


def _asked(heard: Mapping[str, Any]) -> list[str]:
    """Return how often the label that was asked for is the one that a classifier hears."""
    rows = []
    for label, sets in heard.items():
        shares = [sets[name] for name in ("generated", "held_out")]
        if shares[0].get("right") is not None:
            rows.append([_plain(label), *(_share(one) for one in shares)])
    header = ["label", "generated sound: heard as asked", "held-out recordings: heard as labelled"]
    return [_table(header, rows)] if rows else []


def _share(tally: Mapping[str, Any]) -> str:
    return "" if tally.get("right") is None else f"{100 * tally['right']:.0f} % of {tally['n']}"


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Escape what Markdown and HTML would read as more than text."""
    return re.sub(r"([\\`*_\[\]<>|&])", r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\&", "&amp;")


def _last(events: Sequence[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((event for event in reversed(events) if event.get("event") == kind), None)
