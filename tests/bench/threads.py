"""A batch on two threads beside one, and what the engine chooses by itself, on an idle machine and on a busy one.

    python tests/bench/threads.py [--busy 1] [--rounds 60] [--precisions bf16 int8] [--only NAME ...]

Blocks of steps run on one thread, on two, and as the engine chooses, trials included, in turn; times are means per
step by the clock. Two threads gain only while both cores are idle; `--busy` starts programs that compute all the time.
The processor's time says what two threads cost in all, since each reads the weights: with two idle cores, they can be
2 / cost times as fast as one.
"""

import argparse
import multiprocessing
import statistics
import time

import torch

from audiogen.generation.engines import PRECISIONS
from audiogen.generation.engines.cpu.base import KernelEngine
from audiogen.generation.engines.cpu.gpt import GPTEngine
from audiogen.generation.engines.cpu.threads import Threads
from audiogen.generation.engines.cpu.wavenet import WaveNetEngine
from audiogen.generation.request import Request
from audiogen.models.backbones.gpt import GPT
from audiogen.models.backbones.wavenet import WaveNet
from audiogen.models.patterns import Parallel
from audiogen.models.sampling import uniforms
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.run import load_run
from audiogen.runs.start import BASE
from audiogen.spec import TokenSpec

#: For all.py.
SHORT = "--rounds 4 --precisions int8"

CASES = {  # name: items, guidance, steps of a block
    "WaveNet, 20 layers, 64 wide": (8, 1.0, 200),
    "GPT, 12 layers, 768 wide": (8, 1.0, 2),
    "the default model": (4, 2.0, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0, help="programs that compute meanwhile")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(2)
    print("| model | items | precision | one thread, ms per step | two threads | automatic | cost in processor time |")
    print("|" + " --- |" * 7)
    others = [multiprocessing.get_context("spawn").Process(target=compute, daemon=True) for _ in range(args.busy)]
    for other in others:
        other.start()
    for name in args.only:
        model = made(name)
        for precision in args.precisions:
            race(name, model, precision, args.rounds)
    for other in others:
        other.terminate()


def compute() -> None:
    while True:
        sum(range(10**6))


def made(name: str) -> SequenceModel:
    torch.manual_seed(0)
    if name.startswith("WaveNet"):
        return SequenceModel(TokenSpec(8000, 1, 1, 256), WaveNet(WaveNet.Config()), Parallel(1)).eval()
    if name.startswith("GPT"):
        config = GPT.Config(768, 12, 12, window=1024)
        return SequenceModel(TokenSpec(24000, 320, 1, 2048), GPT(config), Parallel(1)).eval()
    return load_run(BASE).model.eval()


def race(name: str, model: SequenceModel, precision: str, rounds: int) -> None:
    """Time blocks in both ways, in turn, then those of the engine's choice, and print a row."""
    items, guidance, steps = CASES[name]
    kind: type[KernelEngine] = WaveNetEngine if isinstance(model.backbone, WaveNet) else GPTEngine
    conditions = {"kind": torch.zeros(1, 1, 1)} if guidance != 1 else None
    request = Request(seeds=range(items), precision=precision, guidance=guidance, conditions=conditions)
    engine = kind(model, request)
    engine.prefill(model.embed.empty(items))

    def block() -> tuple[float, float]:
        seq = model.embed.empty(items).new_zeros(items, model.spec.num_channels, steps)
        known = torch.zeros(model.spec.num_rows, steps, dtype=torch.bool)
        numbers = uniforms(range(items), engine.step, engine.step + steps, model.head.num_uniforms)
        clock, processor = time.perf_counter(), time.process_time()
        engine.decode(seq, known, numbers)
        return (time.perf_counter() - clock) / steps, (time.process_time() - processor) / steps

    block()  # compiles
    ways = {way: Threads(items, kind.together) for way in ("one", "two", "automatic")}
    for way in ("one", "two"):
        ways[way].shared, ways[way].left = way == "two", 10**9
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, threads in ways.items():
            engine.threads = threads
            took[way].append(block())
    clock, processor = ({way: statistics.mean(each[i] for each in took[way]) for way in ways} for i in (0, 1))
    cells = [f"{1000 * clock[way]:.2f} ({clock['one'] / clock[way]:.2f}x)" for way in ways]
    print(
        f"| {name} | {items} | {precision} | {' | '.join(cells)} | {processor['two'] / processor['one']:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
