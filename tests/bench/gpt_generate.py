"""Generating with GPT beside transformers' `generate` with its cache, in turn, in one process.

    pip install transformers
    python tests/bench/gpt_generate.py [--threads 1] [--rounds 5] [--steps 100] [--only NAME] [--json gpt_generate.json]

Models of the same size with weights by chance; what is timed is a whole call, prompt, packing of the weights and draws
included. PyTorch and our engine use as many threads as they are given. With one thread all times
are of the processor, which other work on the machine disturbs less. The accuracy of bf16 and int8 is stated in bits of
held-out codes, for a model that is trained here; what the first call costs, compiling and not, is measured in processes
of its own.
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
from typing import Any

import torch
from precision import walk
from torch import Tensor
from torch.nn import functional as F

from audiogen.generation.engines import PRECISIONS
from audiogen.generation.engines.cpu.gpt import GPTEngine
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.models.backbones.gpt import GPT
from audiogen.models.batch import Batch
from audiogen.models.patterns import Delay, Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import TokenSpec

#: For all.py.
SHORT = "--rounds 1 --steps 10 --prompts 1 --skip-first-call"
NEEDS = ("transformers",)

LARGE = TokenSpec(sample_rate=24000, hop_length=320, num_codebooks=1, codebook_size=2048)
SMALL = TokenSpec(sample_rate=24000, hop_length=320, num_codebooks=4, codebook_size=1024)
CASES = {  # name: spec, backbone, batch sizes, prompts in frames
    "12 layers, 768, vocabulary 2048": (LARGE, GPT.Config(768, 12, 12, window=1024), (1,), (1, 32, 256, 900)),
    "6 layers, 384, 4 x 1024, delay": (SMALL, GPT.Config(384, 6, 6, window=512), (1, 16), (1,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="that PyTorch and the engines may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="new frames of a call")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--prompts", type=int, nargs="+", help="frames, in the place of each case's own")
    parser.add_argument("--skip-first-call", action="store_true", help="do not time compilation")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter

    print(
        f"\nframes a second of each item, medians of {args.rounds} rounds of {args.steps} frames; PyTorch "
        f"{torch.__version__} on {args.threads} thread(s), our engine on one\n",
        flush=True,
    )
    print(
        "| model | batch | prompt | transformers |"
        + "".join(f" {p} |" for p in PRECISIONS)
        + "\n| --- | --- | --- | --- |"
        + " --- |" * len(PRECISIONS)
    )
    rows, sizes = [], {}
    for name in args.only:
        spec, config, batch_sizes, prompts = CASES[name]
        model = SequenceModel(spec, GPT(config), (Delay if spec.num_codebooks > 1 else Parallel)(spec.num_rows)).eval()
        peer = theirs(spec, config)
        for batch_size in batch_sizes:
            for prompt in args.prompts or prompts:
                row = race(model, peer, batch_size, prompt, args, clock)
                rows.append({"model": name, "batch": batch_size, "prompt": prompt, **row})
                engine = "".join(f" {row[p]:.1f} ({row[p] / row['transformers']:.1f}x) |" for p in PRECISIONS)
                print(f"| {name} | {batch_size} | {prompt} | {row['transformers']:.1f} |{engine}", flush=True)
        for precision in PRECISIONS:
            engine = GPTEngine(model, Request(precision=precision))
            packed = sum(getattr(part, "weight", part).nbytes for part in engine._weights)
            sizes[name, precision] = packed, sum(array.nbytes for array in engine._memory)
    print()
    for (name, precision), (packed, state) in sizes.items():
        print(f"{name}, {precision}: {packed / 2**20:.0f} MiB as packed, an item's state {state / 2**20:.0f} MiB")
    accuracy = held_out_bits()
    for precision, bits in accuracy.items():
        print(f"held-out bits per code, {precision}: {bits:.4f} ({bits / accuracy['fp32'] - 1:+.2%})", flush=True)
    first = {}
    for precision in () if args.skip_first_call else PRECISIONS:
        with tempfile.TemporaryDirectory() as cache:
            first[precision] = [first_call(precision, cache) for _ in range(2)]
        print(
            "first call, {}: {:.1f} s compiling, {:.2f} s compiled before".format(precision, *first[precision]),
            flush=True,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process, both sides and torch: {peak:.0f} MiB")
    if args.json:
        import transformers

        about = {
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": args.threads,
            "rounds": args.rounds,
            "steps": args.steps,
        }
        args.json.write_text(
            json.dumps(
                {
                    **about,
                    "held_out_bits": accuracy,
                    "first_call_seconds": first,
                    "rows": rows,
                    "mebibytes": {" ".join(key): [x / 2**20 for x in size] for key, size in sizes.items()},
                    "peak_mebibytes": peak,
                },
                indent=2,
            )
            + "\n"
        )


def theirs(
    spec: TokenSpec, config: GPT.Config, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Callable[[int, int, int], Any]:
    """transformers' decoder of this size, as a call of batch size, frames of the prompt, new frames."""
    try:
        import transformers
    except ImportError:
        raise SystemExit("the peer is not installed: pip install transformers") from None
    transformers.logging.set_verbosity_error()
    K, V = spec.num_codebooks, spec.codebook_size
    if K == 1:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=V,
                n_positions=2048,
                n_embd=config.dim,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    else:
        model = transformers.MusicgenForCausalLM(
            transformers.MusicgenDecoderConfig(
                vocab_size=V,
                num_codebooks=K,
                hidden_size=config.dim,
                num_hidden_layers=config.num_layers,
                ffn_dim=4 * config.dim,
                num_attention_heads=config.num_heads,
                max_position_embeddings=2048,
                pad_token_id=V,
                bos_token_id=V,
                eos_token_id=None,
            )
        )
        # What generate asks for, and what no setting of the call reaches.
        model.generation_config.pad_token_id = model.generation_config.bos_token_id = V
        model.generation_config.decoder_start_token_id = V
    model.eval().to(device, dtype)

    def call(batch_size: int, prompt: int, steps: int) -> Any:
        ids = torch.full((batch_size * K, 1), V) if K > 1 else torch.randint(V, (batch_size, prompt))
        ids = ids.to(device)
        extra = {"pad_token_id": 0} if K == 1 else {"guidance_scale": 1.0, "num_return_sequences": 1}
        # Its delay pattern takes K - 1 steps more, as ours does, and it counts them among the new ones.
        new = steps if K == 1 else steps + K - 1
        with torch.inference_mode():
            return model.generate(
                ids,
                do_sample=True,
                top_k=0,
                max_new_tokens=new,
                min_new_tokens=new,
                use_cache=True,
                eos_token_id=None,
                **extra,
            )

    return call


def race(
    model: SequenceModel,
    peer: Callable,
    batch_size: int,
    prompt: int,
    args: argparse.Namespace,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Frames a second of each item, by each side."""
    start = torch.randint(model.spec.codebook_size, (batch_size, model.spec.num_codebooks, prompt))

    def ours(precision: str) -> Callable[[], Tensor]:
        return lambda: generate(model, args.steps, Request(start, seeds=range(batch_size), precision=precision)).x

    sides = {"transformers": lambda: peer(batch_size, prompt, args.steps), **{p: ours(p) for p in PRECISIONS}}
    seconds = {name: [] for name in sides}
    for r in range(args.rounds + 1):
        for name, call in sides.items():
            began = clock()
            call()
            if r:  # the first round compiles and warms up
                seconds[name].append(clock() - began)
    return {name: args.steps / statistics.median(times) for name, times in seconds.items()}


def held_out_bits(steps: int = 150) -> dict[str, float]:
    """Bits per code of codes never trained on, by precision, of a small model trained here."""
    spec = TokenSpec(8000, 128, 1, 256)
    torch.manual_seed(0)
    model = SequenceModel(spec, GPT(GPT.Config(128, 4, 4, window=256)), Parallel(1))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(steps):
        x = walk(spec, 8, 256, step)
        loss = model(Batch(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    x, bits = walk(spec, 8, 1024, -1 % 2**31), {}
    for precision in PRECISIONS:
        logits = GPTEngine(model, Request(batch_size=len(x), precision=precision)).logits(x)  # (B, S, 1, V)
        bits[precision] = float(F.cross_entropy(logits.flatten(0, 2).double(), x.flatten())) / 0.6931471805599453
    return bits


def first_call(precision: str, cache: str) -> float:
    """Seconds of two frames in a new process, numba's import included, torch's not."""
    script = (
        "import time, torch\n"
        "from audiogen.generation.generate import generate\n"
        "from audiogen.generation.request import Request\n"
        "from audiogen.models.backbones.gpt import GPT\n"
        "from audiogen.models.patterns import Parallel\n"
        "from audiogen.models.sequence_model import SequenceModel\n"
        "from audiogen.spec import TokenSpec\n"
        "model = SequenceModel(TokenSpec(8000, 80, 1, 64), GPT(GPT.Config(64, 2, 2, 16)), Parallel(1))\n"
        f"began = time.perf_counter(); generate(model, 2, Request(precision={precision!r}))\n"
        "print(time.perf_counter() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"NUMBA_CACHE_DIR": cache},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


if __name__ == "__main__":
    main()
