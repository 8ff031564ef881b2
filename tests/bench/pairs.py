"""Every default pair on one folder under one budget: the table of the README.

    python tests/bench/pairs.py FOLDER OUT [--minutes 10] [--pairs mulaw:wavenet mulaw:mlp ...]

Encodes the folder once for each front-end, trains each pair from that cache, and prints a row a run as Markdown. Runs
that are there already are read, not trained again. The front-end "default" is what `audiogen train` takes unasked.
"""

import argparse
import time
from pathlib import Path

from audiogen.backbones import BACKBONES
from audiogen.data import is_cache
from audiogen.run import holds_run, load_run
from audiogen.training.metrics import read_metrics
from audiogen.training.session import tokenize, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--pairs", nargs="+", default=[
        "default:gpt", *(f"{frontend}:{backbone}" for frontend in ("mulaw", "melvq", "mel", "codec")
                         for backbone in BACKBONES)])
    args = parser.parse_args()
    print("| front-end | backbone | parameters | minutes | steps | bits per code | bits per second | counted bigram | "
          "unigram |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for pair in args.pairs:
        frontend, backbone = pair.split(":")
        cache, out = args.out / f"{frontend}-cache", args.out / f"{frontend}-{backbone}"
        if not is_cache(cache):
            began = time.perf_counter()
            tokenize(args.folder, cache, None if frontend == "default" else frontend)
            print(f"<!-- {frontend}: fitted and encoded in {time.perf_counter() - began:.0f} s -->", flush=True)
        finished = holds_run(out) and any(event["event"] == "final" for event in read_metrics(out))
        if not finished:
            train(cache, out, backbone=backbone, minutes=args.minutes, resume=holds_run(out),
                  overrides=["training.sample_seconds=1"])
        print(row(out, frontend, backbone), flush=True)


def row(out: Path, frontend: str, backbone: str) -> str:
    events = read_metrics(out)
    final = [event for event in events if event["event"] == "final"][-1]
    spent = [event for event in events if event["event"] == "held_out"][-1]
    size = sum(p.numel() for p in load_run(out).model.parameters())
    counted = final["baselines"] or {}
    cells = [frontend, backbone, f"{size:,}", f"{spent['seconds'] / 60:.1f}", f"{spent['step']:,}",
             f"{final['loss']:.3f}" + ("" if final["unit"] == "bits" else " nats per frame"),
             f"{final['bits_per_second']:,.0f}" if final["unit"] == "bits" else "-",
             *(f"{counted[name]['loss']:.3f}" if counted else "-" for name in ("bigram", "unigram"))]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
