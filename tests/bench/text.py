"""What a caption costs: ms per training step, and per generated step at batch 1 in the plain loop, in turn.

    python tests/bench/text.py [--rounds 5]

One thread; all times are of the processor, medians of rounds in which all are called in turn. In training, a crop
holds five files, each with its caption, as with short recordings.
"""

import argparse
import math
import statistics
import time
from unittest.mock import patch

import torch

from audiogen.generation import generate as generate_module
from audiogen.generation.engines.eager import Eager
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.models.backbones.gpt import GPT
from audiogen.models.batch import Batch
from audiogen.models.conditioning import Conditioner, Label, Text
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.spec import FrameSpec

#: For all.py.
SHORT = "--rounds 1"

SPEC = FrameSpec(44100, 512, 100)
B, T, FILES = 4, 256, 5
CAPTION = "a dry snare with a long tail, recorded in a small room"


def build(cross_attention: bool, **parts: type) -> SequenceModel:
    backbone = GPT(GPT.Config(256, 6, 4, window=192, cross_attention=cross_attention))
    configs = {"label": Label.Config(("a", "b")), "text": Text.Config()}
    conditioner = Conditioner({name: part(configs[name], 256) for name, part in parts.items()}) if parts else None
    if cross_attention and conditioner is not None:
        conditioner.parts["text"].serve(6)  # pyright: ignore[reportCallIssue]
    return SequenceModel(SPEC, backbone, Parallel(1), conditioner)


def captions(model: SequenceModel, items: int, files: int, frames: int) -> dict[str, torch.Tensor]:
    """Values of the model's conditions, another for each file."""
    found = {}
    for name, part in model.conditioner.parts.items() if model.conditioner else ():
        values = ["a", "b"] if name == "label" else [f"{CAPTION} {i}" for i in range(items * files)]
        columns = [part.parse(name, values[i % len(values)]) for i in range(items * files)]
        x = torch.stack(columns).unflatten(0, (items, files))[..., 0].transpose(1, 2)  # (items, F, files)
        found[name] = x.repeat_interleave(math.ceil(frames / files), dim=2)[..., :frames]
    return found


def train_step(model: SequenceModel, batch: Batch) -> None:
    model.zero_grad()
    model(batch).mean().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {
        "no condition": build(False),
        "a label": build(False, label=Label),
        "a caption": build(False, text=Text),
        "a caption, by cross-attention": build(True, text=Text),
    }
    x, steps = torch.randn(B, 100, T), 100
    calls = {}
    for name, model in models.items():
        batch = Batch(x, captions(model, B, FILES, T) or None)
        request = Request(seeds=[0], conditions=captions(model, 1, 1, 1) or None)
        calls[name] = (
            lambda model=model, batch=batch: train_step(model.train(), batch),
            lambda model=model, request=request: generate(model.eval(), steps, request),
        )
    times = {name: ([], []) for name in calls}
    with patch.object(generate_module, "choose", Eager):
        for i in range(args.rounds + 1):
            for name, pair in calls.items():
                for kept, call in zip(times[name], pair, strict=True):
                    began = time.process_time()
                    call()
                    if i:  # the first round warms up
                        kept.append(1000 * (time.process_time() - began))
    print("| text | ms per training step | ms per generated step |\n| --- | --- | --- |")
    for name, (training, generation) in times.items():
        print(f"| {name} | {statistics.median(training):.0f} | {statistics.median(generation) / steps:.2f} |")


if __name__ == "__main__":
    main()
