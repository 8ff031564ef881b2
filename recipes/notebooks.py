"""Make notebooks from the lessons, one from each script.

    python recipes/notebooks.py FOLDER [LESSON ...] [--out notebooks] [--execute] [--options="--steps 500"]

FOLDER is the folder of sound files that the notebooks use. Open them with Jupyter or an editor, in an environment with
`pip install ipykernel`. With --execute (`pip install nbclient nbformat ipykernel`) they are also run and keep their
output, with pictures and sounds stored compactly.
"""

import argparse
import shlex
from pathlib import Path

from audiogen.course.notebook import write_notebook
from audiogen.course.notebook_output import execute_notebook
from audiogen.utils.scripts import run_script

RECIPES = Path(__file__).parent


def main() -> None:
    """Write the notebooks."""
    parser = argparse.ArgumentParser(description="Make notebooks from the lessons.")
    parser.add_argument("folder", type=Path, help="folder of sound files")
    parser.add_argument("lessons", nargs="*", help="beginnings of names, such as 03 or 07b (default: all)")
    parser.add_argument("--out", type=Path, default=Path("notebooks"), help="folder of the notebooks (%(default)s)")
    parser.add_argument("--execute", action="store_true", help="run them, and keep what they show")
    parser.add_argument("--short", action="store_true", help="a few steps of everything, to see that they run")
    parser.add_argument("--options", default="", help='options that all of them get, such as --options="--steps 500"')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    arguments = [str(args.folder), *(["--short"] if args.short else []), *shlex.split(args.options)]
    for script in sorted(RECIPES.glob("[0-9]*.py")):
        if args.lessons and not script.stem.startswith(tuple(args.lessons)):
            continue
        path = write_notebook(script, args.out / f"{script.stem}.ipynb", arguments)
        if args.execute:
            execute_notebook(path)
        print(path, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
