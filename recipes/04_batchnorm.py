"""Lesson 4: batch normalisation. How to start, and how to look inside.

    python recipes/04_batchnorm.py FOLDER [--out runs/04_batchnorm]

What it teaches. A deep network can be lost before its first step. If the last layer begins with large weights, it is
sure of what it can't know, and training spends its time on taking that back (the loss falls like a hockey stick). If
the layers before it do, their tanh units lie at -1 or 1, where the slope is nearly nothing, and no gradient gets
through. The right size keeps the signal's spread the same from layer to layer: 1 / sqrt(inputs), times 5/3 for what
tanh squeezes. Batch normalisation enforces what initialisation can only hope for: each unit's sums are shifted and
scaled to mean 0 and variance 1 over the batch. Four pictures show whether a network is well: activations, gradients,
the weights' gradients beside the weights, and how much a step changes the weights, which should be about a thousandth.

How it carries over to audio. The network is lesson 3's, which names the next 16 ms of sound, but five layers deep.
Nothing here depends on what the tokens stand for: the same pictures are drawn for any training run of the library, be it
a WaveNet's gates or a GPT's attention, by `audiogen train FOLDER --out RUN --diagnostics`.

What to try. --rate 0.05: which starts suffer most? --depth 12: which ones still learn? Take tanh away (make Tanh return
its input): why is a deep network then no better than one layer, and which gain keeps the spread now?
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.audio import write_audio
from audiogen.backbones import MLP
from audiogen.data import encode_folder
from audiogen.evaluation.yardstick import baselines
from audiogen.listen import Clip, clip_cards, grid, note, picture, section, table, text, write_document
from audiogen.model import SequenceModel
from audiogen.patterns import Parallel
from audiogen.scripts import run_script
from audiogen.training.diagnostics import SATURATED, observe

CONTEXT, DIM, WIDTH, BATCH = 4, 16, 100, 64


# The parts: each keeps what it gave as `out`, to be looked at.

class Embedding:
    def __init__(self, C: Tensor):
        self.C = C                                                      # (V + 2, D): V the start, V + 1 nothing

    def __call__(self, x: Tensor) -> Tensor:
        self.out = F.embedding(x, self.C, padding_idx=len(self.C) - 1).flatten(1)       # (N, n) -> (N, n D)
        return self.out

    def parameters(self) -> list[Tensor]:
        return [self.C]


class Linear:
    def __init__(self, W: Tensor, b: Tensor):
        self.W, self.b = W, b

    def __call__(self, x: Tensor) -> Tensor:
        self.out = x @ self.W + self.b
        return self.out

    def parameters(self) -> list[Tensor]:
        return [self.W, self.b]


class Tanh:
    def __call__(self, x: Tensor) -> Tensor:
        self.out = torch.tanh(x)
        return self.out

    def parameters(self) -> list[Tensor]:
        return []


class BatchNorm:
    """Ioffe and Szegedy 2015, algorithm 1. In training by the batch's own mean and variance, of which running averages
    are kept; these serve in evaluation, where a sound must not depend on what it is judged together with."""

    def __init__(self, gain: Tensor, shift: Tensor):
        self.gain, self.shift, self.training = gain, shift, True
        self.mean, self.variance = torch.zeros(len(gain)), torch.ones(len(gain))

    def __call__(self, x: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
            with torch.no_grad():               # of all data, not of the batch, hence N - 1
                self.mean += 0.1 * (mean - self.mean)
                self.variance += 0.1 * (x.var(dim=0) - self.variance)
        self.out = (x - mean) / (variance + 1e-5).sqrt() * self.gain + self.shift
        return self.out

    def parameters(self) -> list[Tensor]:
        return [self.gain, self.shift]


Layers = list[Embedding | Linear | BatchNorm | Tanh]


def new_network(V: int, depth: int, gain: float | None, last: float, batch_norm: bool) -> Layers:
    """`gain` is that of Kaiming's rule, None leaves torch.randn as it is; `last` scales the last layer's weights."""
    generator = torch.Generator().manual_seed(0)

    def weights(fan_in: int, fan_out: int) -> Tensor:
        return torch.randn(fan_in, fan_out, generator=generator) * (1 if gain is None else gain / math.sqrt(fan_in))

    C = torch.randn(V + 2, DIM, generator=generator)
    C[V + 1] = 0
    layers: Layers = [Embedding(C)]
    for layer in range(depth):
        layers.append(Linear(weights(WIDTH if layer else CONTEXT * DIM, WIDTH), torch.zeros(WIDTH)))
        if batch_norm:
            layers.append(BatchNorm(torch.ones(WIDTH), torch.zeros(WIDTH)))
        layers.append(Tanh())
    return [*layers, Linear(last * weights(WIDTH, V), torch.zeros(V))]


def run(layers: Layers, x: Tensor, training: bool = True) -> Tensor:
    """Contexts (N, n) -> logits (N, V)."""
    for layer in layers:
        layer.training = training
        x = layer(x)
    return x


def parameters(layers: Layers) -> list[Tensor]:
    return [parameter.requires_grad_() for layer in layers for parameter in layer.parameters()]


@dataclass
class Look:
    """A network in one picture: of each tanh, outputs and gradient (N, H); of each matrix, gradient over data."""

    loss: float
    outputs: list[Tensor]
    gradients: list[Tensor]
    matrices: list[Tensor]

    @property
    def saturated(self) -> list[float]:
        return [float((y.abs() > SATURATED).float().mean()) for y in self.outputs]

    @property
    def dead(self) -> int:
        """Units, of all layers, that are saturated for every example."""
        return sum(int((y.abs() > SATURATED).all(dim=0).sum()) for y in self.outputs)


def look(layers: Layers, contexts: Tensor, following: Tensor) -> Look:
    matrices = [p for p in parameters(layers) if p.ndim == 2]
    loss = F.cross_entropy(run(layers, contexts), following)
    outputs = [layer.out for layer in layers if isinstance(layer, Tanh)]
    gradients = torch.autograd.grad(loss, [*outputs, *matrices])
    ratios = [g / p.std() for g, p in zip(gradients[len(outputs):], matrices, strict=True)]
    return Look(loss.item() / math.log(2), [y.detach() for y in outputs], list(gradients[:len(outputs)]),
                [ratio.detach() for ratio in ratios])


def examples(sequences: Iterable[Tensor], V: int) -> tuple[Tensor, Tensor]:
    """Every token with the ones before it, as in lesson 3."""
    contexts, following = [], []
    for codes in sequences:
        padded = F.pad(F.pad(codes[0], (1, 0), value=V), (CONTEXT - 1, 0), value=V + 1)
        contexts.append(padded.unfold(0, CONTEXT, 1)[:-1])
        following.append(codes[0])
    return torch.cat(contexts), torch.cat(following)


@torch.no_grad()
def bits(layers: Layers, contexts: Tensor, following: Tensor) -> float:
    nats = [F.cross_entropy(run(layers, x, training=False), y, reduction="sum")
            for x, y in zip(contexts.split(8192), following.split(8192), strict=True)]
    return float(sum(nats)) / len(following) / math.log(2)


@torch.no_grad()
def draw(layers: Layers, V: int, length: int, generator: torch.Generator) -> Tensor:
    codes = torch.tensor([V + 1] * (CONTEXT - 1) + [V])
    for _ in range(length):
        p = run(layers, codes[-CONTEXT:][None], training=False).softmax(dim=1)
        codes = torch.cat([codes, torch.multinomial(p[0], 1, generator=generator)])
    return codes[CONTEXT:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/04_batchnorm"))
    parser.add_argument("--short", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--codes", type=int, default=256, help="V, how many typical frames")
    parser.add_argument("--depth", type=int, default=5, help="hidden layers")
    parser.add_argument("--steps", type=int, default=4000, help="of each training")
    parser.add_argument("--rate", type=float, default=0.5, help="learning rate; a tenth of it for the last quarter")
    args = parser.parse_args()
    V, steps, depth = (16, 40, 3) if args.short else (args.codes, args.steps, args.depth)

    # 1. Tokens, as in lesson 3. The same examples are looked at throughout.
    encoded = encode_folder(args.folder, args.out, "melvq", codebook_size=V)
    spec = encoded.spec
    contexts, following = examples(encoded.training, V)
    held_out = examples(encoded.held_out, V)
    counted = baselines(spec, encoded.training, encoded.held_out)
    generator = torch.Generator().manual_seed(1)
    shown = torch.randperm(len(contexts), generator=generator)[:512]
    print(f"{encoded.sides.summary}; {math.log2(V):.3f} bits per token if nothing is known, {counted['bigram']:.3f} by "
          "counting pairs")

    # 2. Five starts, each trained in the same way on the same batches.
    starts = {"careless": (None, 1.0, False), "quiet end": (None, 0.01, False), "Kaiming": (5 / 3, 0.01, False),
              "batch norm": (5 / 3, 0.01, True), "careless, batch norm": (None, 0.01, True)}
    networks, before, after, losses, steps_of, scores = {}, {}, {}, {}, {}, {}
    for name, start in starts.items():
        layers = networks[name] = new_network(V, depth, *start)
        weights, generator = parameters(layers), torch.Generator().manual_seed(2)
        matrices = [p for p in weights if p.ndim == 2]
        before[name], losses[name], steps_of[name] = look(layers, contexts[shown], following[shown]), [], []
        for step in range(steps):
            batch = torch.randint(len(contexts), (BATCH,), generator=generator)
            loss = F.cross_entropy(run(layers, contexts[batch]), following[batch])
            gradients = torch.autograd.grad(loss, weights)
            rate = args.rate if step < 0.75 * steps else args.rate / 10
            with torch.no_grad():
                for parameter, gradient in zip(weights, gradients, strict=True):
                    parameter -= rate * gradient
                if step % max(1, steps // 100) == 0:                    # how far did the step move each matrix?
                    moved = [rate * g for g in gradients if g.ndim == 2]
                    steps_of[name].append([float((m.std() / p.std()).log10())
                                           for m, p in zip(moved, matrices, strict=True)])
            losses[name].append(loss.item() / math.log(2))
        after[name] = look(layers, contexts[shown], following[shown])
        scores[name] = bits(layers, contexts[::8], following[::8]), bits(layers, *held_out)
        print(f"{name:>20}: first loss {before[name].loss:6.3f}, {np.mean(before[name].saturated):4.0%} saturated, "
              f"{before[name].dead:3} of {depth * WIDTH} dead; then train {scores[name][0]:.3f}, "
              f"held out {scores[name][1]:.3f}")

    # 3. Why 5/3: the spread of signal and gradient from layer to layer, before any step.
    spreads = {}
    for batch_norm in (False, True):
        for gain in (0.5, 1.0, 5 / 3, 3.0):
            seen = look(new_network(V, depth, gain, 1.0, batch_norm), contexts[shown], following[shown])
            spreads[gain, batch_norm] = [[float(x.std()) for x in xs] for xs in (seen.outputs, seen.gradients)]

    # 4. Batch norm is torch's: outputs, gradients and running averages.
    ours, theirs = BatchNorm(torch.ones(WIDTH), torch.zeros(WIDTH)), nn.BatchNorm1d(WIDTH)
    x = torch.randn(BATCH, WIDTH, generator=generator).mul(3).add(1).requires_grad_()
    slopes = [torch.autograd.grad(norm(x).square().mul(x).sum(), x)[0] for norm in (ours, theirs)]
    for a, b in ((ours.out, theirs(x)), slopes, (ours.mean, theirs.running_mean), (ours.variance, theirs.running_var)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4) if a is not ours.mean and a is not ours.variance else None
