"""A step of GPT, 12 layers, 768 wide, beside CTranslate2 in int8, and the share of memory bandwidth that it reaches.

    pip install transformers ctranslate2
    python tests/bench/decoding.py [--prompts 1 900] [--batches 1 8 16] [--rounds 5] [--steps 20] [--json FILE]

CTranslate2 runs transformers' GPT-2 of the same size and vocabulary, with random weights, converted to int8. A time is
that of a step after the prompt: of a call of more steps, less one of few, by the processor, on one thread; all sides
run in turn. `beside` is the median of the rounds' ratios. `reads` are the bytes of weights and of keys and values that
a step has to read at least once, per second, beside what the core reads when it does nothing else, measured in each
round. `of one item` compares the steps of all items per second with those of one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from audiogen.generation.engines import PRECISIONS
from audiogen.generation.engines.cpu.gpt import GPTEngine
from audiogen.generation.request import Request
from audiogen.models.backbones.gpt import GPT
from audiogen.models.patterns import Parallel
from audiogen.models.sampling import uniforms
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import TokenSpec

#: For all.py.
SHORT = "--prompts 1 --batches 1 8 --rounds 1 --steps 8"
NEEDS = ("ctranslate2", "transformers")

V, CONFIG = 2048, GPT.Config(768, 12, 12, window=1024)
PEER = "CTranslate2, int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 900])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SequenceModel(TokenSpec(24000, 320, 1, V), GPT(CONFIG), Parallel(1)).eval()
    rows = []
    print("| prompt | items | by | ms per step | steps per second, all items | of one item | beside | reads |")
    print("|" + " --- |" * 8)
    with tempfile.TemporaryDirectory() as folder:
        peer = theirs(Path(folder))
        for prompt in args.prompts:
            alone: dict[str, float] = {}
            for items in args.batches:
                rows += race(model, peer, prompt, items, args, alone)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


Step = Callable[[], float]  # seconds of one step


def race(model: SequenceModel, peer, prompt: int, items: int, args, alone: dict[str, float]) -> list[dict]:
    """Time all sides in turn, and print a row for each."""
    sides: dict[str, Step] = {PEER: lambda: peer(items, prompt, args.steps)}
    read = {}
    for precision in args.precisions:
        sides[precision], read[precision] = ours(model, precision, prompt, items, args.steps)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    most = []
    for _ in range(args.rounds):
        most.append(bandwidth())
        for name, step in sides.items():
            seconds[name].append(step())
    rows = []
    for name, each in seconds.items():
        took = statistics.median(each)
        alone.setdefault(name, took / items)
        row = {
            "prompt": prompt,
            "items": items,
            "by": name,
            "ms": 1000 * took,
            "of one item": alone[name] * items / took,
            "beside": statistics.median(a / b for a, b in zip(seconds[PEER], each, strict=True)),
        }
        cell = "-"
        if name in read:
            row["bandwidth"] = statistics.median(read[name] / a / b for a, b in zip(each, most, strict=True))
            cell = f"{read[name] / took / 1e9:.1f} GB/s, {row['bandwidth']:.0%}"
        rows.append(row)
        print(
            f"| {prompt} | {items} | {name} | {row['ms']:.1f} | {items / took:.1f} | {row['of one item']:.1f}x | "
            f"{row['beside']:.2f}x | {cell} |",
            flush=True,
        )
    return rows


def ours(model: SequenceModel, precision: str, prompt: int, items: int, steps: int) -> tuple[Step, int]:
    """Return a function that times the steps of our engine, and the bytes that a step reads."""
    engine = GPTEngine(model, Request(batch_size=items, precision=precision))
    random = torch.Generator().manual_seed(0)
    # The state of a long prompt, without computing it: a step takes the same time whatever the keys are.
    d = CONFIG.dim // CONFIG.num_heads
    rings = torch.randn(items, CONFIG.num_heads, CONFIG.window, d, generator=random)
    layer = {"position": torch.tensor(prompt), "keys": rings, "values": rings}
    hidden, state = torch.randn(items, CONFIG.dim, generator=random), [layer] * CONFIG.num_layers

    def decode(count: int) -> float:
        seq, known = torch.zeros(items, 1, count, dtype=torch.int64), torch.zeros(1, count, dtype=torch.bool)
        began = time.process_time()
        engine.decode(seq, known, uniforms(range(items), 0, count, 1))
        return time.process_time() - began

    def step() -> float:
        engine.set_state(hidden, state)
        few = decode(2)
        return (decode(2 + steps) - few) / steps

    step()
    weights = sum(getattr(part, "weight", part).nbytes for part in engine._weights)
    keys = items * prompt * sum(array[:, :1].nbytes for array in engine._memory) // CONFIG.window
    return step, weights + keys


def bandwidth() -> float:
    """Return how many bytes per second this core reads from memory."""
    x = np.ones(2**26, np.float32)
    x.max()
    began = time.process_time()
    for _ in range(3):
        x.max()
    return 3 * x.nbytes / (time.process_time() - began)


def theirs(folder: Path) -> Callable[[int, int, int], float]:
    """Return a call of CTranslate2: items, prompt, steps -> seconds of a step."""
    try:
        import ctranslate2
        import transformers
        from ctranslate2.converters.transformers import GPT2Loader
    except ImportError as error:
        raise SystemExit(f"the peer is not installed: pip install {error.name}") from None
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=2048, n_embd=CONFIG.dim, n_layer=CONFIG.num_layers, n_head=CONFIG.num_heads
    )
    words = [f"w{i}" for i in range(V)]
    converted = GPT2Loader().get_model_spec(transformers.GPT2LMHeadModel(config).eval())
    converted.register_vocabulary(words)
    converted.config.bos_token = converted.config.eos_token = converted.config.unk_token = words[0]
    converted.validate()
    converted.optimize(quantization="int8")
    converted.save(str(folder))
    generator = ctranslate2.Generator(str(folder), compute_type="int8", inter_threads=1, intra_threads=1)

    def call(items: int, prompt: int, steps: int) -> float:
        start = [[words[b % V]] for b in range(items)]
        before = [words[7 * i % V] for i in range(1, prompt)]  # kept by CTranslate2 after the first call
        began = time.process_time()
        generator.generate_batch(
            start,
            max_length=steps,
            min_length=steps,
            sampling_topk=0,
            static_prompt=before or None,
            include_prompt_in_result=False,  # otherwise its length counts as steps
        )
        return time.process_time() - began

    def step(items: int, prompt: int, steps: int) -> float:
        call(items, prompt, 2)
        few = call(items, prompt, 2)
        return (call(items, prompt, 2 + steps) - few) / steps

    return step


if __name__ == "__main__":
    main()
