"""What guidance costs in each engine, beside MusicGen's decoder of transformers with its own guidance, in turn.

    pip install transformers
    python tests/bench/guidance.py [--rounds 5] [--steps 100] [--only NAME ...]

Guidance needs a second row per item: the model without its conditions. `cost` is the time of a call with guidance over
that of one without. The peer has the same size and random weights, too, and doubles its batch in the same way; it is
given no text, so it computes no cross-attention. One thread; all times are of the processor, medians of rounds in which
all are called in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from audiogen.generation import generate as generate_module
from audiogen.generation.engines import PRECISIONS
from audiogen.generation.engines.eager import Eager
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.models.backbones import Backbone
from audiogen.models.backbones.gpt import GPT
from audiogen.models.backbones.wavenet import WaveNet
from audiogen.models.conditioning import Conditioner, Label
from audiogen.models.patterns import Delay, Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import FrameSpec, Spec, TokenSpec

#: For all.py.
SHORT = "--rounds 1 --steps 10"
NEEDS = ("transformers",)

CODES = TokenSpec(sample_rate=24000, hop_length=320, num_codebooks=4, codebook_size=1024)
CASES: dict[str, tuple[Spec, Callable[[], Backbone]]] = {
    "GPT, 6 layers, 384, 4 x 1024 codes": (CODES, lambda: GPT(GPT.Config(384, 6, 6, window=512))),
    "GPT of the base, 100 bands": (FrameSpec(44100, 512, 100), lambda: GPT(GPT.Config(256, 6, 4, window=192))),
    "WaveNet, 20 layers, 64": (TokenSpec(16000, 1, 1, 256), lambda: WaveNet(WaveNet.Config())),
}
SCALE = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="frames of a call; 20 times as many samples")
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| model | by | steps/s | with guidance | cost | beside the peer |\n| --- | --- | --- | --- | --- | --- |")
    for name in args.only:
        spec, make = CASES[name]
        pattern = Delay(spec.num_rows) if spec.num_rows > 1 else Parallel(spec.num_rows)
        conditioner = Conditioner({"label": Label(Label.Config(("a", "b")), make().dim)})
        model = SequenceModel(spec, make(), pattern, conditioner).eval()
        steps = args.steps * (20 if spec.hop_length == 1 else 1)
        sides: dict[str, Callable[[float], Any]] = {"plain loop": plain(model, steps)}
        sides |= {f"engine, {precision}": engine(model, steps, precision) for precision in PRECISIONS}
        if spec is CODES:
            sides = {"transformers": peer(steps)} | sides
        show(name, steps, race(sides, args.rounds))


def engine(model: SequenceModel, steps: int, precision: str) -> Callable[[float], Any]:
    """Return a call of `generate` by its scale of guidance."""
    given = {"label": torch.zeros(1, 1, 1)}
    return lambda scale: (
        generate(model, steps, Request(seeds=[0], precision=precision, conditions=given, guidance=scale)).x
    )


def plain(model: SequenceModel, steps: int) -> Callable[[float], Any]:
    """Return the same call through the loop that serves every model."""
    steps, given = max(1, steps // 10), {"label": torch.zeros(1, 1, 1)}

    def call(scale: float) -> None:
        with patch.object(generate_module, "choose", Eager):
            generate(model, steps, Request(seeds=[0], conditions=given, guidance=scale))

    return call


def peer(steps: int) -> Callable[[float], Any]:
    """Return a call of the decoder of MusicGen, of the size of the first case."""
    try:
        import transformers
    except ImportError:
        raise SystemExit("the peer is not installed: pip install transformers") from None
    transformers.logging.set_verbosity_error()
    K, V = CODES.num_codebooks, CODES.codebook_size
    config = transformers.MusicgenDecoderConfig(
        vocab_size=V,
        num_codebooks=K,
        hidden_size=384,
        num_hidden_layers=6,
        ffn_dim=4 * 384,
        num_attention_heads=6,
        max_position_embeddings=2048,
        pad_token_id=V,
        bos_token_id=V,
        eos_token_id=None,
    )
    model = transformers.MusicgenForCausalLM(config).eval()
    model.generation_config.pad_token_id = model.generation_config.bos_token_id = V
    model.generation_config.decoder_start_token_id = V
    new = steps + K - 1  # its delay pattern takes K - 1 steps more, as ours does, and it counts them

    def call(scale: float) -> Any:
        with torch.inference_mode():
            return model.generate(
                torch.full((K, 1), V),
                do_sample=True,
                top_k=0,
                max_new_tokens=new,
                min_new_tokens=new,
                use_cache=True,
                num_return_sequences=1,
                eos_token_id=None,
                guidance_scale=scale,
            )

    return call


def race(sides: dict[str, Callable[[float], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Time each side without guidance and with it, in turn: medians in seconds."""
    seconds: dict[tuple[str, float], list[float]] = {}
    for r in range(rounds + 1):
        for name, call in sides.items():
            for scale in (1.0, SCALE):
                began = time.process_time()
                call(scale)
                if r:  # the first round compiles and warms up
                    seconds.setdefault((name, scale), []).append(time.process_time() - began)
    median = {key: statistics.median(times) for key, times in seconds.items()}
    return {name: (median[name, 1.0], median[name, SCALE]) for name in sides}


def show(name: str, steps: int, seconds: dict[str, tuple[float, float]]) -> None:
    theirs = seconds.get("transformers")
    for side, (alone, guided) in seconds.items():
        count = max(1, steps // 10) if side == "plain loop" else steps
        beside = f"{theirs[1] / steps / (guided / count):.1f}x" if theirs else "-"
        print(
            f"| {name} | {side} | {count / alone:.1f} | {count / guided:.1f} | {guided / alone:.2f} | {beside} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
