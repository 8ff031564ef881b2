"""What bfloat16 saves of a training step on this CPU, and what it costs in loss: why "auto" chooses it.

    python tests/bench/precision.py [--steps 150] [--threads 1]

For every backbone with its default settings: the median time of a step in fp32 and in bf16, taken in turn, and the loss
of two models that were trained alike on made-up codes that can be learned.
"""

import argparse
import statistics
import time

import torch

from audiogen.commands.plan import Flags, Plan
from audiogen.frontends import load_frontend
from audiogen.models.backbones import BACKBONES
from audiogen.models.batch import Batch
from audiogen.runs.build import build_model
from audiogen.spec import TokenSpec
from audiogen.training.schedule import learning_rate, make_optimizer

#: For all.py.
SHORT = "--steps 2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| front-end | backbone | fp32 ms a step | bf16 ms a step | ratio | fp32 bits | bf16 bits | change |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, settings in (("mulaw", {}), ("melvq", {"num_codebooks": 1, "codebook_size": 512})):
        frontend = load_frontend(name, sample_rate=8000, **settings)
        for backbone in BACKBONES:
            plan = Plan.over(frontend, Flags(None, backbone, training={"steps": args.steps, "minutes": None}))
            times, losses = race(plan.config, plan.spec, args.steps)
            fp32, bf16 = (statistics.median(t) * 1000 for t in times)
            print(
                f"| {name} | {backbone} | {fp32:.0f} | {bf16:.0f} | {fp32 / bf16:.2f} | "
                f"{losses[0]:.4f} | {losses[1]:.4f} | {losses[1] / losses[0] - 1:+.2%} |",
                flush=True,
            )


def race(config, spec: TokenSpec, steps: int) -> tuple[list[list[float]], list[float]]:
    """Trains two equal models, a step of each in turn -> seconds of each step, bits per code at the end."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_model(config, spec))
    optimizers = [make_optimizer(model, config.training) for model in models]
    times, ends = [[], []], [[], []]
    for step in range(steps):
        x = walk(spec, config.training.batch_size, config.training.crop_frames, step)
        for i, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            torch.manual_seed(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step / steps, config.training)
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=i == 1):
                loss = model(Batch(x)).sum() / x.numel()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            times[i].append(time.perf_counter() - began)
            if step >= int(steps * 0.9):
                ends[i].append(loss.item() / torch.log(torch.tensor(2.0)).item())
    return times, [statistics.mean(end) for end in ends]


def walk(spec: TokenSpec, batch_size: int, num_frames: int, step: int) -> torch.Tensor:
    """A noisy sine in codes, of another pitch for each item: (B, 1, T)."""
    generator = torch.Generator().manual_seed(step)
    pitch = 0.02 + 0.2 * torch.rand(batch_size, 1, generator=generator)
    wave = torch.sin(pitch * torch.arange(num_frames)) + 0.1 * torch.randn(batch_size, num_frames, generator=generator)
    return ((wave + 1.5) / 3 * (spec.codebook_size - 1)).round().clamp(0, spec.codebook_size - 1).long()[:, None]


if __name__ == "__main__":
    main()
