"""The command-line arguments of lessons."""

import argparse
from pathlib import Path

#: Printed and shown on the page where a lesson runs with --short.
SHORT = (
    "Short form: everything is as small as it can be and trained for a few steps, to check that it runs. Its figures "
    "and sounds show nothing of what the lesson is about; run it without --short for those."
)


class LessonParser(argparse.ArgumentParser):
    """A parser of the arguments that all lessons share: the folder, --out and --short.

    By default, the lesson `recipes/NAME.py` writes to runs/NAME, and with --short to runs/NAME-short, so that the two
    do not interfere. With --short, the output starts with a line that says what it is worth.

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
        """Parse the arguments, fill in --out, and announce the short form."""
        given = super().parse_args(*args, **kwargs)
        given.out = given.out or Path("runs") / (self.lesson + ("-short" if given.short else ""))
        if given.short:
            print(SHORT)
        return given
