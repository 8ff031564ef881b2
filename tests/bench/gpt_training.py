"""A training step of GPT by default settings beside plain PyTorch GPT-2 blocks in fp32, in turn, in one process.

    python tests/bench/gpt_training.py [--steps 150] [--threads 1] [--json gpt_training.json]

6 layers, 384, block 256, batch 16: ours in the precision that "auto" chooses on this CPU, with its window of half a
block; the plain stack with learned positions and full attention. Both are trained alike, on the same made-up codes that
can be learned, so that their losses can be compared, and beside them ours in fp32: what bf16 alone costs in loss.
tests/bench/precision.py has the other backbones.
"""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from precision import walk
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.commands.defaults import resolve_precision
from audiogen.models.backbones.gpt import GPT
from audiogen.models.batch import Batch
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.training_config import TrainingConfig
from audiogen.spec import TokenSpec
from audiogen.training.schedule import learning_rate, make_optimizer

#: For all.py.
SHORT = "--steps 3"

SPEC = TokenSpec(sample_rate=8000, hop_length=128, num_codebooks=1, codebook_size=1024)
CONFIG = TrainingConfig()
LAYERS, DIM, HEADS, BLOCK, BATCH = 6, 384, 6, 256, 16


class PlainBlock(nn.Module):
    """As in GPT-2 (Radford et al. 2019), as anyone would write it."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        B, S, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, S, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, S, D))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        V = SPEC.codebook_size
        self.table, self.positions = nn.Embedding(V + 1, DIM), nn.Embedding(BLOCK, DIM)
        self.blocks = nn.Sequential(*(PlainBlock() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, V, bias=False)
        self.apply(lambda m: nn.init.normal_(m.weight, std=0.02) if isinstance(m, nn.Linear | nn.Embedding) else None)

    def loss(self, x: Tensor) -> Tensor:
        observed = F.pad(x[:, 0, :-1], (1, 0), value=SPEC.codebook_size)
        h = self.table(observed) + self.positions(torch.arange(x.shape[2]))
        return F.cross_entropy(self.head(self.norm(self.blocks(h))).flatten(0, 1), x.flatten())


class Ours(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = SequenceModel(SPEC, GPT(GPT.Config(DIM, LAYERS, HEADS, window=BLOCK // 2)), Parallel(1))

    def loss(self, x: Tensor) -> Tensor:
        return self.model(Batch(x)).sum() / self.model.num_entries(Batch(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = resolve_precision("auto", torch.device("cpu"))
    sides = {
        "plain, fp32": Side(Plain, "fp32"),
        "ours, fp32": Side(Ours, "fp32"),
        f"ours, auto ({chosen})": Side(Ours, chosen),
    }
    clock = time.process_time if args.threads == 1 else time.perf_counter
    for step in range(args.steps):
        x = walk(SPEC, BATCH, BLOCK, step)
        for side in sides.values():
            side.step(x, learning_rate(step / args.steps, CONFIG), clock)
    names = list(sides)
    figures = {
        name: {
            "parameters": sum(p.numel() for p in side.model.parameters()),
            "tokens_per_second": BATCH * BLOCK / statistics.median(side.seconds),
            "last_bits": statistics.mean(side.bits[-max(args.steps // 10, 1) :]),
        }
        for name, side in sides.items()
    }
    print(f"medians and last losses of {args.steps} steps; PyTorch {torch.__version__}, {args.threads} thread(s)\n")
    print("| side | parameters | tokens a second | beside the plain stack | bits per code at the end |")
    print("| --- | --- | --- | --- | --- |")
    for name, row in figures.items():
        ratio = row["tokens_per_second"] / figures[names[0]]["tokens_per_second"]
        print(
            f"| {name} | {row['parameters']:,} | {row['tokens_per_second']:,.0f} | {ratio:.2f}x | "
            f"{row['last_bits']:.4f} |"
        )
    change = figures[names[2]]["last_bits"] / figures[names[1]]["last_bits"] - 1
    print(f"\nloss of {chosen} beside our own fp32: {change:+.2%}")
    if args.json:
        about = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "threads": args.threads,
            "steps": args.steps,
        }
        args.json.write_text(json.dumps({**about, "sides": figures}, indent=2) + "\n")


class Side:
    """A model, its optimizer, and what its steps took and reached."""

    def __init__(self, kind: type[nn.Module], precision: str):
        torch.manual_seed(0)
        self.model, self.precision, self.seconds, self.bits = kind(), precision, [], []
        self.optimizer = make_optimizer(self.model, CONFIG)

    def step(self, x: Tensor, rate: float, clock: Callable[[], float]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        began = clock()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.model.loss(x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CONFIG.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(clock() - began)
        self.bits.append(loss.item() / math.log(2))


if __name__ == "__main__":
    main()
