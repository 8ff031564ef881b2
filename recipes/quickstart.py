"""Quickstart: train a small model and listen to it, in about five minutes on a laptop's CPU.

    python recipes/quickstart.py [--out runs/quickstart] [--minutes 2.5]

Synthesise a small corpus of plucked melodies (datasets/synthetic.py, no download), encode it as mel frames, fine-tune
the base model that comes with audiogen to predict the next frame, and generate new melodies. The page has the
originals, their round trips through the frames, and the generated melodies.

The corpus has labels, which the model learns too. Ask for what you want to hear:

    audiogen generate runs/quickstart --out out --seconds 8 --label lead=harp --label shaker=yes --label tempo=120

Then do the same with a folder of your own:

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
    """Make the corpus, train the model, and write its page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="run folder")
    parser.add_argument("--minutes", type=float, default=2.5, help="training time")
    args = parser.parse_args()

    # 1. A corpus of melodies of about ten seconds each; the files are the same on every machine.
    corpus = args.out.with_name(args.out.name + "-corpus")
    subprocess.run([sys.executable, HERE.parent / "datasets" / "synthetic.py", corpus, "--minutes", "20"], check=True)

    # 2. Encode, train, generate and write the page, as `audiogen train FOLDER --out RUN` does; or continue such a run.
    train(corpus, args.out, minutes=args.minutes, resume=holds_run(args.out), overrides=["training.sample_seconds=8"])

    print(f"\nDone. Open {(args.out / 'index.html').resolve()} in a browser and listen.")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
