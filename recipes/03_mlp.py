"""Lesson 3: the multi-layer perceptron. How much does the past of a sound help?

    python recipes/03_mlp.py FOLDER [--out runs/03_mlp]

What it teaches. A table of what follows n tokens has V ** n rows, and nearly all of them are never met. Bengio et al.
(2003) put a function in the place of the table: each token gets a point in a small space (its embedding), the points
of the last n tokens are laid side by side, a layer of tanh units looks at all of them at once, and a last layer makes
logits of it. What is learned of one token then holds for those that lie near. Around it stands what every training
needs: a learning rate that was searched for and falls at the end, and three sides of the data. The training side
teaches, the dev side chooses (the rate, the context, the size), and the test side is looked at once: a figure that was
used for choosing is too good to be believed.

How it carries over to audio. Context is time: a token is 16 ms of sound, eight of them about as long as a vowel. No one
tells the model which tokens sound alike, yet embeddings put quiet ones here and loud ones there, high ones apart from
low ones, because they lead to like sounds. And there is little data: a few minutes are some ten thousand tokens, so the
largest model and the longest context are not the best ones.

What to try. --codes 64: coarser tokens have more in common; which context is the best one now? A folder of music: how
far back does it pay to look? --steps 20000: who gains by it, the small models or the large ones?
"""

import argparse
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from audiogen.audio import write_audio
from audiogen.backbones import MLP
from audiogen.data import Crops, Encoded, Sequences, encode_folder, split
from audiogen.evaluation.yardstick import baselines, held_out_score
from audiogen.listen import Clip, clip_cards, grid, note, picture, section, table, text, write_document
from audiogen.model import SequenceModel
from audiogen.patterns import Parallel
from audiogen.scripts import run_script

Parameters = list[Tensor]                       # C (V + 2, D), W1 (n D, H), b1 (H,), W2 (H, V), b2 (V,)
Examples = tuple[Tensor, Tensor]                # contexts (N, n) and what followed (N,)


def three_sides(encoded: Encoded) -> dict[str, Sequences]:
    """The library holds out one side; the dev side is held out of the rest by the same rule, the files' content."""
    parts = encoded.sides.train
    if len(parts) == 1:                         # one long file, which the library has cut: cut it once more
        cut = parts[0].start + 0.9 * (parts[0].stop - parts[0].start)
        train, dev = [dataclasses.replace(parts[0], stop=cut)], [dataclasses.replace(parts[0], start=cut)]
    else:
        rest = split(dataclasses.replace(encoded.cache.index, files=[part.file for part in parts]))
        train, dev = rest.train, rest.held_out
    return {name: Sequences(encoded.cache, side)
            for name, side in (("train", train), ("dev", dev), ("test", encoded.sides.held_out))}


def examples(sequences: Iterable[Tensor], n: int, V: int) -> Examples:
    """Every token of every file with the n before it. V stands for the file's start, V + 1 for what lies before that.

        n = 3, tokens 7 4 9:    V+1 V+1 V -> 7    V+1 V 7 -> 4    V 7 4 -> 9
    """
    contexts, following = [], []
    for codes in sequences:
        padded = F.pad(F.pad(codes[0], (1, 0), value=V), (n - 1, 0), value=V + 1)
        contexts.append(padded.unfold(0, n, 1)[:-1])
        following.append(codes[0])
    return torch.cat(contexts), torch.cat(following)


def new_model(n: int, D: int, H: int, V: int) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    C = torch.randn(V + 2, D, generator=generator)
    C[V + 1] = 0                                # before the start is nothing, now and for ever
    # How large weights should be at the start is the next lesson's subject.
    W1 = torch.randn(n * D, H, generator=generator) * (5 / 3) / math.sqrt(n * D)
    W2 = torch.randn(H, V, generator=generator) * 0.01
    return [x.requires_grad_() for x in (C, W1, torch.zeros(H), W2, torch.zeros(V))]


def logits(model: Parameters, contexts: Tensor) -> Tensor:
    """(N, n) -> (N, V)"""
    C, W1, b1, W2, b2 = model
    points = F.embedding(contexts, C, padding_idx=len(C) - 1)           # (N, n, D); the last row gets no gradient
    h = torch.tanh(points.flatten(1) @ W1 + b1)                         # (N, H)
    return h @ W2 + b2


@torch.no_grad()
def bits(model: Parameters, side: Examples) -> float:
    """Bits per token."""
    nats = [F.cross_entropy(logits(model, contexts), following, reduction="sum")
            for contexts, following in zip(side[0].split(8192), side[1].split(8192), strict=True)]
    return float(sum(nats)) / len(side[1]) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/03_mlp"))
    parser.add_argument("--short", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--codes", type=int, default=256, help="V, how many typical frames")
    parser.add_argument("--steps", type=int, default=6000, help="of each training")
    args = parser.parse_args()
    V, steps = (16, 60) if args.short else (args.codes, args.steps)
    D, H, usual, batch_size = 16, 200, 4, 64
    lengths, sizes = ((1, 4), (8, 64)) if args.short else ((1, 2, 4, 8, 16), (25, 100, 400, 1600))

    # 1. Three sides, by file. The front-end was fitted to training and dev files; both chose it, so to say.
    encoded = encode_folder(args.folder, args.out, "melvq", codebook_size=V)
    spec, sides = encoded.spec, three_sides(encoded)
    milliseconds = 1000 / spec.frame_rate
    counted = {name: baselines(spec, sides["train"], sides[name]) for name in ("dev", "test")}
    said = ", ".join(f"{name} {len(side)} files, {side.num_frames.sum():,} tokens" for name, side in sides.items())
    print(f"{said}; a token is {milliseconds:.0f} ms\ncounted, bits per dev token: "
          + ", ".join(f"{name} {value:.3f}" for name, value in counted["dev"].items()))

    # 2. The loop, in plain sight. `rates` says the learning rate of each step.
    def train(model: Parameters, n: int, rates: Tensor, looks: int = 12) -> tuple[Tensor, list[tuple[int, float, float]]]:
        """-> the loss of each step's batch, and (step, train bits, dev bits) now and then."""
        contexts, following = examples(sides["train"], n, V)
        some = contexts[:: max(1, len(contexts) // 8192)], following[:: max(1, len(contexts) // 8192)]
        dev, generator = examples(sides["dev"], n, V), torch.Generator().manual_seed(1)
        losses, curve = torch.empty(len(rates)), []
        for step, rate in enumerate(rates.tolist()):
            batch = torch.randint(len(contexts), (batch_size,), generator=generator)
            loss = F.cross_entropy(logits(model, contexts[batch]), following[batch])
            gradients = torch.autograd.grad(loss, model)
            with torch.no_grad():
                for parameter, gradient in zip(model, gradients, strict=True):
                    parameter -= rate * gradient
            losses[step] = loss.detach() / math.log(2)
            if looks and (step + 1) % max(1, len(rates) // looks) == 0:
                curve.append((step + 1, bits(model, some), bits(model, dev)))
        return losses, curve

    # 3. The learning rate: one short run in which it rises from far too small to far too large.
    tried = 10 ** torch.linspace(-3, 1, max(40, steps // 5))
    rising, _ = train(new_model(usual, D, H, V), usual, tried, looks=0)
    width = max(1, len(tried) // 20)
    smooth = rising.unfold(0, width, 1).mean(dim=1)
    lowest = float(tried[int(smooth.nan_to_num(math.inf).argmin()) + width // 2])
    top = lowest / 3                            # where it still falls steeply: at the lowest point it is about to turn
    rates = torch.full((steps,), top)
    rates[int(0.75 * steps):] /= 10             # the step decay
    print(f"learning rate: the loss is lowest at {lowest:.2g}, so {top:.2g}, and a tenth of it for the last quarter")

    # 4. Context: 1 token sees what the bigram sees.
    models, curves = {}, {}
    for n in lengths:
        models[n] = new_model(n, D, H, V)
        losses, curves[n] = train(models[n], n, rates)
        if n == usual:
            falling = losses
        print(f"context {n:2} ({n * milliseconds:3.0f} ms): train {curves[n][-1][1]:.3f}, dev {curves[n][-1][2]:.3f} "
              "bits per token")
    best = min(lengths, key=lambda n: curves[n][-1][2])

    # 5. Capacity: more units learn the training files ever better, and the dev files only up to a point.
    by_size = {}
    for size in sizes:
        by_size[size] = train(new_model(best, D, size, V), best, rates)[1]
        print(f"{size:4} hidden units: train {by_size[size][-1][1]:.3f}, dev {by_size[size][-1][2]:.3f}")

    # 6. Embeddings to look at: two dimensions, as in the course, so that nothing has to be projected.
    flat = new_model(usual, 2, H, V)
    _, curve = train(flat, usual, rates)
    print(f"embeddings of 2 dimensions: train {curve[-1][1]:.3f}, dev {curve[-1][2]:.3f}")

    # 7. The test side, once, with what the dev side has chosen.
    test = bits(models[best], examples(sides["test"], best, V))
    print(f"context {best} on the test side: {test:.3f}; bigram {counted['test']['bigram']:.3f}")
