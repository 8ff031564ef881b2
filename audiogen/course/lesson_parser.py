"""The arguments that all lessons have."""

import argparse
from pathlib import Path


class LessonParser(argparse.ArgumentParser):
    """The arguments that all lessons have: the folder, --out and --short; each adds its own.

    Without --out, the lesson `recipes/NAME.py` writes to runs/NAME, and its short form to runs/NAME-short: what the
    one leaves behind is never in the way of the other.

    Args:
        script: the lesson's own path, `__file__`.
    """

    def __init__(self, script: str, description: str):
        super().__init__(description=description.splitlines()[0])
        self.lesson = Path(script).stem
        self.add_argument("folder", type=Path, help="folder of sound files")
        self.add_argument("--out", type=Path, help=f"folder to write to (runs/{self.lesson})")
        self.add_argument("--short", action="store_true", help="a few steps of everything, to see that it runs")

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:
        given = super().parse_args(*args, **kwargs)
        given.out = given.out or Path("runs") / (self.lesson + ("-short" if given.short else ""))
        return given
