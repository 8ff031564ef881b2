"""Find the labels of files, and decide which of them a model can learn.

The places below are searched in this order; the first one that has labels is used:

    metadata.csv or .tsv in the folder      file,instrument,tempo
                                            drums/a.wav,snare,120
    NAME.json beside NAME.wav               {"instrument": "snare", "tempo": 120}
    NAME.txt beside NAME.wav                a caption
    the folder that a file lies in          snare/a.wav

A pattern over file names, such as "{digit}_{speaker}_{}", is given by the user; its labels are added to the others.
Labels are stored by the content hash (SHA-256) of their file, so they can be found in a cache and in a run folder.
"""

import csv
import logging
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ConfigError, DataError, printable
from ..utils.files import atomic_write_json, open_regular
from ..utils.json_files import LISTS, parse_json, read_format
from ..utils.pitch import midi_pitch
from ..utils.remote import fetched, is_remote
from ..utils.text import fold, listed
from .index import FileEntry, Index
from .split import Part, Split

log = logging.getLogger("audiogen")

FORMAT = 1
LABELS_FILE = "conditions.json"
METADATA = {"metadata.csv": ",", "metadata.tsv": "\t"}
#: The first lines of a metadata.csv, in words.
EXAMPLE = "file,instrument and drums/a.wav,snare"
#: A column of numbers with more different values than this, or with fractions, is learned as a number; with fewer, each
#: value is a label.
FEW_VALUES = 24
#: Columns of these names are captions; so are others, if most values are unlike and of three words or more.
CAPTIONS = ("text", "caption")
#: A column of this name whose values are MIDI numbers or names such as C4 is learned as a pitch.
PITCH = "pitch"
#: Maximum number of bytes of a CSV, and of a file beside a sound.
MAX_METADATA, MAX_SIDECAR = 2**28, 2**20


@dataclass(frozen=True)
class Labels:
    """The labels of files.

    Attributes:
        files: SHA-256 of a file -> its labels by name.
        source: where the labels come from, in words; empty if there are none.
        pattern: the pattern over file names; empty for none.
    """

    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    source: str = ""
    pattern: str = ""

    @property
    def names(self) -> list[str]:
        """The names of all labels in the order in which they occur."""
        return list(dict.fromkeys(name for texts in self.files.values() for name in texts))

    def over(self, others: "Labels") -> "Labels":
        """Merge with other labels; where both have a label of the same name, this one's value counts."""
        shas = {**others.files, **self.files}
        files = {sha: {**others.files.get(sha, {}), **self.files.get(sha, {})} for sha in shas}
        sources = dict.fromkeys(filter(None, (others.source, self.source)))
        return Labels(files, " and ".join(sources), self.pattern or others.pattern)

    def column(self, name: str, parts: Iterable[Part]) -> list[str]:
        """Return the values of the label `name`, for those files that have it."""
        found = (self.files.get(part.file.sha256, {}).get(name) for part in parts)
        return [text for text in found if text is not None]

    def save(self, folder: Path) -> None:
        """Write conditions.json into a cache or a run folder."""
        files = {sha: dict(row) for sha, row in self.files.items()}
        values = {"format": FORMAT, "source": self.source, "pattern": self.pattern, "files": files}
        atomic_write_json(folder / LABELS_FILE, values)


def read_labels(folder: Path) -> Labels:
    """Read what `Labels.save` wrote; no labels if there is no such file.

    Raises:
        DataError: it is damaged.
    """
    try:
        values = read_format(folder / LABELS_FILE, FORMAT, DataError, "remove it to go without labels", LISTS)
    except FileNotFoundError:
        return Labels()
    files, source, pattern = values.get("files"), values.get("source"), values.get("pattern")
    if (
        not isinstance(source, str)
        or not isinstance(pattern, str)
        or not isinstance(files, dict)
        or not all(
            isinstance(row, dict) and all(isinstance(text, str) for text in row.values()) for row in files.values()
        )
    ):
        raise DataError(f"{folder / LABELS_FILE}: is damaged; remove it to go without labels")
    return Labels(files, source, pattern)


def find_labels(index: Index, pattern: str | None = None) -> Labels:
    """Look for labels of the files of a folder.

    Args:
        index: the folder and its files.
        pattern: pattern over file names, such as "{digit}_{speaker}_{}"; {} matches a part that is not a label. A
            pattern with a slash applies to whole paths.

    Raises:
        DataError: a file of labels can't be read; the message names file, row and column.
        ConfigError: the pattern is malformed, or matches no file.
    """
    rows, source, unused = _from_metadata(index)
    if unused:
        log.warning(
            "%s: rows that are not used, since no sound file here, or more than one, has their name: %s",
            index.folder / source,
            listed(unused, 3),
        )
    if not rows:
        rows, source = _from_sidecars(index)
    if pattern is not None:
        rows, source = _from_pattern(index, pattern, rows, source)
    elif not rows:
        rows, source = _from_folders(index)
    by_content = {file.sha256: row for file in index.files if (row := rows.get(file.path))}
    return Labels(by_content, source, pattern or "") if by_content else Labels()


def find_labels_of_file(path: Path, pattern: str | None = None) -> dict[str, str]:
    """Look for the labels of one file in its folder and the one above, where those of a folder's files would be.

    Args:
        path: a sound file; it is not read.
        pattern: as in `find_labels`; ignored if it does not match the file.

    Raises:
        DataError: as in `find_labels`.
    """
    path = path.absolute()
    row: dict[str, str] = {}
    for folder in path.parents[:2]:
        place = str(path.relative_to(folder).as_posix())
        index = Index(folder, [FileEntry(place, "", 1, 1, 0, 0.0, 0.0, False, 0.0)], [])
        row = row or _from_metadata(index)[0].get(place, {}) or _from_sidecars(index)[0].get(place, {})
        if pattern is not None:
            with suppress(ConfigError):
                row = _from_pattern(index, pattern, {place: row}, "")[0][place]
    return row or {"folder": path.parent.name}


# ---- sources: each function returns {path: {name: text}}, and the source in words

Rows = dict[str, dict[str, str]]


def _from_metadata(index: Index) -> tuple[Rows, str, list[str]]:
    """Return the labels by path, their source, and the names in the file that belong to none of the files."""
    for name, delimiter in METADATA.items():
        path = index.folder / name
        if path.is_file():
            with fetched(path) as local:
                rows, others = _read_metadata(local, delimiter, [file.path for file in index.files])
            left_out = {alias for file in index.rejected for alias in (file.path, *_aliases(file.path))}
            return rows, name, [other for other in others if other not in left_out]
    return {}, "", []


def _aliases(path: str) -> set[str]:
    """Return the names of a file without its suffix, its folder or both."""
    place = PurePosixPath(path)
    return {str(place.with_suffix("")), place.name, place.stem} - {path}


def _read_metadata(path: Path, delimiter: str, paths: Sequence[str]) -> tuple[Rows, list[str]]:
    """Return the labels by path, and the names in the first column that are those of no file, or of several."""
    lines = _read_text(path, MAX_METADATA).splitlines()
    if lines and delimiter == "," and "," not in lines[0] and ";" in lines[0]:
        delimiter = ";"  # used by spreadsheets in countries where the comma is the decimal point
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    # A name without suffix or folder is accepted if it matches a single file.
    there, short = set(paths), {}
    for known in paths:
        for alias in _aliases(known):
            short[alias] = None if alias in short else known
    rows: Rows = {}
    unused: list[str] = []
    try:
        header = [name.strip() for name in next(table, [])]
        if not header or fold(header[0]) != "file":
            called = f", not {printable(header[0])}" if header else ""
            raise DataError(
                f"{path}: row 1: the first column must be called file{called}, as in a file "
                f"whose first lines are {EXAMPLE}"
            )
        _check_header(path, header)
        for row in table:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path}: row {table.line_num}"
            if len(row) != len(header):
                column = header[len(row)] if len(row) < len(header) else f"number {len(header) + 1}"
                raise DataError(
                    f"{where}, column {column}: has {len(row)} values, but the first row has {len(header)} names; "
                    "quote values that contain a separator"
                )
            named = row[0].strip().replace("\\", "/").removeprefix("./")
            file = named if named in there else short.get(named)
            if file is None:
                unused.append(named)
                continue
            texts = {name: cell.strip() for name, cell in zip(header[1:], row[1:], strict=True) if cell.strip()}
            if rows.setdefault(file, texts) != texts:
                raise DataError(
                    f"{where}, column file: {printable(named)} is listed twice, with different values; keep one row"
                )
    except csv.Error as error:
        raise DataError(f"{path}: row {table.line_num}: not valid {path.suffix[1:].upper()} ({error})") from error
    return rows, unused


def _check_header(path: Path, header: Sequence[str]) -> None:
    for place, name in enumerate(header[1:], 2):
        if not name or header.index(name) != place - 1:
            raise DataError(f"{path}: row 1, column {place}: {f'{name} is used twice' if name else 'has no name'}")


def _from_sidecars(index: Index) -> tuple[Rows, str]:
    rows: Rows = {}
    if is_remote(index.folder):  # two questions for each file, which a store takes long to answer
        return rows, ""
    for file in index.files:
        path = (index.folder / file.path).with_suffix(".json")
        if path.is_file():
            rows[file.path] = _read_sidecar(path)
        elif path.with_suffix(".txt").is_file():
            caption = " ".join(_read_text(path.with_suffix(".txt"), MAX_SIDECAR).split())
            rows[file.path] = {"text": caption} if caption else {}
    rows = {path: row for path, row in rows.items() if row}
    return rows, "files beside the sounds" if rows else ""


def _read_sidecar(path: Path) -> dict[str, str]:
    try:
        values = parse_json(_read_text(path, MAX_SIDECAR).encode())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise DataError(f'{path}: must contain labels by name, such as {{"instrument": "snare"}}')
    kept = {name.strip(): value for name, value in values.items() if isinstance(value, str | int | float)}
    return {name: str(value).strip() for name, value in kept.items() if name and str(value).strip()}


def _from_folders(index: Index) -> tuple[Rows, str]:
    rows = {file.path: {"folder": PurePosixPath(file.path).parent.name} for file in index.files}
    rows = {path: row for path, row in rows.items() if row["folder"]}
    several = len({row["folder"] for row in rows.values()}) > 1
    return (rows, "folder names") if several else ({}, "")


def _from_pattern(index: Index, pattern: str, rows: Rows, source: str) -> tuple[Rows, str]:
    matcher = compile_pattern(pattern)
    found: Rows = {}
    for file in index.files:
        match = matcher.fullmatch(str(PurePosixPath(file.path).with_suffix("")) if "/" in pattern else _stem(file.path))
        if match:
            found[file.path] = {name: text.strip() for name, text in match.groupdict().items() if text.strip()}
    if not found:
        example = _stem(index.files[0].path) if index.files else ""
        raise ConfigError(f"--label-pattern: {pattern!r} matches none of the files, such as {printable(example)!r}")
    both = {path: {**found.get(path, {}), **rows.get(path, {})} for path in {**rows, **found}}
    return both, " and ".join(filter(None, (source, f"the pattern {pattern}")))


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile "{digit}_{speaker}_{}" to a regular expression with a group for each name.

    Raises:
        ConfigError: it contains no name, the same name twice, or an unmatched brace.
    """
    pieces = re.split(r"\{(\w*)\}", pattern)
    texts, names = pieces[::2], [name for name in pieces[1::2] if name]
    if not names or len(set(names)) < len(names) or any(brace in text for text in texts for brace in "{}"):
        raise ConfigError(
            f"--label-pattern: {pattern!r} must contain names in braces, each once, such as {{digit}}_{{speaker}}_{{}}"
        )
    groups = [f"(?P<{name}>.+?)" if name else ".*?" for name in pieces[1::2]]
    return re.compile("".join(re.escape(text) + group for text, group in zip(texts, [*groups, ""], strict=True)))


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _read_text(path: Path, most: int) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    if len(data) > most:
        raise DataError(f"{path}: is larger than {most:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: row {row}: not valid UTF-8; save it as UTF-8") from error


# ---- which labels a model can learn


@dataclass(frozen=True)
class Column:
    """The values of one label, and whether a model can learn it.

    Attributes:
        name: name of the label.
        counts: value -> number of training and held-out files; values in the spelling that occurs first.
        missing: number of files without a value.
        one_sided: values that occur only in training files, or only in held-out files.
        settings: settings of the condition, {"kind": "label", "number", "pitch" or "text", ...}; None if it can't be
            learned.
        reason: why it can't be learned.
    """

    name: str
    counts: Mapping[str, int]
    missing: int
    one_sided: Sequence[str]
    settings: Mapping[str, Any] | None
    reason: str = ""


def describe_labels(labels: Labels, sides: Split) -> list[Column]:
    """Describe the values of each label over the files of a split."""
    return [_column(labels, name, sides) for name in labels.names]


def _column(labels: Labels, name: str, sides: Split) -> Column:
    train, held_out = labels.column(name, sides.train), labels.column(name, sides.held_out)
    spelling: dict[str, str] = {}
    for text in sorted(train) + sorted(held_out):
        spelling.setdefault(fold(text), text)
    counts = Counter(spelling[fold(text)] for text in (*train, *held_out))
    ordered = {value: counts[value] for value in sorted(counts, key=_natural)}
    in_train, in_held_out = {fold(text) for text in train}, {fold(text) for text in held_out}
    one_sided = [value for value in ordered if (fold(value) in in_train) != (fold(value) in in_held_out)]
    missing = len(sides.train) + len(sides.held_out) - counts.total()
    numbers = [_number(text) for text in train]
    values = tuple(value for value in ordered if fold(value) in in_train)
    settings, reason = None, ""
    if len(values) < 2:
        reason = "it has only one value" if values else "no training file has a value"
    elif fold(name) in CAPTIONS or 2 * len(values) > len(train) < 2 * sum(len(text.split()) > 2 for text in train):
        settings, one_sided = {"kind": "text"}, []
    elif fold(name) == PITCH and all(map(math.isfinite, pitches := [midi_pitch(text) for text in train])):
        settings, one_sided = {"kind": "pitch", "low": min(pitches), "high": max(pitches)}, []
    elif all(map(math.isfinite, numbers)) and (
        len(set(numbers)) > FEW_VALUES or any(number != int(number) for number in numbers)
    ):
        different = sorted(set(numbers))
        gap = statistics.median(after - before for before, after in pairwise(different))
        settings, one_sided = {"kind": "number", "low": different[0], "high": different[-1], "gap": gap}, []
    elif 2 * len(values) > len(train):
        reason = "its values occur in fewer than two files on average"
    else:
        settings = {"kind": "label", "values": values}
    return Column(name, ordered, missing, one_sided, settings, reason)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _natural(text: str) -> tuple[bool, float, str]:
    number = _number(text)
    return (math.isnan(number), 0.0 if math.isnan(number) else number, fold(text))


# ---- labels from paths alone, for the lessons


def label_of(path: str) -> str:
    """Return the label in a file's path, which is relative to the corpus folder; "" if there is none.

    The label is the name of the parent folder, as in Speech Commands, or else the part of the file's name before the
    first underscore, as in the Free Spoken Digit Dataset.

    Example:
        >>> label_of("yes/004ae714_nohash_0.wav"), label_of("7_jackson_32.wav"), label_of("rain.wav")
        ('yes', '7', '')
    """
    place = PurePosixPath(path)
    if place.parent.name:
        return place.parent.name
    first, underscore, _ = place.stem.partition("_")
    return first if underscore else ""


def label_names(paths: Iterable[str]) -> list[str]:
    """Return all labels, sorted; an empty list unless every file has one and there are at least two."""
    labels = {label_of(path) for path in paths}
    return [] if "" in labels or len(labels) < 2 else sorted(labels)
