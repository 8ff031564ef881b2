"""The scalar engine beside micrograd: a training step of a 2-16-16-1 MLP on 100 points.

    pip install micrograd
    python tests/bench/autograd.py [--steps 15] [--json autograd.json]

micrograd (Karpathy 2020, from PyPI) is needed for this measurement only. A step is that of its own demonstration:
scores of all points, max-margin loss with L2, backward, gradient descent. All sides begin with the same weights, run
the same lines of code and take their steps in turn, in one process; their losses must be equal at every step. Garbage
is collected between the steps, so that nobody pays for another's. A third side is this engine with neurons written out
as products and sums, as micrograd's are: what remains without the one-value weighted sum.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time
import tracemalloc
from pathlib import Path

from audiogen.course import engine, nn

#: For all.py.
SHORT = "--steps 3"
NEEDS = ("micrograd",)

try:
    import micrograd.engine
    import micrograd.nn
except ImportError:
    raise SystemExit("micrograd is not installed: pip install micrograd") from None


class WrittenOutNeuron(nn.Neuron):
    """w1 x1 + w2 x2 + ... + b out of single products and sums."""

    def __call__(self, x):
        total = sum((w * value for w, value in zip(self.w, x, strict=True)), self.b)
        return self.nonlin(total) if self.nonlin else total


class Side:
    """A model with its kind of Value, and what its steps took."""

    def __init__(self, model, value: type):
        self.model, self.value = model, value
        self.forward, self.backward, self.losses = [], [], []

    def step(self, points: list[list[float]], labels: list[int], learning_rate: float) -> None:
        gc.collect()
        began = time.perf_counter()
        inputs = [[self.value(number) for number in point] for point in points]
        scores = [self.model(point) for point in inputs]
        losses = [(1 + -label * score).relu() for label, score in zip(labels, scores, strict=True)]
        loss = sum(losses) * (1.0 / len(losses)) + 1e-4 * sum(p * p for p in self.model.parameters())
        middle = time.perf_counter()
        self.model.zero_grad()
        loss.backward()
        for p in self.model.parameters():
            p.data -= learning_rate * p.grad
        self.forward.append(middle - began)
        self.backward.append(time.perf_counter() - middle)
        self.losses.append(loss.data)

    def milliseconds(self) -> dict[str, float]:
        """Medians over the steps."""
        both = [a + b for a, b in zip(self.forward, self.backward, strict=True)]
        return {
            name: 1000 * statistics.median(times)
            for name, times in (("forward", self.forward), ("backward", self.backward), ("step", both))
        }


def clouds(num_points: int, rng: random.Random) -> tuple[list[list[float]], list[int]]:
    """Points of two clouds that overlap, labelled 1 and -1."""
    labels = [rng.choice((1, -1)) for _ in range(num_points)]
    return [[label + rng.gauss(0, 0.7), label * rng.gauss(0.5, 0.7)] for label in labels], labels


def make_sides() -> dict[str, Side]:
    models = {
        "micrograd": (micrograd.nn.MLP(2, [16, 16, 1]), micrograd.engine.Value),
        "audiogen": (nn.MLP(2, [16, 16, 1], rng=random.Random(0)), engine.Value),
        "audiogen, neurons written out": (nn.MLP(2, [16, 16, 1], rng=random.Random(0)), engine.Value),
    }
    for layer in models["audiogen, neurons written out"][0].layers:
        for neuron in layer.neurons:
            neuron.__class__ = WrittenOutNeuron
    for theirs, ours in zip(models["micrograd"][0].parameters(), models["audiogen"][0].parameters(), strict=True):
        theirs.data = ours.data
    return {name: Side(model, value) for name, (model, value) in models.items()}


def processor() -> str:
    """Its name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    args = parser.parse_args()
    points, labels = clouds(args.points, random.Random(1))
    sides = make_sides()
    for step in range(args.steps):
        for side in sides.values():
            side.step(points, labels, 0.1 * (1 - 0.9 * step / args.steps))
    reference = sides["micrograd"]
    results = {}
    for name, side in sides.items():
        for ours, theirs in zip(side.losses, reference.losses, strict=True):
            if abs(ours - theirs) > 1e-9 * max(1, abs(theirs)):
                raise SystemExit(f"{name}: a loss of {ours} where micrograd has {theirs}: not the same computation")
        times = side.milliseconds()
        results[name] = {**times, "ratio": reference.milliseconds()["step"] / times["step"], "loss": side.losses[-1]}
    for name, side in sides.items():  # memory last, since its tracing slows a step down
        tracemalloc.start()
        side.step(points, labels, 0.0)
        results[name]["peak_mb"] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    print("| engine | forward ms | backward ms | step ms | times as fast | peak MB of a step | loss at the end |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, r in results.items():
        print(
            f"| {name} | {r['forward']:.1f} | {r['backward']:.1f} | {r['step']:.1f} | {r['ratio']:.1f} | "
            f"{r['peak_mb']:.1f} | {r['loss']:.6f} |"
        )
    if args.json:
        machine = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
        args.json.write_text(
            json.dumps({"machine": machine, "points": args.points, "steps": args.steps, "engines": results}, indent=1)
            + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
