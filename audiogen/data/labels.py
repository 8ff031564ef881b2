"""Labels of recordings, taken from their paths."""

from collections.abc import Iterable
from pathlib import PurePosixPath


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
