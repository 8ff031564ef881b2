"""Lesson 4: batch normalisation. How to initialise a network, and how to look inside it.

    python recipes/04_batchnorm.py FOLDER [--out runs/04_batchnorm]

What it teaches. A deep network can fail before its first step. If the last layer starts with large weights, the network
makes confident predictions that are wrong, and training first has to undo them (the loss curve looks like a hockey
stick). If the layers before it start with large weights, their tanh units saturate at -1 or 1, where the derivative is
nearly zero, and almost no gradient gets through. The right scale keeps the standard deviation of the signal the same
from layer to layer: weights of deviation 1 / sqrt(inputs), times 5/3 because tanh shrinks its input. Batch
normalisation (audiogen/course/stack.py) enforces what initialisation can only aim for: it normalises the input of each
unit to mean 0 and variance 1 over the batch. Four pictures show whether a network is healthy: its activations, their
gradients, the gradients of the weights relative to the weights, and the relative size of each update, which should be
about a thousandth.

How it carries over to audio. The network is that of lesson 3, which predicts the next 16 ms of sound, but five layers
deep. Nothing here depends on what the tokens stand for: `audiogen train FOLDER --out RUN --diagnostics` draws such
pictures for any training run of the library, whether of a WaveNet's gates or of a GPT's attention.

What to try. --rate 0.05: which initialisations suffer most? --depth 12: which ones still learn? Remove tanh (make Tanh
return its input): why is a deep network then no better than a single layer, and which gain keeps the deviation now?
"""

import inspect
import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from audiogen.audio.io import write_audio
from audiogen.course.fixed_context import bits, draw, examples, joined
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.course.stack import BatchNorm, Embedding, Layer, Linear, Tanh, run, stack_of
from audiogen.data import encode_folder
from audiogen.evaluation.scores import baselines
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.listen.html import code
from audiogen.models.backbones import MLP
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.training.diagnostics import SATURATED, observe
from audiogen.utils.scripts import run_script

CONTEXT, DIM, WIDTH, BATCH = 4, 16, 100, 64
GAINS = (0.5, 1.0, 5 / 3, 3.0)


def new_network(V: int, depth: int, gain: float | None, last: float, batch_norm: bool) -> list[Layer]:
    """Initialise a network of tanh layers.

    Args:
        V: number of tokens.
        depth: number of hidden layers.
        gain: gain of Kaiming's rule; None leaves the weights with deviation 1.
        last: factor of the weights of the last layer.
        batch_norm: put batch norm before each tanh.
    """
    generator = torch.Generator().manual_seed(0)

    def weights(fan_in: int, fan_out: int) -> Tensor:
        return torch.randn(fan_in, fan_out, generator=generator) * (1 if gain is None else gain / math.sqrt(fan_in))

    C = torch.randn(V + 2, DIM, generator=generator)
    C[V + 1] = 0  # padding before the start, as in lesson 3
    layers: list[Layer] = [Embedding(C)]
    for layer in range(depth):
        layers.append(Linear(weights(WIDTH if layer else CONTEXT * DIM, WIDTH), torch.zeros(WIDTH)))
        if batch_norm:
            layers.append(BatchNorm(torch.ones(WIDTH), torch.zeros(WIDTH)))
        layers.append(Tanh())
    return [*layers, Linear(last * weights(WIDTH, V), torch.zeros(V))]


@dataclass
class Look:
    """What one batch shows about a network.

    Attributes:
        loss: bits per token.
        outputs: activations of each tanh, (N, H).
        gradients: gradient with respect to these, (N, H).
        matrices: gradient of each weight matrix, divided by the standard deviation of its weights.
        saturated: (depth,), fraction of saturated activations in each layer.
        dead: number of units that are saturated for all N examples.
        apart: ratio of the gradients' deviations in the first and the last layer, or its inverse, at least 1.
    """

    loss: float
    outputs: list[Tensor]
    gradients: list[Tensor]
    matrices: list[Tensor]

    def __post_init__(self):
        saturated = torch.stack(self.outputs).abs() > SATURATED  # (depth, N, H)
        self.saturated, self.dead = saturated.float().mean(dim=(1, 2)), int(saturated.all(dim=1).sum())
        first, last = self.gradients[0].std(), self.gradients[-1].std()
        self.apart = float(max(first / last, last / first))


def look(layers: list[Layer], contexts: Tensor, following: Tensor) -> Look:
    """Run a batch forward and backward, without a step: contexts (N, n) and the tokens (N,) that follow them."""
    loss = F.cross_entropy(run(layers, True, contexts), following)
    outputs = [layer.out for layer in layers if isinstance(layer, Tanh)]
    matrices = [weight for layer in layers for weight in layer.weights if weight.ndim == 2]
    gradients = torch.autograd.grad(loss, [*outputs, *matrices])
    ratios = [(g / p.std()).detach() for g, p in zip(gradients[len(outputs) :], matrices, strict=True)]
    return Look(loss.item() / math.log(2), [y.detach() for y in outputs], list(gradients[: len(outputs)]), ratios)


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, the number of typical frames")
    parser.add_argument("--depth", type=int, default=5, help="number of hidden layers")
    parser.add_argument("--steps", type=int, default=4000, help="training steps of each network")
    parser.add_argument("--rate", type=float, default=0.5, help="learning rate; a tenth of it in the last quarter")
    args = parser.parse_args()
    V, steps, depth = (16, 40, 3) if args.short else (args.codes, args.steps, args.depth)

    # 1. Tokens, as in lesson 3.
    encoded = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=V)
    spec, held_out = encoded.spec, encoded.held_out
    contexts, following = examples(encoded.training, CONTEXT, V)
    bigram, generator = baselines(spec, encoded.training, held_out)["bigram"], torch.Generator().manual_seed(1)
    shown = torch.randperm(len(contexts), generator=generator)[:512]  # the same examples in every picture
    print(
        f"{encoded.sides.summary}; {math.log2(V):.3f} bits per token for a uniform guess, {bigram:.3f} for the counted "
        "bigram"
    )

    # 2. Five initialisations: each is trained in the same way on the same batches.
    starts = {
        "unscaled": (None, 1.0, False),
        "small last layer": (None, 0.01, False),
        "Kaiming": (5 / 3, 0.01, False),
        "batch norm": (5 / 3, 0.01, True),
        "unscaled, batch norm": (None, 0.01, True),
    }
    networks, before, after, losses, moves, scores = {}, {}, {}, {}, {}, {}
    for name, start in starts.items():
        layers = networks[name] = new_network(V, depth, *start)
        weights, order = [w for layer in layers for w in layer.weights], torch.Generator().manual_seed(2)
        before[name], losses[name], moves[name] = look(layers, contexts[shown], following[shown]), [], []
        for step in range(steps):
            batch = torch.randint(len(contexts), (BATCH,), generator=order)
            loss = F.cross_entropy(run(layers, True, contexts[batch]), following[batch])
            gradients = torch.autograd.grad(loss, weights)
            rate = args.rate if step < 0.75 * steps else args.rate / 10
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= rate * gradient
                if step % max(1, steps // 100) == 0:  # relative size of the update of each matrix
                    moves[name].append(
                        [
                            float((rate * g.std() / w.std()).log10())
                            for g, w in zip(gradients, weights, strict=True)
                            if w.ndim == 2
                        ]
                    )
            losses[name].append(loss.item() / math.log(2))
        after[name] = look(layers, contexts[shown], following[shown])
        scores[name] = [
            bits(partial(run, layers, False), *side)
            for side in ((contexts[::8], following[::8]), examples(held_out, CONTEXT, V))
        ]
        print(
            f"{name:>20}: first loss {before[name].loss:6.3f}, {before[name].saturated.mean():4.0%} saturated, "
            f"{before[name].dead} of {depth * WIDTH} units dead; after training: train {scores[name][0]:.3f}, "
            f"held out {scores[name][1]:.3f}"
        )

    # 3. Why 5/3: the deviation of signal and gradient from layer to layer, before any step.
    spreads = {}
    for gain, batch_norm in itertools.product(GAINS, (False, True)):
        seen = look(new_network(V, depth, gain, 1.0, batch_norm), contexts[shown], following[shown])
        spreads[gain, batch_norm] = [[float(x.std()) for x in xs] for xs in (seen.outputs, seen.gradients)]

    # 4. A side effect of batch norm: the logits of an example depend on the rest of its batch, most in small batches.
    jitter = {}
    with torch.no_grad():
        for size in (4, 16, 64, 256):
            others = torch.randint(len(contexts), (50, size - 1), generator=generator)
            answers = torch.stack(
                [run(networks["batch norm"], True, torch.cat([contexts[:1], contexts[rest]]))[0] for rest in others]
            )  # (50, V): logits of the same example
            jitter[size] = float(answers.std(dim=0).mean() / answers.mean(dim=0).std())
    print(
        "variation of one example's logits under batch norm: "
        + ", ".join(f"{value:.1%} in batches of {size}" for size, value in jitter.items())
    )

    # 5. The library's MLP is this stack: its diagnostics measure what the pictures show.
    torch.manual_seed(0)
    library = SequenceModel(
        spec,
        MLP(MLP.Config(dim=DIM, context=CONTEXT, hidden_dim=WIDTH, num_layers=depth, batch_norm=True)),
        Parallel(1),
    )
    batch, _ = encoded.crops(num_frames=64, batch_size=16).batch(0)
    with observe(library) as seen:
        nats, tokens = library.nll(batch)
        (nats / tokens).backward()
    mine = look(stack_of(library), *examples(batch.x, CONTEXT, V))
    theirs = [layer for name, layer in seen.layers.items() if name.endswith(" tanh")]
    figures = [(nats.item() / tokens / math.log(2), mine.loss)]
    figures += [
        pair
        for layer, *own in zip(theirs, mine.saturated, mine.outputs, mine.gradients, strict=True)
        for pair in zip(
            (layer.saturated, layer.std, layer.grad_std),
            (own[0], *(float(y.std(correction=0)) for y in own[1:])),
            strict=True,
        )
    ]
    apart = max(abs(a - b) / max(abs(b), 1e-9) for a, b in figures)
    assert apart < 1e-3, figures
    print(
        f"diagnostics of the library's MLP with batch_norm=True: {len(figures)} figures, all within {apart:.0e} of "
        "this lesson's (relative difference)"
    )

    # 6. Sounds: several samples one after another, each as long as the median held-out file.
    def sound(name: str, pieces: list[Tensor], about: str) -> Clip:
        path = args.out / f"{name.replace(',', '').replace(' ', '-')}.wav"
        write_audio(path, joined(encoded.frontend, pieces), spec.sample_rate)
        return Clip(path, name.capitalize(), notes=[about])

    count, length = min(6, len(held_out)), min(int(np.median(held_out.num_frames)), int(4 * spec.frame_rate))
    sounds = [
        sound(
            "held-out files",
            [held_out[i][0, :length] for i in range(count)],
            "Encoded as tokens and decoded: the upper bound for every model of these tokens.",
        )
    ]
    for name, layers in networks.items():
        generator = torch.Generator().manual_seed(0)
        sounds.append(
            sound(
                name,
                [draw(partial(run, layers, False), CONTEXT, V, length, generator) for _ in range(count)],
                f"{scores[name][1]:.3f} bits per held-out token.",
            )
        )

    # 7. The page.
    first, gaps = {name: seen.loss for name, seen in before.items()}, {n: b - a for n, (a, b) in scores.items()}
    page = write_lesson(
        __file__,
        args,
        text(
            f"{encoded.sides.summary}. A token is {1000 / spec.frame_rate:.0f} ms, one of {V}. The network: {CONTEXT} "
            f"tokens of context, {depth} hidden layers of {WIDTH} tanh units."
        ),
        section(
            "The hockey stick",
            picture(
                draw_losses(losses),
                "Loss by step of each initialisation: the first steps, and all steps",
                "Left: the first fiftieth of the training, unsmoothed. Right: all of it, smoothed.",
            ),
            text(
                f"A uniform guess needs {math.log2(V):.3f} bits. The unscaled network starts at "
                f"{first['unscaled']:.1f}"
                + (
                    ": the weights of its last layer are large, so its predictions are confident and wrong. "
                    if first["unscaled"] > 1.1 * math.log2(V)
                    else ". "
                )
                + "With a hundredth of the last layer's weights, the first loss is "
                f"{first['small last layer']:.3f}. That leaves the layers before as they were: "
                f"{before['small last layer'].saturated.mean():.0%} of their activations are saturated."
            ),
            table(
                [
                    "initialisation",
                    "first loss",
                    "saturated",
                    "dead units",
                    "saturated at the end",
                    "train",
                    "held out",
                ],
                [
                    [
                        name,
                        first[name],
                        f"{before[name].saturated.mean():.0%}",
                        before[name].dead,
                        f"{after[name].saturated.mean():.0%}",
                        *scores[name],
                    ]
                    for name in starts
                ],
                f"Losses in bits per token; the end is after {steps:,} steps; the counted bigram needs {bigram:.3f}.",
                main_row=min(range(len(starts)), key=lambda i: list(scores.values())[i][1]),
            ),
        ),
        section(
            "Inside, before and after",
            picture(
                draw_insides(before, after, moves, steps),
                "Activations, gradients and updates of each initialisation",
                "Each row is an initialisation, each colour a layer (dark: the first). From the left: activations of "
                "tanh before training; the magnitude of their gradients; the gradient of each weight matrix relative "
                "to its weights; activations after training; and the size of each update relative to the weights "
                "(dashed: a thousandth).",
            ),
            text(
                "In a healthy network the curves of all layers lie on top of each other in every picture. (The last "
                "layer starts with small weights, so its relative updates start large.) If only the last layer is "
                f"made small, {before['small last layer'].saturated.mean():.0%} of the activations lie close to -1 or "
                "1. Saturated units block most of the gradient, large weights amplify the rest, and the deviation of "
                f"the gradient differs by a factor of {before['small last layer'].apart:.0f} between the first and the "
                f"last layer. With Kaiming's rule the factor is {before['Kaiming'].apart:.1f}."
            ),
            picture(
                draw_dead(before),
                "Which unit of the first layer is saturated for which example",
                "Each row is an example, each column a unit of the first layer; white is saturated. A column that is "
                "white from top to bottom is a dead unit: almost no gradient reaches it from any of these examples.",
            ),
        ),
        section(
            "Why 5/3",
            picture(
                draw_spreads(spreads),
                "Deviation of activations and gradients from layer to layer, by gain",
                "Before training. Dashed: with batch norm.",
            ),
            text(
                "Tanh shrinks its input. So at a gain of 1 the deviation of the signal falls from "
                f"{spreads[1.0, False][0][0]:.2f} in the first layer to {spreads[1.0, False][0][-1]:.2f} in the "
                f"last; at 5/3 it goes from {spreads[5 / 3, False][0][0]:.2f} to "
                f"{spreads[5 / 3, False][0][-1]:.2f}; at 3 it ends at {spreads[3.0, False][0][-1]:.2f}, since large "
                "weights push the units towards -1 and 1. With batch norm the gain makes no difference in the forward "
                "pass, since normalisation divides it out."
            ),
        ),
        section(
            "Batch norm",
            code(textwrap.dedent(inspect.getsource(BatchNorm.forward))),
            table(
                ["examples in the batch", "variation of one example's logits"],
                [[str(size), f"{value:.1%}"] for size, value in jitter.items()],
                "Standard deviation over 50 batches, relative to the deviation of the logits themselves.",
            ),
            text(
                "In training, mean and variance are computed over the batch, so the logits of an example depend on "
                "the other examples. This acts as noise, and may reduce overfitting. Here training and held-out loss "
                f"are {gaps['Kaiming']:.3f} bits apart without batch norm and {gaps['batch norm']:.3f} with it; the "
                f"held-out losses are {scores['Kaiming'][1]:.3f} and {scores['batch norm'][1]:.3f}. It also couples "
                "examples that should be independent: a faulty example affects all others, and in a model of "
                "sequences, statistics over time would leak the future. So evaluation uses running averages, and GPT "
                "uses layer norm, which normalises each step by itself.",
                "How far does batch norm make up for a bad initialisation? Unscaled weights with a small last layer "
                f"need {scores['small last layer'][1]:.3f} held-out bits without it and "
                f"{scores['unscaled, batch norm'][1]:.3f} with it; Kaiming's need {scores['Kaiming'][1]:.3f} and "
                f"{scores['batch norm'][1]:.3f}.",
            ),
        ),
        section(
            "The same on any run",
            text(
                "The library's MLP.Config(batch_norm=True) is this stack: with its weights, this lesson's layers "
                "give the same loss. --diagnostics calls observe(). Before training, the loss and the saturation, "
                f"deviation and gradient of each tanh were measured in both ways: {len(figures)} figures, whose "
                f"largest relative difference is {apart:.0e}."
            ),
            table(
                ["as measured by observe()", "deviation", "deviation of the gradient", "saturated", "dead"],
                [
                    [
                        name,
                        layer.std,
                        f"{layer.grad_std:.2e}",
                        f"{layer.saturated:.1%}",
                        f"{layer.dead} of {layer.units}",
                    ]
                    for name, layer in seen.layers.items()
                    if layer.units
                ],
            ),
        ),
        section("How it sounds", text("Several samples each, one after another."), grid(clip_cards(sounds))),
        before_after=[sounds[1], sounds[-1]],
    )
    print(f"open {page}")


def draw_losses(losses: dict[str, list[float]]) -> Figure:
    """Plot the loss by step of each initialisation: the first fiftieth, and all steps smoothed."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in losses.items():
        left.plot(values[: max(10, len(values) // 50)], label=name)
        width = max(1, len(values) // 60)
        right.plot(np.convolve(values, np.ones(width) / width, "valid"))
    left.set(xlabel="step", ylabel="bits per token of the batch")
    right.set(xlabel="step", ylim=(1.5, 10))
    left.legend()
    return figure


def draw_insides(
    before: dict[str, Look], after: dict[str, Look], moves: dict[str, list[list[float]]], steps: int
) -> Figure:
    """Plot distributions of activations and gradients, and the size of updates, by initialisation and layer.

    Args:
        before: what a batch shows before training, by initialisation.
        after: what the same batch shows after training.
        moves: log10 of the relative size of updates, by initialisation: a list over steps of lists over matrices.
        steps: number of training steps.
    """
    figure = Figure(figsize=(17, 2.9 * len(before)), layout="constrained")
    for row, (name, seen) in zip(figure.subplots(len(before), 5), before.items(), strict=True):
        columns = {
            f"tanh before training: {seen.saturated.mean():.0%} saturated": seen.outputs,
            "gradient of tanh, log10": [g.abs().log10() for g in seen.gradients],
            "matrices: gradient / data, log10": [g.abs().log10() for g in seen.matrices[1:]],
            f"tanh after training: {after[name].saturated.mean():.0%} saturated": after[name].outputs,
        }
        for ax, (title, layers) in zip(row, columns.items(), strict=False):
            for values, colour in zip(layers, shades(layers), strict=True):
                values = values[values.isfinite()].numpy()
                height, edges = np.histogram(values, bins=60, range=np.quantile(values, (0.001, 0.999)), density=True)
                ax.plot((edges[1:] + edges[:-1]) / 2, height, color=colour)
            ax.set(title=title, yticks=[])
        lines = np.array(moves[name]).T[1:]
        for values, colour in zip(lines, shades(lines), strict=True):
            row[4].plot(np.linspace(0, steps, len(values)), values, color=colour)
        row[4].axhline(-3, color="grey", linestyle="--")
        row[4].set(title="relative update, log10", ylim=(-7, 0))
        row[0].set(ylabel=name)
    return figure


def shades(layers: Sequence) -> np.ndarray:
    """Return one colour per layer, dark for the first."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))


def draw_dead(before: dict[str, Look]) -> Figure:
    """Plot which units of the first layer are saturated for which of 100 examples."""
    figure = Figure(figsize=(14, 3.2), layout="constrained")
    for ax, (name, seen) in zip(figure.subplots(1, len(before), sharey=True), before.items(), strict=True):
        ax.imshow(np.abs(seen.outputs[0][:100].numpy()) > SATURATED, cmap="gray", interpolation="nearest")
        ax.set(title=name, xlabel="unit of the first layer")
    return figure


def draw_spreads(spreads: dict[tuple[float, bool], list[list[float]]]) -> Figure:
    """Plot the deviation of activations and gradients by layer: (gain, batch norm) -> two lists over layers."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for place, (ax, what) in enumerate(zip(figure.subplots(1, 2), ("tanh", "the gradient of tanh"), strict=True)):
        for (gain, batch_norm), values in spreads.items():
            ax.plot(
                range(1, len(values[place]) + 1),
                values[place],
                "--" if batch_norm else "o-",
                color=f"C{GAINS.index(gain)}",
                label=None if batch_norm else f"gain {gain:.2g}",
            )
        ax.set(xlabel="layer", ylabel=f"deviation of {what}", yscale="log", xticks=range(1, len(values[place]) + 1))
        ax.legend()
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
