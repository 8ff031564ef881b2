"""Compare texts typed by users."""


def fold(value: str) -> str:
    """Normalise a text so that values that differ only in case or outer spaces become equal."""
    return value.strip().casefold()
