"""Compare texts that people typed."""


def fold(value: str) -> str:
    """Return what two spellings of one value have in common: case and outer spaces make no difference."""
    return value.strip().casefold()
