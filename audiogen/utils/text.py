"""Compare texts typed by users, and put values into sentences."""

from collections.abc import Sequence


def fold(value: str) -> str:
    """Normalise a text so that values that differ only in case or outer spaces become equal."""
    return value.strip().casefold()


def listed(values: Sequence[str], most: int = 20) -> str:
    """List values in a sentence, at most the first `most`."""
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


def plural(count: int, noun: str) -> str:
    """Return a count and a noun, in the plural unless the count is 1."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
