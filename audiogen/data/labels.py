"""What is to be heard in a file, as far as its name says it."""

from collections.abc import Iterable
from pathlib import PurePosixPath


def label_of(path: str) -> str:
    """The label in a file's path, relative to its folder.

    The folder that it lies in (Speech Commands: "yes/004ae714_nohash_0.wav" -> "yes"), else what stands before the
    first underscore of its name (Free Spoken Digit Dataset: "7_jackson_32.wav" -> "7"); "" if there is neither.
    """
    place = PurePosixPath(path)
    if place.parent.name:
        return place.parent.name
    first, underscore, _ = place.stem.partition("_")
    return first if underscore else ""


def label_names(paths: Iterable[str]) -> list[str]:
    """The labels that occur, sorted; empty unless every file has one and there are at least two."""
    labels = {label_of(path) for path in paths}
    return [] if "" in labels or len(labels) < 2 else sorted(labels)
