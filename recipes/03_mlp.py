"""Lesson 3: the multi-layer perceptron. How much does the past of a sound help?

    python recipes/03_mlp.py FOLDER [--out runs/03_mlp]

What it teaches. A table of what follows n tokens has V ** n rows, and nearly all of them are never met. Bengio et al.
(2003) put a function in the place of the table: each token gets a point in a small space (its embedding), the points
of the last n tokens are laid side by side, a layer of tanh units looks at all of them at once, and a last layer makes
logits of it. What is learned of one token then holds for those that lie near. Around it stands what every training
needs: a learning rate that was searched for and falls at the end, and three sides of the data. The training side
teaches, the dev side chooses (here the context), and the test side is looked at once: a figure that was used for
choosing is too good to be believed.

How it carries over to audio. Context is time: a token is 16 ms of sound, eight of them about as long as a vowel. No one
tells the model which tokens sound alike, yet embeddings put quiet ones here and loud ones there, high ones apart from
low ones, because they lead to like sounds. And there is little data: a few minutes are some ten thousand tokens, so the
largest model and the longest context are not the best ones.

What to try. --codes 64: coarser tokens have more in common; which context is the best one now? A folder of music: how
far back does it pay to look? --steps 20000: who gains by it, the small models or the large ones?
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
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.models.backbones import MLP
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.utils.scripts import run_script

Model = list[Tensor]  # C (V + 2, D), W1 (n D, H), b1 (H,), W2 (H, V), b2 (V,)
Examples = tuple[Tensor, Tensor]  # contexts (N, n) and what followed (N,)


def three_sides(encoded: Encoded) -> dict[str, list[Part]]:
    """The library holds out one side; the dev side is held out of the rest by the same rule, the files' content."""
    parts = encoded.sides.train
    if len(parts) == 1:  # one long file, which the library has cut: cut it once more
        cut = parts[0].start + 0.9 * (parts[0].stop - parts[0].start)
        train, dev = [dataclasses.replace(parts[0], stop=cut)], [dataclasses.replace(parts[0], start=cut)]
    else:
        again = split(dataclasses.replace(encoded.cache.index, files=[part.file for part in parts]))
        train, dev = again.train, again.held_out
    return {"train": train, "dev": dev, "test": encoded.sides.held_out}


def new_model(n: int, D: int, H: int, V: int) -> Model:
    generator = torch.Generator().manual_seed(0)
    # Small points under large weights: the gradient moves them far from where chance has put them. How large things
    # should be at the start is the next lesson's subject.
    C = 0.1 * torch.randn(V + 2, D, generator=generator)  # V is a file's start
    C[V + 1] = 0  # V + 1, before the start, is nothing, now and for ever
    W1 = torch.randn(n * D, H, generator=generator) * (5 / 3) / (0.1 * math.sqrt(n * D))
    W2 = torch.randn(H, V, generator=generator) * 0.01
    return [x.requires_grad_() for x in (C, W1, torch.zeros(H), W2, torch.zeros(V))]


def logits(model: Model, contexts: Tensor) -> Tensor:
    """(N, n) -> (N, V)"""
    C, W1, b1, W2, b2 = model
    points = F.embedding(contexts, C, padding_idx=len(C) - 1)  # (N, n, D); the last row gets no gradient
    h = torch.tanh(points.flatten(1) @ W1 + b1)  # (N, H)
    return h @ W2 + b2


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, how many typical frames")
    parser.add_argument("--steps", type=int, default=6000, help="of each training")
    args = parser.parse_args()
    V, steps = (16, 60) if args.short else (args.codes, args.steps)
    D, H, usual, batch_size = 16, 200, 4, 64
    lengths, sizes = ((1, 4), (8, 64)) if args.short else ((1, 2, 4, 8, 16), (12, 50, 800))

    # 1. Three sides, by file.
    encoded = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=V)
    spec, parts = encoded.spec, three_sides(encoded)
    sides = {name: Sequences(encoded.cache, side) for name, side in parts.items()}
    milliseconds = 1000 / spec.frame_rate
    counted = {name: baselines(spec, sides["train"], sides[name]) for name in ("dev", "test")}
    said = ", ".join(f"{name} {len(side):,} files ({side.num_frames.sum():,} tokens)" for name, side in sides.items())
    print(
        f"{said}; a token is {milliseconds:.0f} ms\ncounted, bits per dev token: "
        + ", ".join(f"{name} {value:.3f}" for name, value in counted["dev"].items())
    )

    # 2. The loop, in plain sight. `rates` says the learning rate of each step.
    def train(model: Model, n: int, rates: Tensor) -> Tensor:
        """-> bits per token of each step's batch."""
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

    # 3. The learning rate: one short run in which it rises from far too small to far too large.
    tried = 10 ** torch.linspace(-3, 1, max(40, steps // 4))
    rising = train(new_model(usual, D, H, V), usual, tried)
    width = max(1, len(tried) // 20)
    smooth = rising.unfold(0, width, 1).mean(dim=1).nan_to_num(math.inf)
    lowest = float(tried[int(smooth.argmin()) + width // 2])
    top = lowest / 3  # there it still falls: at the lowest point it is about to turn
    rates = torch.full((steps,), top)
    rates[int(0.75 * steps) :] /= 10  # the step decay
    print(f"learning rate: the loss is lowest at {lowest:.2g}, so {top:.2g}, and a tenth of it for the last quarter")

    # 4. Context: one token is what the bigram sees.
    models, losses, scores = {}, {}, {}  # scores: bits per train token and per dev token
    for n in lengths:
        models[n] = new_model(n, D, H, V)
        losses[n] = train(models[n], n, rates)
        scores[n] = [score(models[n], n, side) for side in ("train", "dev")]
        print(f"context {n:2} ({n * milliseconds:3.0f} ms): train {scores[n][0]:.3f}, dev {scores[n][1]:.3f}")
    best = min(lengths, key=lambda n: scores[n][1])

    # 5. Capacity: more units learn the training files ever better, and the dev files only up to a point.
    by_size = {H: scores[best]}
    for size in sizes:
        model = new_model(best, D, size, V)
        train(model, best, rates)
        by_size[size] = [score(model, best, side) for side in ("train", "dev")]
        print(f"{size:4} hidden units: train {by_size[size][0]:.3f}, dev {by_size[size][1]:.3f}")

    # 6. Embeddings to look at: the two directions in which those of the best model differ most.
    C = models[best][0][:V].detach().numpy()  # (V, D)
    centred = C - C.mean(axis=0)
    points = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T  # (V, 2)
    loudness, brightness, met = look_at(encoded, sides["train"])
    told = [explained(x, values) for values in (loudness, np.log2(brightness)) for x in (points, C)]
    print(
        "a plane over two directions (over all) explains {:.0%} ({:.0%}) of the tokens' loudness, {:.0%} ({:.0%}) of "
        "their brightness".format(*told)
    )

    # 7. The library's MLP is this one; see `as_plain` for the one thing that it writes in another way.
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

    # 8. The test side, once, with what the dev side has chosen.
    tested = score(models[best], best, "test")
    print(f"test, context {best}: {tested:.3f} bits per token; counted bigram {counted['test']['bigram']:.3f}")

    # 9. Sounds: several draws one after the other, each as long as the middle one of the test files.
    def sound(name: str, pieces: list[Tensor], about: str) -> Clip:
        path = args.out / f"{name.replace(' ', '-')}.wav"
        write_audio(path, joined(encoded.frontend, pieces), spec.sample_rate)
        return Clip(path, name.capitalize(), notes=[about])

    count, length = min(6, len(sides["test"])), min(int(np.median(sides["test"].num_frames)), int(4 * spec.frame_rate))
    sounds = [
        sound(
            "held-out files",
            [sides["test"][i][0, :length] for i in range(count)],
            f"{count} of them, through the tokens and back: as good as it can get.",
        )
    ]
    for n, model in models.items():
        generator = torch.Generator().manual_seed(0)
        sounds.append(
            sound(
                f"context {n}",
                [draw(partial(logits, model), n, V, length, generator) for _ in range(count)],
                f"{scores[n][1]:.3f} bits per dev token.",
            )
        )

    # 10. The page.
    before, after = (losses[usual][int(a * steps) : int(b * steps)].mean() for a, b in ((0.7, 0.75), (0.75, 0.8)))
    most, gaps = lengths[-1], {n: dev - train for n, (train, dev) in scores.items()}
    page = write_lesson(
        __file__,
        args.out / "index.html",
        text(f"{said}. A token is {milliseconds:.0f} ms of sound, one of {V}."),
        section(
            "A learning rate",
            picture(
                draw_rates(tried, rising, smooth, width, top, losses[usual]),
                "Loss over a rising learning rate, and over a training whose rate falls once",
                f"Left: each step has a higher rate than the one before. Right: a training with {top:.2g}, and "
                "a tenth of it for the last quarter. Grey: each batch; blue: their running mean.",
            ),
            text(
                f"The loss is lowest at {lowest:.2g} and turns up beyond it, so {top:.2g}, a third of that, is "
                "fast and safe. A rate that high keeps the weights jumping about the bottom of the valley: within "
                f"a twentieth of the run after it falls to a tenth, the loss goes from {before:.2f} to "
                f"{after:.2f}."
            ),
        ),
        section(
            "How much past",
            picture(
                draw_bits({n * milliseconds: scores[n] for n in lengths}, by_size, counted["dev"]["bigram"]),
                "Bits per token on the training and dev sides, by context and by hidden units",
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
                f"One token of context needs {scores[1][1]:.3f} bits per dev token; the counted bigram, seeing "
                f"the same, {counted['dev']['bigram']:.3f}. The best is {best}: {scores[best][1]:.3f}. "
                + (
                    "Would more be better still?"
                    if best == most
                    else f"More is not better: {most} need {scores[most][0]:.3f} on the training side and "
                    f"{scores[most][1]:.3f} on the dev side. What lies between the two was {gaps[1]:.2f} at one "
                    f"token and is {gaps[most]:.2f} now: the model learns its files by heart."
                ),
                f"Of the sizes, {min(by_size, key=lambda size: by_size[size][1])} hidden units are best on the "
                f"dev side, and {min(by_size, key=lambda size: by_size[size][0])} on the training side.",
                f"The dev side has chosen the context, so that its {scores[best][1]:.3f} is a little too good to "
                f"be believed. The test side was looked at once, after that: {tested:.3f} bits per token, beside "
                f"{counted['test']['bigram']:.3f} of the counted bigram on the same files.",
            ),
        ),
        section(
            "Where tokens lie",
            picture(
                draw_points(points, loudness, brightness, met),
                "The embedding of each token, coloured twice",
                f"The two directions in which the {D}-dimensional embeddings of the best model differ most "
                "(principal components). Each dot is a token, the larger the more often it was met. It lies "
                "where training has put it; the colours were not known to the model.",
            ),
            text(
                f"A plane over the picture explains {told[0]:.0%} of what tokens differ in loudness and "
                f"{told[2]:.0%} of their brightness (the frequency at which a token's typical frame stands out "
                f"from the others); over all {D} dimensions {told[1]:.0%} and {told[3]:.0%}. Over points drawn by "
                f"lot it would be about {2 / V:.1%} and {D / V:.1%}."
            ),
        ),
        section(
            "The same in the library",
            text(
                "audiogen.models.backbones.MLP in a SequenceModel looks at all steps of a crop at once, since sliding "
                "n tokens through a matrix is a convolution. Trained on crops by AdamW, with embeddings of 64 "
                f"dimensions, it needs {theirs:.5f} bits per dev token; its weights in this lesson's five tensors "
                f"need {plain:.5f}. It is the same model, trained in another way."
            ),
        ),
        section("How it sounds", text("Several draws each, one after the other."), grid(clip_cards(sounds))),
    )
    print(f"open {page}")


def as_plain(library: SequenceModel, V: int) -> Model:
    """The library's weights as C, W1, b1, W2, b2: two linear layers with nothing between them are one."""
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
    """Of each token's typical mel frame: loudness, the frequency (Hz) at which it stands out, how often it was met."""
    frontend, V = encoded.frontend, encoded.spec.codebook_size
    typical = frontend.quantizer.decode(torch.arange(V)[None, None])[0].numpy()  # (F, V), standardised by band
    band = (typical - typical.mean(axis=0)).argmax(axis=0)
    basis = frontend.mel.basis.numpy()  # (F, bins)
    centres = basis.argmax(axis=1) * encoded.spec.sample_rate / 2 / (basis.shape[1] - 1)
    met = np.bincount(torch.cat([codes[0] for codes in training]).numpy(), minlength=V)
    return typical.mean(axis=0), centres[band], met


def explained(points: np.ndarray, values: np.ndarray) -> float:
    """How much of the variance of `values` a plane over the points explains."""
    plane = np.column_stack([points, np.ones(len(points))])
    return float(1 - (values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]).var() / values.var())


def draw_rates(tried: Tensor, rising: Tensor, smooth: Tensor, width: int, top: float, losses: Tensor) -> Figure:
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
    right.axvline(0.75 * len(losses), color="tab:orange", linestyle="--", label="the rate falls to a tenth")
    right.set(xlabel="step", ylabel="bits per token of the batch")
    right.legend()
    return figure


def draw_bits(by_context: dict[float, list[float]], by_size: dict[int, list[float]], bigram: float) -> Figure:
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


def draw_points(points: np.ndarray, loudness: np.ndarray, brightness: np.ndarray, met: np.ndarray) -> Figure:
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    for ax, values, label, norm in zip(
        figure.subplots(1, 2),
        (loudness, brightness),
        ("loudness: mean of the typical frame", "brightness: where the typical frame stands out, Hz"),
        ("linear", "log"),
        strict=True,
    ):
        dots = ax.scatter(*points.T, c=values, s=8 + 120 * met / met.max(), cmap="viridis", norm=norm, alpha=0.85)
        ax.set(xlabel="first dimension", ylabel="second dimension", aspect="equal")
        figure.colorbar(dots, ax=ax, label=label)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
