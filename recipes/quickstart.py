"""Quickstart: from nothing to a page that you can listen to, in under five minutes on a laptop's CPU.

    python recipes/quickstart.py [--out runs/quickstart] [--minutes 3]

Makes a small corpus of plucked melodies (datasets/synthetic.py, no download), turns the sound into mel frames, trains a
small GPT to predict the next frame, lets it go on by itself, and writes a page with the originals, what the frames keep
of them, and what the model made up.

Try next: the same with a folder of your own,

    audiogen train FOLDER --out runs/mine
"""

import argparse
import subprocess
import sys
from pathlib import Path

from audiogen.commands.train import train
from audiogen.runs.folder import holds_run
from audiogen.utils.scripts import run_script

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="run folder")
    parser.add_argument("--minutes", type=float, default=3.0, help="training time")
    args = parser.parse_args()

    # 1. A corpus: melodies, each of about ten seconds, the same bytes on every machine.
    corpus = args.out.with_name(args.out.name + "-corpus")
    subprocess.run([sys.executable, HERE.parent / "datasets" / "synthetic.py", corpus, "--minutes", "20"], check=True)

    # 2. Frames, model, training, samples, page: what `audiogen train FOLDER --out RUN` does; or the rest of it.
    train(corpus, args.out, minutes=args.minutes, resume=holds_run(args.out), overrides=["training.sample_seconds=8"])

    print(f"\nDone. Open {(args.out / 'index.html').resolve()} in a browser and listen.")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
