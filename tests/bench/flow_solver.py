"""How exactly do solvers of the flow follow its velocity? Frames of the base model, beside those of 32 midpoint steps.

    python tests/bench/flow_solver.py

`error` is the root mean square of the difference over a frame, in units of a feature's deviation over the recordings:
the median over frames, and the largest, since some noise lies between two sounds. `deviation` is that of the drawn
values over that of the exact ones. The head (`clean`) takes 3 steps of the midpoint rule to level 0.8 and goes straight
from there to the frame that is to be expected, without the noise that the rest of the way would keep; so it is not the
most exact one. All solvers start from the same noise, after the same 8 frames of each kind of sound that the base model
knows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from audiogen.generation.engines.eager import Eager
from audiogen.generation.request import Request
from audiogen.runs.run import load_run
from audiogen.runs.start import BASE

#: For all.py.
SHORT = ""

ITEMS, FRAMES = 54, 8
Velocity = Callable[[Tensor, float], Tensor]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = load_run(BASE).model
    kinds = torch.arange(ITEMS).view(ITEMS, 1, 1) % 9
    loop = Eager(model, Request(seeds=range(ITEMS), conditions={"kind": kinds.float()}))
    seq = torch.empty(ITEMS, model.spec.num_channels, FRAMES)
    loop.prefill(seq[:, :, :0])
    loop.decode(
        seq, torch.zeros(1, FRAMES, dtype=torch.bool), torch.rand(*seq.transpose(1, 2).shape, dtype=torch.float64)
    )
    hidden, noise = loop._hidden, torch.randn(seq.shape[:2])

    def velocity(x: Tensor, t: float) -> Tensor:
        return model.head.velocity(x, torch.full((ITEMS, 1), t), hidden)

    with torch.inference_mode():
        exact = midpoint(velocity, noise, 32)
        print("| solver | velocities | error | largest | deviation |\n| --- | --- | --- | --- | --- |")
        for solver, steps, each in ((euler, 8, 1), (euler, 4, 1), (midpoint, 4, 2), (midpoint, 2, 2), (clean, 3, 2)):
            x = solver(velocity, noise, steps)
            error = (x - exact).square().mean(dim=1).sqrt()  # (ITEMS,)
            found = f"{error.median():.3f} | {error.max():.3f} | {x.std() / exact.std():.3f}"
            print(f"| {solver.__name__}, {steps} steps | {steps * each + (solver is clean)} | {found} |", flush=True)


def euler(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Follow the velocity at the beginning of each step."""
    for k in range(steps):
        x = x + velocity(x, k / steps) / steps
    return x


def midpoint(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Follow the velocity that half a step of Euler leads to."""
    return to(velocity, x, steps, 1.0)


def clean(velocity: Velocity, x: Tensor, steps: int) -> Tensor:
    """Follow it to level 0.8, then go straight to the expected frame, as the head does."""
    x = to(velocity, x, steps, 0.8)
    return x + 0.2 * velocity(x, 0.8)


def to(velocity: Velocity, x: Tensor, steps: int, level: float) -> Tensor:
    """Follow the midpoint rule to a level."""
    size = level / steps
    for k in range(steps):
        x = x + velocity(x + velocity(x, k * size) * size / 2, (k + 0.5) * size) * size
    return x


if __name__ == "__main__":
    main()
