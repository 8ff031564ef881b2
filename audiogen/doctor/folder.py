"""Report on a folder of sound files: which files are used, which are not and why, and what remains to train on."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..data import FileEntry, Index, Labels, Split, describe_labels, find_labels, is_cache, long_enough, scan
from ..data.labels import EXAMPLE, Column
from ..errors import printable
from ..runs.outlook import Outlook, default_outlook
from ..utils.text import listed, plural

if TYPE_CHECKING:
    from ..commands.plan import Flags
    from ..data import EncodedCache

#: Up to this many kept files are listed without --verbose.
FEW_FILES = 30
#: Above this fraction of samples at full scale, clipping can be heard.
AUDIBLE_CLIPPING = 1e-3
#: First words of the reason that data.index gives for copies.
DUPLICATE = "has the same content as"


def check_folder(
    console: Console,
    folder: str | Path,
    verbose: bool = False,
    flags: "Flags | None" = None,
    label_pattern: str | None = None,
) -> "Index | EncodedCache":
    """Print a line for each file that is left out or remarkable, and the totals of the folder.

    Args:
        console: where to print.
        folder: folder of sound files, or an encoded cache.
        verbose: print a line for every kept file.
        flags: options of `train`; None for its defaults, for which a folder of sound files needs no torch.
        label_pattern: pattern over file names; see `find_labels`.

    Returns:
        The index or the cache, which `check_overfit` accepts instead of the folder.

    Raises:
        DataError: there is no such folder, no sound in it, or too little to hold anything out.
    """
    source = _open(folder)
    index = source if isinstance(source, Index) else source.index
    _list_files(console, index, verbose or len(index.files) <= FEW_FILES)
    index.require_files()

    outlook = _outlook(source, flags)
    usable = long_enough(index, outlook.spec)
    usable.require_files()
    sides = outlook.split(usable)
    # If the rate varies, the average rate of the cache.
    rate = math.inf if isinstance(source, Index) else len(source.data) / index.seconds
    crop_seconds = outlook.crop_frames / (outlook.spec.frame_rate or rate)

    rows = _totals(index)
    if len(usable.files) < len(index.files):
        long = {file.path for file in usable.files}
        short = [file.path for file in index.files if file.path not in long]
        number = plural(len(short), "kept file")
        named = listed([printable(path) for path in short], 3)
        rows.append(("too short", f"{number} of at most one frame of the default front-end, not trained on: {named}"))
    rows += [
        ("split", sides.summary),
        ("default crop", _crops(usable.files, crop_seconds)),
        ("default rate", _rates(usable.files, outlook.spec.sample_rate)),
    ]
    console.print(str(folder), style="italic")
    # Lines rather than a table, so that nothing is cut off on a narrow terminal or in a pipe.
    for name, value in rows:
        console.print(Text.assemble((f"{name:<14}", "bold"), value))
    _list_labels(console, _labels(source, label_pattern), sides)
    return source


def _open(folder: str | Path) -> "Index | EncodedCache":
    if not is_cache(folder):
        return scan(folder)
    from ..data import EncodedCache

    return EncodedCache.open(folder)


def _outlook(source: "Index | EncodedCache", flags: "Flags | None") -> Outlook:
    """Return how training splits and encodes a folder. Defaults need no plan, which would load torch."""
    if flags is None and isinstance(source, Index):
        return default_outlook(source)
    from ..commands.plan import Flags, Plan

    return Plan.for_source(source, flags or Flags()).outlook


def _labels(source: "Index | EncodedCache", pattern: str | None) -> Labels:
    if isinstance(source, Index):
        return find_labels(source, pattern)
    from ..commands.conditions import labels_of

    return labels_of(source, pattern)


def _list_labels(console: Console, labels: Labels, sides: Split) -> None:
    """Print the labels of the files, and which of them `train` would learn."""
    if not labels.files:
        advice = (
            f"none; to ask for a sound by name, sort the files into folders, or write a metadata.csv whose first lines "
            f"are {EXAMPLE}, or give --label-pattern"
        )
        console.print(Text.assemble((f"{'labels':<14}", "bold"), advice))
        return
    console.print(Text.assemble((f"{'labels':<14}", "bold"), f"from {labels.source}"))
    for column in describe_labels(labels, sides):
        console.print(Text.assemble((f"  {column.name:<12}", "bold"), _values(column)))


def _values(column: Column) -> str:
    shown = [f"{value} ({count})" for value, count in list(column.counts.items())[:FEW_FILES]]
    more = len(column.counts) - len(shown)
    learned = column.settings
    if learned is not None and "low" in learned:
        shown, more = [f"{learned['kind']}: from {learned['low']:g} to {learned['high']:g}"], 0
    if learned is not None and learned["kind"] == "text":
        shown, more = [f'{plural(len(column.counts), "caption")}, such as "{next(iter(column.counts))}"'], 0
    parts = [", ".join(shown) + (f" and {more} more values" if more else "")]
    if column.missing:
        parts.append(f"{plural(column.missing, 'file')} without")
    known = learned["values"] if learned is not None and learned["kind"] == "label" else ()
    for side, trained in (("held-out", True), ("training", False)):
        if values := [value for value in column.one_sided[:10] if (value in known) == trained]:
            parts.append(f"no {side} file of {', '.join(values)}")
    if learned is None:
        parts.append(f"not learned: {column.reason}")
    return "; ".join(parts)


def _list_files(console: Console, index: Index, each: bool) -> None:
    """Print one line per file, so that grep works."""
    rows = []
    for file in index.files:
        remark = _remark(file)
        if each or remark:
            about = f"{file.duration:.2f} s, {file.sample_rate} Hz, {plural(file.num_channels, 'channel')}"
            rows.append((file.path, "kept", Text.assemble(about, (remark and f", {remark}", "yellow"))))
    rows += [(file.path, Text("left out", "red"), Text(file.reason)) for file in index.rejected]
    for path, kept, about in sorted(rows, key=lambda row: row[0]):
        console.print(Text.assemble(kept, "  ", path, ": ", about))
    if unlisted := len(index.files) + len(index.rejected) - len(rows):
        console.print(f"{plural(unlisted, 'other file' if rows else 'file')} kept without remark; --verbose lists each")


def _remark(file: FileEntry) -> str:
    remarks = ["near-silent"] if file.silent else []
    if file.clipped > AUDIBLE_CLIPPING:
        remarks.append(f"clipped ({file.clipped:.1%})")
    if file.note:
        remarks.append(f"note: {file.note}")
    return ", ".join(remarks)


def _totals(index: Index) -> list[tuple[str, str]]:
    files = index.files
    found = len(files) + len(index.rejected)
    others = f" ({plural(index.ignored, 'file')} of other kinds skipped)" if index.ignored else ""
    lengths = [file.duration for file in files]
    duplicates = sum(file.reason.startswith(DUPLICATE) for file in index.rejected)
    near_silent = sum(file.silent for file in files)
    clipped = sum(file.clipped > AUDIBLE_CLIPPING for file in files)
    return [
        ("kept", f"{len(files)} of {found} sound files{others}"),
        ("left out", str(len(index.rejected))),
        ("total", time_text(index.seconds)),
        (
            "length",
            f"shortest {time_text(min(lengths))}, median {time_text(statistics.median(lengths))}, longest "
            f"{time_text(max(lengths))}",
        ),
        ("sample rates", _counts(f"{file.sample_rate} Hz" for file in files)),
        (
            "channels",
            _counts({1: "mono", 2: "stereo"}.get(file.num_channels, f"{file.num_channels} channels") for file in files),
        ),
        (
            "loudness",
            f"median {decibels(statistics.median(file.rms for file in files))} RMS, "
            f"highest peak {decibels(max(file.peak for file in files))}",
        ),
        ("near-silent", f"{plural(near_silent, 'file')} whose peaks are below -50 dBFS"),
        ("clipped", f"{plural(clipped, 'file')} with over {AUDIBLE_CLIPPING:.1%} of the samples at full scale"),
        ("duplicates", f"{plural(duplicates, 'file')} left out for being copies of others"),
    ]


def _crops(files: Sequence[FileEntry], crop_seconds: float) -> str:
    shorter = sum(file.duration < crop_seconds for file in files)
    length = time_text(crop_seconds)
    if not shorter:
        return f"{length}; every file is as long or longer"
    which = "every file is" if shorter == len(files) else f"{shorter} of {len(files)} files are"
    return f"{length}; {which} shorter, and joined end to end"


def _rates(files: Sequence[FileEntry], sample_rate: int) -> str:
    higher = sum(file.sample_rate > sample_rate for file in files)
    lost = f"; {plural(higher, 'file')} will lose what is above {sample_rate // 2} Hz" if higher else ""
    return f"{sample_rate} Hz, to which every file is resampled{lost}"


def _counts(values: Iterable[str]) -> str:
    return ", ".join(f"{value}: {count}" for value, count in Counter(values).most_common())


def decibels(level: float) -> str:
    """Format a level (1.0 is full scale) in dBFS."""
    return f"{20 * math.log10(level):.1f} dBFS" if level > 0 else "no sound"


def time_text(seconds: float) -> str:
    """Format a duration.

    Example:
        >>> time_text(0.43), time_text(750), time_text(11520)
        ('0.43 s', '12.5 min', '3.2 h')
    """
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
