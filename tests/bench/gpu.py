"""What a GPU gives: generation by captured steps beside the plain loop and transformers, tokenising, training.

    pip install transformers
    python tests/bench/gpu.py [--rounds 3] [--peak 989e12] [--json gpu.json]
    python tests/bench/gpu.py --device cpu --short --ranks 2            # tries the script itself, where there is none

All sides of a row run in turn in this process, on the same device, and a time ends when the device has done all that
it was told to. Generation is timed as whole calls of `generate` of 2,000 steps, a step's capture included; transformers
(in bf16) and the plain loop go 200.
Where there are several GPUs, as many processes (or as many as `--ranks` says) then train the GPT together in the
project's own loop: with sums in the fixed tree, with torch's own (DDP), and with shares of the weights (FSDP2), each
beside a single process.
`--peak` is the dense bf16 rate of the card's data sheet in operations a second: an H200's unless said.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from gpt_generate import theirs
from torch import Tensor

import audiogen
from audiogen.distributed import World
from audiogen.generation.engines import choose
from audiogen.generation.engines.eager import Eager
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.models.backbones import Backbone
from audiogen.models.backbones.gpt import GPT
from audiogen.models.backbones.wavenet import WaveNet
from audiogen.models.batch import Batch
from audiogen.models.patterns import Parallel
from audiogen.models.sampling import uniforms
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.training_config import DistributedConfig, TrainingConfig
from audiogen.spec import TokenSpec
from audiogen.training.schedule import make_optimizer
from audiogen.training.throughput import now, training_flops
from audiogen.training.trainer import Trainer

#: For all.py.
SHORT = "--rounds 1"
NEEDS = ("cuda", "transformers")

MULAW = TokenSpec(sample_rate=16000, hop_length=1, num_codebooks=1, codebook_size=256)
#: How processes train together.
WAYS = {
    "fixed tree": DistributedConfig(),
    "DDP": DistributedConfig(exact=False),
    "shares": DistributedConfig(kind="sharded"),
    "shares, torch's sums": DistributedConfig(kind="sharded", exact=False),
}
CODES = TokenSpec(sample_rate=24000, hop_length=320, num_codebooks=1, codebook_size=2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, default=989e12, help="operations a second, bf16, dense")
    parser.add_argument("--short", action="store_true", help="small models and few steps")
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count(), help="processes that train together")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    device, short = torch.device(args.device), args.short
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that CUDA can use here; --device cpu --short tries the script")
    wavenet = WaveNet.Config(16, 8, 4) if short else WaveNet.Config()
    gpt = GPT.Config(32, 2, 2, window=64) if short else GPT.Config(768, 12, 12, window=1024)
    if args.as_rank:
        as_rank(gpt, args)
        return
    print(
        torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU",
        f"PyTorch {torch.__version__}\n",
        flush=True,
    )
    rows = [
        generation("WaveNet, 20 layers, 64", MULAW, WaveNet(wavenet), batch_size, None, args)
        for batch_size in ((1, 4) if short else (1, 128))
    ]
    peer = theirs(CODES, gpt, args.device, torch.bfloat16)
    rows += [
        generation("GPT, 12 layers, 768", CODES, GPT(gpt), batch_size, peer, args)
        for batch_size in ((1, 4) if short else (1, 64))
    ]
    print("| model | items | " + " | ".join(rows[-1]["steps_per_second"]) + " | bf16 beside the best peer |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        rates = row["steps_per_second"]
        best = max(rates.get("transformers", 0), rates["plain loop"])
        print(
            f"| {row['model']} | {row['items']} | "
            + " | ".join(f"{rates[side]:,.0f}" if side in rates else "-" for side in rows[-1]["steps_per_second"])
            + f" | {rates['bf16'] / best:.1f}x |"
        )
    print(
        "\nsteps a second of each item, medians; an item speaks in real time from "
        f"{MULAW.frame_rate:,.0f} (WaveNet) and {CODES.frame_rate:,.0f} (GPT) steps a second up",
        flush=True,
    )
    others = {"codec": tokenising(args, device), "training": training(gpt, args, device)}
    if args.ranks > 1:
        others["ranks"] = several(args)
    if args.json:
        args.json.write_text(
            json.dumps({"device": args.device, "torch": torch.__version__, "rows": rows, **others}, indent=2) + "\n"
        )


def generation(
    name: str, spec: TokenSpec, backbone: Backbone, batch_size: int, peer: Callable | None, args: argparse.Namespace
) -> dict:
    device = torch.device(args.device)
    model = SequenceModel(spec, backbone, Parallel(1)).eval().to(device)
    few, many = (20, 40) if args.short else (200, 2000)

    request = Request(seeds=range(batch_size))

    def plain() -> Tensor:
        engine, seq = Eager(model, request), torch.zeros(batch_size, 1, few, dtype=torch.int64, device=device)
        engine.prefill(seq[:, :, :0])
        engine.decode(
            seq, torch.zeros(1, few, dtype=torch.bool, device=device), uniforms(request.seeds, 0, few, 1).to(device)
        )
        return seq

    def ours(precision: str) -> Callable[[], Tensor]:
        return lambda: generate(model, many, replace(request, precision=precision)).x

    sides = {"transformers": (lambda: peer(batch_size, 1, few), few)} if peer else {}
    sides |= {"plain loop": (plain, few), "fp32": (ours("fp32"), many), "bf16": (ours("bf16"), many)}
    print(f"{name}, {batch_size}: run by {type(choose(model, request)).__name__}", flush=True)
    seconds = race({side: call for side, (call, _) in sides.items()}, args.rounds, device)
    return {
        "model": name,
        "items": batch_size,
        "steps_per_second": {side: steps / seconds[side] for side, (_, steps) in sides.items()},
    }


def tokenising(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Times real time, of the shipped codec over a batch of files."""
    frontend = audiogen.load_frontend("codec").to(device).eval()
    wav = 0.1 * torch.randn(2 if args.short else 64, 1, frontend.spec.sample_rate * (1 if args.short else 30))
    wav = wav.to(device)
    with torch.inference_mode():
        codes = frontend.encode(wav)
        seconds = race(
            {"encode": lambda: frontend.encode(wav), "decode": lambda: frontend.decode(codes)}, args.rounds, device
        )
    sound = wav.shape[0] * wav.shape[2] / frontend.spec.sample_rate
    times = {side: sound / s for side, s in seconds.items()}
    print("\ncodec, times real time: " + ", ".join(f"{side} {x:,.0f}" for side, x in times.items()), flush=True)
    return times


def training(config: GPT.Config, args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Steps of the same GPT by default settings in bf16, and the share of the card's rate that they are."""
    model = SequenceModel(CODES, GPT(config), Parallel(1)).to(device)
    optimizer = make_optimizer(model, TrainingConfig())
    batch_size, crop, steps = (2, 32, 2) if args.short else (16, 1024, 20)
    x = torch.randint(CODES.codebook_size, (batch_size, 1, crop), device=device)

    def go() -> None:
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(Batch(x)).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    seconds = race({"step": go}, args.rounds, device)["step"] / steps
    rate = training_flops(model, crop) * batch_size / seconds
    print(
        f"training it, {batch_size} crops of {crop}: {batch_size * crop / seconds:,.0f} tokens a second, "
        f"{rate / 1e12:,.1f} TFLOP/s, {rate / args.peak:.1%} of {args.peak / 1e12:,.0f}"
    )
    return {"tokens_per_second": batch_size * crop / seconds, "flops": rate, "share": rate / args.peak}


def several(args: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of all processes together, by how they train together; and of one."""
    found = {}
    for size in (1, args.ranks):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        options = ["--device", args.device, "--rounds", str(args.rounds), *(["--short"] if args.short else [])]
        command = [sys.executable, *launch, __file__, "--as-rank", *options]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[size] = json.loads(printed.splitlines()[-1])
    alone = found[1]["fixed tree"]
    print(f"\n| {args.ranks} processes | tokens a second | of {args.ranks} times one | share of the cards' rate |")
    print("| --- | --- | --- | --- |")
    for way, (rate, flops) in found[args.ranks].items():
        share = flops / args.ranks / args.peak
        print(f"| {way} | {rate:,.0f} | {rate / (args.ranks * alone[0]):.2f} | {share:.1%} |", flush=True)
    return {"one": alone[0], **{way: rate for way, (rate, _) in found[args.ranks].items()}}


class Random:
    """Batches of random codes."""

    def __init__(self, batch_size: int, crop: int):
        self.size = batch_size, 1, crop

    def loader(self, numbers: Iterable[int], num_workers: int) -> Iterator[tuple[Batch, list[list[str]]]]:
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            x = torch.randint(CODES.codebook_size, self.size, generator=generator)
            yield Batch(x), [["made up"]] * len(x)


def as_rank(config: GPT.Config, args: argparse.Namespace) -> None:
    """Train with the other ranks, each two batches a step, in each way in turn; the first rank prints what it took."""
    batch_size, crop, steps = (2, 32, 2) if args.short else (16, 1024, 10)
    with World.join() as world:
        device, rates = world.device(args.device), {}
        with world.connected(device, 300.0), tempfile.TemporaryDirectory() as folder:
            for way, distributed in WAYS.items() if world.size > 1 else [("fixed tree", WAYS["fixed tree"])]:
                torch.manual_seed(0)
                model = SequenceModel(CODES, GPT(config), Parallel(1)).to(device)
                flops = training_flops(model, crop) * batch_size * 2 * world.size
                settings = TrainingConfig(batch_size=batch_size, crop_frames=crop, accumulation=2 * world.size)
                trainer = Trainer(
                    model,
                    Random(batch_size, crop),
                    lambda model: None,  # pyright: ignore
                    lambda model, progress: None,
                    settings,
                    Path(folder),
                    "bf16",
                    world=world,
                    distributed=distributed,
                )
                own = (step * settings.accumulation + number for step in count() for number in trainer.held.share)
                loader = trainer.batches.loader(own, 0)

                def go(trainer: Trainer = trainer, loader: Iterator = loader) -> None:
                    for _ in range(steps):
                        trainer._step(loader)

                seconds = race({way: go}, args.rounds, device)[way] / steps
                rates[way] = batch_size * crop * settings.accumulation / seconds, flops / seconds
        if world.first:
            print(json.dumps(rates))


def race(sides: dict[str, Callable], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of a call of each side, in turn."""
    seconds = {name: [] for name in sides}
    for r in range(rounds + 1):
        for name, call in sides.items():
            began = now(device)
            call()
            if r:  # the first round makes ready
                seconds[name].append(now(device) - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
