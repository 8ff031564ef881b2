"""Do freely generated mel frames move as much as real ones? The variance of each band beside that of held-out frames.

    python tests/bench/band_variance.py RUN [--seconds 60] [--num 4]

RUN was trained with the front-end mel. Prints the ratio generated / held-out band by band, and its range.
"""

import argparse
import math
from pathlib import Path

import torch

from audiogen.data import EncodedCache, Sequences
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.runs.folder import read_split
from audiogen.runs.run import load_run

#: For all.py.
SHORT = "{run} --seconds 4 --num 2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", type=Path, help="of the corpus; RUN/cache where the run made it")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--num", type=int, default=4)
    args = parser.parse_args()
    run = load_run(args.run)
    num_frames = math.ceil(args.seconds * run.frontend.spec.frame_rate)
    frames = generate(run.model, num_frames, Request(seeds=range(args.num))).x  # (num, F, T)
    held_out = torch.cat(
        list(Sequences(EncodedCache.open(args.cache or args.run / "cache"), read_split(args.run).held_out)), dim=1
    )
    generated = frames.transpose(0, 1).flatten(1)  # (F, num T)
    ratios = generated.var(dim=1) / held_out.var(dim=1)
    print("generated / held-out variance, band by band:")
    print(" ".join(f"{ratio:.2f}" for ratio in ratios.tolist()))
    print(
        f"lowest {ratios.min():.2f}, highest {ratios.max():.2f}; "
        f"{int(((ratios > 0.5) & (ratios < 2)).sum())} of {len(ratios)} bands within a factor of 2"
    )


if __name__ == "__main__":
    main()
