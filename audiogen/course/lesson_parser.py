"""The command-line arguments of lessons."""

import argparse
from pathlib import Path


class LessonParser(argparse.ArgumentParser):
    """A parser of the arguments that all lessons share: the folder, --out and --short.

    By default, the lesson `recipes/NAME.py` writes to runs/NAME, and with --short to runs/NAME-short, so that the two
    do not interfere.

    Args:
        script: the lesson's own path, `__file__`.
        description: the lesson's docstring.
    """

    def __init__(self, script: str, description: str):
        super().__init__(description=description.splitlines()[0])
        self.lesson = Path(script).stem
        self.add_argument("folder", type=Path, help="folder of sound files")
        self.add_argument("--out", type=Path, help=f"folder to write to (runs/{self.lesson})")
        self.add_argument("--short", action="store_true", help="a few steps of everything, to see that it runs")

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:
        """Parse the arguments, and fill in --out."""
        given = super().parse_args(*args, **kwargs)
        given.out = given.out or Path("runs") / (self.lesson + ("-short" if given.short else ""))
        return given
