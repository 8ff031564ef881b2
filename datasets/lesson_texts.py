"""The two texts of "Neural Networks: Zero to Hero": names.txt and tinyshakespeare.txt, a 1.3 MB download.

    python datasets/lesson_texts.py OUT

tests/bench/published_losses.py trains on them, to see whether this library's parts reach the losses that the lessons
and nanoGPT publish.
"""

import argparse
from pathlib import Path

from audiogen.utils.download import fetch
from audiogen.utils.scripts import run_script

# Raw files of a fixed commit; the hashes are those of the files in a clone of it.
TEXTS = {
    "names.txt": (
        "https://raw.githubusercontent.com/karpathy/makemore/988aa59e4d8fefa526d06f3b453ad116258398d4/names.txt",
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    ),
    "tinyshakespeare.txt": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/"
        "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--mirror", default=None, help="base address of a mirror that has both files under these names")
    args = parser.parse_args()
    for name, (url, sha256) in TEXTS.items():
        fetch(f"{args.mirror.rstrip('/')}/{name}" if args.mirror else url, args.out / name, sha256, max_bytes=2**24)
        print(f"{args.out / name}: SHA-256 as published")


if __name__ == "__main__":
    raise SystemExit(run_script(main, stopped="run the same command again to continue"))
