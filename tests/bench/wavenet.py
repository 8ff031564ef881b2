"""Generating with WaveNet beside a plain PyTorch loop with ring buffers, in turn, in one process.

    python tests/bench/wavenet.py [--threads 1] [--rounds 5] [--steps 4000] [--run RUN FOLDER] [--json wavenet.json]

Both are given the same weights, and their teacher-forced logits are compared first. With a trained run and a folder of
WAVs the accuracy of bf16 and int8 is stated too, as bits per sample of files that were held out. Samples a second count
all items of a batch. On one thread all times are of the processor, which other programs on it disturb less. What the
first call costs, compiling and not, is measured in processes of its own.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from audiogen.generation.engines import PRECISIONS
from audiogen.generation.engines.cpu.wavenet import WaveNetEngine
from audiogen.generation.engines.eager import Eager
from audiogen.generation.request import Request
from audiogen.models.backbones.wavenet import WaveNet
from audiogen.models.patterns import Parallel
from audiogen.models.sampling import uniforms
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import TokenSpec

#: For all.py.
SHORT = "--rounds 1 --steps 400 --skip-first-call"

SPEC = TokenSpec(sample_rate=16000, hop_length=1, num_codebooks=1, codebook_size=256)
MODELS = {"20 layers, 64 residual": WaveNet.Config(), "30 layers, 128 residual": WaveNet.Config(256, 128, 30)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="that PyTorch and the engines may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4000, help="of the engine in a round; the plain loops go a tenth")
    parser.add_argument("--run", nargs=2, type=Path, metavar=("RUN", "FOLDER"), help="to state the accuracy by")
    parser.add_argument("--skip-first-call", action="store_true", help="do not time compilation")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter

    rows = [race(name, config, batch_size, args, clock) for name, config in MODELS.items() for batch_size in (1, 8)]
    print(
        f"\nsamples a second, medians of {args.rounds} rounds; PyTorch {torch.__version__} on {args.threads} "
        "thread(s), ours on one\n"
    )
    print("| model | batch | plain PyTorch loop | audiogen's plain loop | engine, fp32 | bf16 | int8 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        engine = " | ".join(f"{row[precision]:,.0f} ({row[precision] / row['peer']:.1f}x)" for precision in PRECISIONS)
        print(f"| {row['model']} | {row['batch']} | {row['peer']:,.0f} | {row['eager']:,.0f} | {engine} |")
    print(
        "\n| model | weights as packed, MiB: "
        + " | ".join(PRECISIONS)
        + " | state of an item, MiB |\n| --- "
        + "| --- " * (len(PRECISIONS) + 1)
        + "|"
    )
    for row in rows[::2]:
        print(
            f"| {row['model']} | "
            + " | ".join(f"{row['mebibytes'][p]:.2f}" for p in PRECISIONS)
            + f" | {row['state']:.2f} |"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process, both sides and torch: {peak:.0f} MiB")

    first = {}
    for precision in () if args.skip_first_call else PRECISIONS:
        with tempfile.TemporaryDirectory() as cache:
            first[precision] = [first_call(precision, cache) for _ in range(2)]
        print("first call, {}: {:.1f} s compiling, {:.2f} s compiled before".format(precision, *first[precision]))

    accuracy = held_out_bits(*args.run) if args.run else {}
    for precision, bits in accuracy.items():
        print(f"held-out bits per sample, {precision}: {bits:.4f} ({bits / accuracy['fp32'] - 1:+.2%})")
    if args.json:
        about = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "threads": args.threads,
            "rounds": args.rounds,
            "steps": args.steps,
        }
        args.json.write_text(
            json.dumps(
                {**about, "first_call_seconds": first, "rows": rows, "peak_mebibytes": peak, "held_out_bits": accuracy},
                indent=2,
            )
            + "\n"
        )


def race(name: str, config: WaveNet.Config, batch_size: int, args: argparse.Namespace, clock: Callable) -> dict:
    torch.manual_seed(0)
    model = SequenceModel(SPEC, WaveNet(config), Parallel(1)).eval()
    with torch.no_grad():
        model.head.linear.weight.mul_(10)  # an untrained one draws by chance, whatever it has seen
    seq = torch.randint(256, (batch_size, 1, 500))
    peer = RingBufferLoop(model, batch_size)
    with torch.inference_mode():
        expected = torch.stack([peer.logits(code) for code in [None, *seq[:, 0, :-1].T]], dim=1)[:, :, None]
    sides = {"peer": lambda steps: peer.generate(steps), "eager": filler(Eager(model, Request(batch_size=batch_size)))}
    mebibytes = {}
    for precision in PRECISIONS:
        engine = WaveNetEngine(model, Request(batch_size=batch_size, precision=precision))
        error = float((engine.logits(seq) - expected).abs().max())
        assert precision != "fp32" or error < 1e-4, error
        sides[precision] = filler(engine)
        arrays = [x for field in engine._weights for x in (field if isinstance(field, tuple) else (field,))]
        mebibytes[precision] = sum(x.nbytes for x in arrays) / 2**20
    rates = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, go in sides.items():
            steps = args.steps if side in PRECISIONS else args.steps // 10
            began = clock()
            go(steps)
            rates[side].append(batch_size * steps / (clock() - began))
    return {
        "model": name,
        "batch": batch_size,
        **{side: statistics.median(rate) for side, rate in rates.items()},
        "mebibytes": mebibytes,
        "state": engine._memory[0].nbytes / batch_size / 2**20,
        "rounds": rates,
    }


def filler(engine):
    """steps -> that many steps of the engine, begun anew, with all its inputs made."""

    def go(steps: int) -> None:
        items = engine.request.batch_size
        seq = torch.zeros(items, 1, steps, dtype=torch.int64)
        with torch.inference_mode():
            engine.set_state(*engine.model.start(items))
        engine.decode(seq, torch.zeros(1, steps, dtype=torch.bool), uniforms(range(items), 0, steps, 1))

    return go


class RingBufferLoop:
    """WaveNet's generation as it is usually written in PyTorch: a queue a layer, a few products a layer and step."""

    def __init__(self, model: SequenceModel, batch_size: int):
        backbone, R = model.backbone, model.backbone.config.residual_dim
        self.model, self.batch_size = model, batch_size
        self.layers = []
        for layer, gate in enumerate(backbone.gates):
            residual = backbone.residuals[layer] if layer < len(backbone.residuals) else None
            skip = backbone.skip.weight[:, layer * R : (layer + 1) * R].detach().contiguous()
            past, now = (w.contiguous() for w in gate.linear.weight.detach().split(R, dim=1))
            self.layers.append((past, now, gate.linear.bias, residual, skip))
        self.reset()

    def reset(self) -> None:
        R = self.model.backbone.config.residual_dim
        self.queues = [torch.zeros(gate.dilation, self.batch_size, R) for gate in self.model.backbone.gates]
        self.step = 0

    def logits(self, code: torch.Tensor | None) -> torch.Tensor:
        """The code (B,) of the last step, None at the beginning -> (B, V)."""
        model, backbone = self.model, self.model.backbone
        x = model.bos.expand(self.batch_size, -1) if code is None else model.embed.table(code)
        x, skips = backbone.first(x), backbone.skip.bias
        for queue, (past, now, bias, residual, skip) in zip(self.queues, self.layers, strict=True):
            slot = self.step % len(queue)
            z = F.linear(queue[slot], past) + F.linear(x, now, bias)
            queue[slot] = x
            filtered, opened = z.chunk(2, dim=1)
            z = torch.tanh(filtered) * torch.sigmoid(opened)
            skips = skips + F.linear(z, skip)
            if residual is not None:
                x = x + residual(z)
        self.step += 1
        return model.head.linear(F.relu(backbone.last(F.relu(skips))))

    @torch.inference_mode()
    def generate(self, steps: int) -> torch.Tensor:
        self.reset()
        code, codes = None, []
        for _ in range(steps):
            code = torch.multinomial(torch.softmax(self.logits(code), dim=-1), 1)[:, 0]
            codes.append(code)
        return torch.stack(codes, dim=1)


def held_out_bits(run: Path, folder: Path, most: int = 40) -> dict[str, float]:
    """Bits per sample over files of the folder that the run held out, at most so many, by precision."""
    from audiogen import load_run, read_audio

    run = load_run(run)
    files = [folder / part.file.path for part in run.split().held_out[:most]]
    bits = {}
    for precision in PRECISIONS:
        request, nats, count = Request(precision=precision), 0.0, 0
        for path in files:
            codes = run.frontend.encode(read_audio(path, run.sample_rate)[None])
            seq = run.model.pattern.apply(codes, run.model.hole)
            logits = WaveNetEngine(run.model, request).logits(seq)
            targets = seq.transpose(1, 2).flatten()
            nats += float(F.cross_entropy(logits.flatten(0, 2).double(), targets, reduction="sum"))
            count += seq.numel()
        bits[precision] = nats / count / torch.tensor(2.0).log().item()
    return bits


def first_call(precision: str, cache: str) -> float:
    """Seconds of the processor that the first steps take in a new process, numba's import included, torch's not."""
    script = (
        "import time, torch; from audiogen.generation.generate import generate; from tests.bench.wavenet import *\n"
        "model, began = SequenceModel(SPEC, WaveNet(WaveNet.Config()), Parallel(1)), time.process_time()\n"
        f"generate(model, 2, Request(precision={precision!r})); print(time.process_time() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


if __name__ == "__main__":
    main()
