"""Compare texts typed by users, and list them."""

from collections.abc import Sequence


def fold(value: str) -> str:
    """Normalise a text so that values that differ only in case or outer spaces become equal."""
    return value.strip().casefold()


def listed(values: Sequence[str], most: int = 20) -> str:
    """List values in a sentence, at most the first `most`."""
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
