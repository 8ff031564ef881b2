"""How fast does the base model, a GPT with a flow-matching head, generate in its engine, beside the plain loop?

    python tests/bench/flow_generate.py [--rounds 3] [--steps 20] [--items 1 4 16] [--guidance 1 2]

All sides draw the same frames, with one thread, in turn. A call is a whole `generate`, which packs the weights; times
are of the processor, medians per step. A step is a stack of mel frames, 46 ms of sound. `difference` is the mean
distance of the values from those of the plain loop, in units of a feature's deviation over the recordings.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from audiogen.generation import generate as generate_module
from audiogen.generation.engines import PRECISIONS
from audiogen.generation.engines.eager import Eager
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.run import load_run
from audiogen.runs.start import BASE

#: For all.py.
SHORT = "--rounds 2 --steps 10 --items 1 4 --guidance 1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--items", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_run(BASE).model
    print("| items | guidance | by | ms per step | sound per second | beside the plain loop | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for items in args.items:
        for scale in args.guidance:
            race(model, items, scale, args.steps, args.rounds)


def race(model: SequenceModel, items: int, scale: float, steps: int, rounds: int) -> None:
    """Time the plain loop and the engine in each precision, in turn, and print a row for each."""

    def call(precision: str) -> Tensor:
        request = Request(
            seeds=range(items), conditions={"kind": torch.zeros(1, 1, 1)}, guidance=scale, precision=precision
        )
        return generate(model, steps, request).x

    def plain() -> Tensor:
        with patch.object(generate_module, "choose", Eager):
            return call("fp32")

    sides: dict[str, Callable[[], Tensor]] = {"plain loop": plain}
    sides |= {f"engine, {precision}": lambda precision=precision: call(precision) for precision in PRECISIONS}
    drawn = {name: side() for name, side in sides.items()}  # this round compiles
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.process_time()
            side()
            seconds[name].append(time.process_time() - began)
    median = {name: statistics.median(times) / steps for name, times in seconds.items()}
    for name, each in median.items():
        rate = items / (each * (model.spec.frame_rate or 1))
        difference = float((drawn[name] - drawn["plain loop"]).abs().mean())
        print(
            f"| {items} | {scale:g} | {name} | {1000 * each:.1f} | {rate:.1f} s | "
            f"{median['plain loop'] / each:.1f}x | {difference:.2g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
