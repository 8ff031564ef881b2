"""Lesson 3: the multi-layer perceptron. How much does the past of a sound help?

    python recipes/03_mlp.py FOLDER [--out runs/03_mlp]

What it teaches. A table of what follows n tokens has V ** n rows, and nearly all of them are never seen. Bengio et al.
(2003) replace the table by a function: each token gets a point in a small space (its embedding), the embeddings of the
last n tokens are concatenated, a layer of tanh units processes them, and a last layer computes the logits. What the
model learns about one token then also holds for tokens with similar embeddings. The lesson also covers what every
training needs: a learning rate that is searched for and lowered at the end, and a split of the data into three. The
training files fit the weights, the dev files choose settings (here the context), and the test files are used once, at
the end: a loss that was used for choosing is biased low.

How it carries over to audio. Context is time: a token is 16 ms of sound, and eight of them last about as long as a
vowel. Nobody tells the model which tokens sound alike, yet the embeddings of quiet and loud tokens, and of high and low
ones, come to lie apart, because similar sounds are followed by similar sounds. And data is scarce: a few minutes are
some ten thousand tokens, so neither the largest model nor the longest context need be the best.

What to try. --codes 64: coarser tokens have more in common; which context is best now? Use a folder of music: how much
context still helps? --steps 20000: which models gain more from it, the small or the large ones?
"""

import dataclasses
import math
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from audiogen.audio.io import write_audio
from audiogen.course.fixed_context import bits, draw, examples, joined
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import Crops, Encoded, Part, Sequences, encode_folder, split
from audiogen.evaluation.scores import baselines, held_out_score
from audiogen.listen import Clip, clip_slider, picture, section, table, text
from audiogen.models.backbones import MLP
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.utils.scripts import run_script

Model = list[Tensor]  # C (V + 2, D), W1 (n D, H), b1 (H,), W2 (H, V), b2 (V,)
Examples = tuple[Tensor, Tensor]  # contexts (N, n) and the tokens that follow them (N,)


def three_sides(encoded: Encoded) -> dict[str, list[Part]]:
    """Split the folder into training, dev and test parts.

    The library's held-out files are the test files. The dev files are held out of the rest by the same rule, the hash
    of their content.
    """
    parts = encoded.sides.train
    if len(parts) == 1:  # a single long file, already cut by the library: cut it once more
        cut = parts[0].start + 0.9 * (parts[0].stop - parts[0].start)
        train, dev = [dataclasses.replace(parts[0], stop=cut)], [dataclasses.replace(parts[0], start=cut)]
    else:
        again = split(dataclasses.replace(encoded.cache.index, files=[part.file for part in parts]))
        train, dev = again.train, again.held_out
    return {"train": train, "dev": dev, "test": encoded.sides.held_out}


def new_model(n: int, D: int, H: int, V: int) -> Model:
    """Initialise a model.

    Args:
        n: context in tokens.
        D: dimension of an embedding.
        H: number of hidden units.
        V: number of tokens.
    """
    generator = torch.Generator().manual_seed(0)
    # Small embeddings under large weights: training moves the embeddings far from their random initial positions. The
    # next lesson is about the scale of initial values.
    C = 0.1 * torch.randn(V + 2, D, generator=generator)  # row V is the start of a file
    C[V + 1] = 0  # row V + 1 pads the context before the start; it stays zero
    W1 = torch.randn(n * D, H, generator=generator) * (5 / 3) / (0.1 * math.sqrt(n * D))
    W2 = torch.randn(H, V, generator=generator) * 0.01
    return [x.requires_grad_() for x in (C, W1, torch.zeros(H), W2, torch.zeros(V))]


def logits(model: Model, contexts: Tensor) -> Tensor:
    """Compute the logits of the next token: contexts (N, n) -> (N, V)."""
    C, W1, b1, W2, b2 = model
    points = F.embedding(contexts, C, padding_idx=len(C) - 1)  # (N, n, D); the padding row gets no gradient
    h = torch.tanh(points.flatten(1) @ W1 + b1)  # (N, H)
    return h @ W2 + b2


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, the number of typical frames")
    parser.add_argument("--steps", type=int, default=6000, help="training steps of each model")
    args = parser.parse_args()
    V, steps = (16, 60) if args.short else (args.codes, args.steps)
    D, H, usual, batch_size = 16, 200, 4, 64
    lengths, sizes = ((1, 4), (8, 64)) if args.short else ((1, 2, 4, 8, 16), (12, 50, 800))

    # 1. Training, dev and test files.
    encoded = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=V)
    spec, parts = encoded.spec, three_sides(encoded)
    sides = {name: Sequences(encoded.cache, side) for name, side in parts.items()}
    milliseconds = 1000 / spec.frame_rate
    counted = {name: baselines(spec, sides["train"], sides[name]) for name in ("dev", "test")}
    counts = ", ".join(f"{name} {len(side):,} files ({side.num_frames.sum():,} tokens)" for name, side in sides.items())
    print(
        f"{counts}; a token is {milliseconds:.0f} ms\ncounted, bits per dev token: "
        + ", ".join(f"{name} {value:.3f}" for name, value in counted["dev"].items())
    )

    # 2. The training loop. `rates` holds the learning rate of each step.
    def train(model: Model, n: int, rates: Tensor) -> Tensor:
        """Train a model with plain SGD, and return the loss of each batch in bits per token."""
        contexts, following = examples(sides["train"], n, V)
        generator, losses = torch.Generator().manual_seed(1), torch.empty(len(rates))
        for step, rate in enumerate(rates.tolist()):
            batch = torch.randint(len(contexts), (batch_size,), generator=generator)
            loss = F.cross_entropy(logits(model, contexts[batch]), following[batch])
            gradients = torch.autograd.grad(loss, model)
            with torch.no_grad():
                for parameter, gradient in zip(model, gradients, strict=True):
                    parameter -= rate * gradient
            losses[step] = loss.detach() / math.log(2)
        return losses

    def score(model: Model, n: int, side: str) -> float:
        return bits(partial(logits, model), *examples(sides[side], n, V))

    # 3. Search for the learning rate: in one short run, it rises from far too small to far too large.
    tried = 10 ** torch.linspace(-3, 1, max(40, steps // 4))
    rising = train(new_model(usual, D, H, V), usual, tried)
    width = max(1, len(tried) // 20)
    smooth = rising.unfold(0, width, 1).mean(dim=1).nan_to_num(math.inf)
    lowest = float(tried[int(smooth.argmin()) + width // 2])
    top = lowest / 3  # here the loss still falls; at the lowest point it is about to rise
    rates = torch.full((steps,), top)
    rates[int(0.75 * steps) :] /= 10  # step decay
    print(
        f"learning rate: the loss is lowest at {lowest:.2g}, so training uses {top:.2g}, and a tenth of that in the "
        "last quarter"
    )

    # 4. Context. With one token, the model sees the same as the bigram.
    models, losses, scores = {}, {}, {}  # scores: bits per train token and per dev token
    for n in lengths:
        models[n] = new_model(n, D, H, V)
        losses[n] = train(models[n], n, rates)
        scores[n] = [score(models[n], n, side) for side in ("train", "dev")]
        print(f"context {n:2} ({n * milliseconds:3.0f} ms): train {scores[n][0]:.3f}, dev {scores[n][1]:.3f}")
    best = min(lengths, key=lambda n: scores[n][1])

    # 5. Capacity. With more units, the loss on training files keeps falling, that on dev files only up to a point.
    by_size = {H: scores[best]}
    for size in sizes:
        model = new_model(best, D, size, V)
        train(model, best, rates)
        by_size[size] = [score(model, best, side) for side in ("train", "dev")]
        print(f"{size:4} hidden units: train {by_size[size][0]:.3f}, dev {by_size[size][1]:.3f}")

    # 6. The embeddings: project those of the best model onto their first two principal components.
    C = models[best][0][:V].detach().numpy()  # (V, D)
    centred = C - C.mean(axis=0)
    points = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T  # (V, 2)
    loudness, brightness, occurrences = look_at(encoded, sides["train"])
    fits = [explained(x, values) for values in (loudness, np.log2(brightness)) for x in (points, C)]
    print(
        "a linear fit on two principal components (on all dimensions) explains {:.0%} ({:.0%}) of the variance of the "
        "tokens' loudness, {:.0%} ({:.0%}) of their brightness".format(*fits)
    )

    # 7. The library's MLP is the same model: `as_plain` shows the one difference in how it is written.
    torch.manual_seed(0)
    library = SequenceModel(spec, MLP(MLP.Config(dim=64, context=best, hidden_dim=H)), Parallel(1))
    optimizer = torch.optim.AdamW(library.parameters(), lr=2e-3)
    crops = Crops(encoded.cache, parts["train"], num_frames=64, batch_size=16)
    for step in range(steps // 4):
        nats, tokens = library.nll(crops.batch(step)[0])  # all 64 steps of 16 crops at once
        optimizer.zero_grad()
        (nats / tokens).backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / (steps // 4))
        optimizer.step()
    theirs = held_out_score(library, sides["dev"]).loss
    plain = score(as_plain(library, V), best, "dev")
    assert abs(theirs - plain) < 1e-4, (theirs, plain)
    print(f"the library's MLP: dev {theirs:.5f}; its weights in the model above: {plain:.5f}")

    # 8. Test: evaluate the model that was chosen on the dev files on the test files, once.
    tested = score(models[best], best, "test")
    print(f"test, context {best}: {tested:.3f} bits per token; counted bigram {counted['test']['bigram']:.3f}")

    # 9. Sounds: several samples one after another, each as long as the median test file.
    def sound(name: str, pieces: list[Tensor], about: str) -> Clip:
        path = args.out / f"{name.replace(' ', '-')}.wav"
        write_audio(path, joined(encoded.frontend, pieces), spec.sample_rate)
        return Clip(path, name.capitalize(), notes=[about])

    count, length = min(6, len(sides["test"])), min(int(np.median(sides["test"].num_frames)), int(4 * spec.frame_rate))
    sounds = {}
    for n, model in models.items():
        generator = torch.Generator().manual_seed(0)
        pieces = [draw(partial(logits, model), n, V, length, generator) for _ in range(count)]
        sounds[f"{n} ({n * milliseconds:.0f} ms)"] = [
            sound(f"context {n}", pieces, f"{scores[n][1]:.3f} bits per dev token.")
        ]
    sounds["held-out files"] = [
        sound(
            "held-out files",
            [sides["test"][i][0, :length] for i in range(count)],
            f"{count} files, encoded as tokens and decoded: the upper bound for every model of these tokens.",
        )
    ]

    # 10. The page.
    around = [losses[usual][int(a * steps) :][: steps // 20] for a in (0.65, 0.7, 0.75)]  # the rate falls at 0.75
    earlier, before, after = (float(part.mean()) for part in around)
    most, gaps = lengths[-1], {n: dev - train for n, (train, dev) in scores.items()}
    page = write_lesson(
        __file__,
        args,
        text(f"{counts}. A token is {milliseconds:.0f} ms of sound, one of {V}."),
        section(
            "A learning rate",
            picture(
                draw_rates(tried, rising, smooth, width, top, losses[usual]),
                "Loss over a rising learning rate, and over a training whose rate falls once",
                f"Left: the rate rises with each step. Right: training at {top:.2g}, and at a tenth of it for the last "
                "quarter. Grey: each batch; blue: running mean.",
            ),
            text(
                f"The loss is lowest at a rate of {lowest:.2g}; training uses a third of that, {top:.2g}. In the "
                f"twentieth of the run before the rate falls to a tenth, the mean loss is {before:.2f}; in the "
                f"twentieth after, {after:.2f}."
                + (
                    " A high rate keeps the weights bouncing around a minimum; a lower rate lets them settle."
                    if before - after > 2 * abs(earlier - before)
                    else ""
                )
            ),
        ),
        section(
            "How much context",
            picture(
                draw_bits({n * milliseconds: scores[n] for n in lengths}, by_size, counted["dev"]["bigram"]),
                "Bits per token on the training and dev files, by context and by hidden units",
                f"After {steps:,} steps. Left: {H} hidden units. Right: a context of {best}.",
            ),
            table(
                ["context", "milliseconds", "parameters", "train", "dev", "dev, bits per second"],
                [
                    [
                        str(n),
                        n * milliseconds,
                        sum(x.numel() for x in models[n]),
                        *scores[n],
                        scores[n][1] * spec.frame_rate,
                    ]
                    for n in lengths
                ],
                "bits per token",
                lengths.index(best),
            ),
            text(
                f"With one token of context the model needs {scores[1][1]:.3f} bits per dev token; the counted bigram, "
                f"which sees the same, needs {counted['dev']['bigram']:.3f}. The best context is {best} tokens, with "
                f"{scores[best][1]:.3f} bits. "
                + (
                    "Would a longer one be better still?"
                    if best == most
                    else f"Longer is not better: with {most} tokens the model needs {scores[most][0]:.3f} bits on the "
                    f"training files and {scores[most][1]:.3f} on the dev files. The gap between the two is "
                    f"{gaps[1]:.2f} with one token and {gaps[most]:.2f} with {most}"
                    + (": the model memorises its training files." if gaps[most] > gaps[1] + 0.05 else ".")
                ),
                f"{min(by_size, key=lambda size: by_size[size][1])} hidden units are best on the dev files, "
                f"{min(by_size, key=lambda size: by_size[size][0])} on the training files.",
                f"The context was chosen on the dev files, so their loss of {scores[best][1]:.3f} is biased low. The "
                f"test files were used once, after that choice: {tested:.3f} bits per token; the counted bigram needs "
                f"{counted['test']['bigram']:.3f} on the same files.",
            ),
        ),
        section(
            "Where the embeddings lie",
            picture(
                draw_points(points, loudness, brightness, occurrences),
                "The embedding of each token, coloured by loudness and by brightness",
                f"The first two principal components of the {D}-dimensional embeddings of the best model. Each dot is "
                "a token; its size says how often the token occurs. Training decides where the dots lie; the model "
                "never sees loudness or brightness.",
            ),
            text(
                f"A linear fit on these two components explains {fits[0]:.0%} of the variance in loudness between "
                f"tokens and {fits[2]:.0%} of that in brightness (the frequency at which a token's typical frame is "
                f"strongest); a fit on all {D} dimensions explains {fits[1]:.0%} and {fits[3]:.0%}. For random points "
                f"it would be about {2 / V:.1%} on two dimensions and {D / V:.1%} on {D}."
            ),
        ),
        section(
            "The same in the library",
            text(
                "audiogen.models.backbones.MLP in a SequenceModel computes all steps of a crop at once, since sliding "
                "a window of n tokens over a matrix is a convolution. Trained on crops with AdamW, with embeddings of "
                f"64 dimensions, it needs {theirs:.5f} bits per dev token. Its weights, copied into this lesson's five "
                f"tensors, need {plain:.5f}: it is the same model, trained in another way."
            ),
        ),
        section(
            "How it sounds",
            text("Several samples each, one after another. The last position of the slider is the recordings."),
            clip_slider("context", sounds, lengths.index(best)),
        ),
        before_after=[list(sounds.values())[lengths.index(n)][0] for n in (lengths[0], max(best, lengths[1]))],
    )
    print(f"open {page}")


def as_plain(library: SequenceModel, V: int) -> Model:
    """Convert the library's MLP to C, W1, b1, W2, b2.

    The library has two linear layers with nothing in between at the output; here their product is one layer.
    """
    backbone, head = library.backbone, library.head.linear
    C = torch.cat([library.embed.table.weight[:V], library.bos[None], torch.zeros(1, len(library.bos))])
    return [
        C,
        backbone.first.linear.weight.T,
        backbone.first.linear.bias,
        (head.weight @ backbone.last.weight).T,
        head.weight @ backbone.last.bias + head.bias,
    ]


def look_at(encoded: Encoded, training: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the loudness, the brightness and the number of occurrences of each token: (V,) each.

    Loudness is the mean of the token's typical mel frame, which is normalised by band. Brightness is the frequency in
    Hz of the band with the largest value.
    """
    frontend, V = encoded.frontend, encoded.spec.codebook_size
    typical = frontend.quantizer.decode(torch.arange(V)[None, None])[0].numpy()  # (F, V), standardised by band
    band = (typical - typical.mean(axis=0)).argmax(axis=0)
    basis = frontend.mel.basis.numpy()  # (F, bins)
    centres = basis.argmax(axis=1) * encoded.spec.sample_rate / 2 / (basis.shape[1] - 1)
    occurrences = np.bincount(torch.cat([codes[0] for codes in training]).numpy(), minlength=V)
    return typical.mean(axis=0), centres[band], occurrences


def explained(points: np.ndarray, values: np.ndarray) -> float:
    """Return the share of the variance of `values` (V,) that a linear fit on `points` (V, d) explains."""
    plane = np.column_stack([points, np.ones(len(points))])
    return float(1 - (values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]).var() / values.var())


def draw_rates(tried: Tensor, rising: Tensor, smooth: Tensor, width: int, top: float, losses: Tensor) -> Figure:
    """Plot the search for the learning rate, and the loss of a training run with the chosen rate.

    Args:
        tried: (n,), rising learning rates.
        rising: (n,), loss of the batch at each of them.
        smooth: the running mean of `rising`.
        width: length of the window of the running mean.
        top: the chosen rate.
        losses: (steps,), loss of each batch of the training run.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogx(tried, rising, color="lightgrey", linewidth=0.8)
    left.semilogx(tried[width // 2 :][: len(smooth)], smooth)
    left.axvline(top, color="tab:orange", linestyle="--", label=f"chosen: {top:.2g}")
    left.set(xlabel="learning rate", ylabel="bits per token of the batch")
    left.set_ylim(float(smooth.min()) - 1.5, float(rising[0]) + 2)
    left.legend()
    width = max(1, len(losses) // 60)
    right.plot(losses, color="lightgrey", linewidth=0.6)
    right.plot(np.arange(len(losses) - width + 1) + width // 2, losses.unfold(0, width, 1).mean(dim=1))
    right.axvline(0.75 * len(losses), color="tab:orange", linestyle="--", label="rate lowered to a tenth")
    right.set(xlabel="step", ylabel="bits per token of the batch")
    right.legend()
    return figure


def draw_bits(by_context: dict[float, list[float]], by_size: dict[int, list[float]], bigram: float) -> Figure:
    """Plot the training and dev losses by context in milliseconds and by hidden units, with the counted bigram."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, scores, label in ((axes[0], by_context, "context, ms"), (axes[1], by_size, "hidden units")):
        xs = sorted(scores)
        ax.plot(xs, [scores[x][0] for x in xs], "o-", label="train")
        ax.plot(xs, [scores[x][1] for x in xs], "o-", label="dev")
        ax.axhline(bigram, color="grey", linestyle="--", linewidth=1, label="counted bigram, dev")
        ax.set(xscale="log", xlabel=label, xticks=xs, xticklabels=[f"{x:.0f}" for x in xs])
        ax.minorticks_off()
    axes[0].set(ylabel="bits per token")
    axes[0].legend()
    return figure


def draw_points(points: np.ndarray, loudness: np.ndarray, brightness: np.ndarray, occurrences: np.ndarray) -> Figure:
    """Plot embeddings (V, 2), coloured by loudness and by brightness, sized by the number of occurrences (V,)."""
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    for ax, values, label, norm in zip(
        figure.subplots(1, 2),
        (loudness, brightness),
        ("loudness: mean of the typical frame", "brightness: strongest band of the typical frame, Hz"),
        ("linear", "log"),
        strict=True,
    ):
        dots = ax.scatter(
            *points.T, c=values, s=8 + 120 * occurrences / occurrences.max(), cmap="viridis", norm=norm, alpha=0.85
        )
        ax.set(xlabel="first component", ylabel="second component", aspect="equal")
        figure.colorbar(dots, ax=ax, label=label)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
