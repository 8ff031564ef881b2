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
from audiogen.data import Crops, Encoded, Part, Sequences, encode_folder, split
from audiogen.evaluation.yardstick import baselines, held_out_score
from audiogen.listen import Clip, clip_cards, grid, note, picture, section, table, text, write_document
from audiogen.model import SequenceModel
from audiogen.patterns import Parallel
from audiogen.scripts import run_script

Model = list[Tensor]                            # C (V + 2, D), W1 (n D, H), b1 (H,), W2 (H, V), b2 (V,)
Examples = tuple[Tensor, Tensor]                # contexts (N, n) and what followed (N,)
Curve = list[tuple[int, float, float]]          # (step, train bits, dev bits)


def three_sides(encoded: Encoded) -> dict[str, list[Part]]:
    """The library holds out one side; the dev side is held out of the rest by the same rule, the files' content."""
    parts = encoded.sides.train
    if len(parts) == 1:                         # one long file, which the library has cut: cut it once more
        cut = parts[0].start + 0.9 * (parts[0].stop - parts[0].start)
        train, dev = [dataclasses.replace(parts[0], stop=cut)], [dataclasses.replace(parts[0], start=cut)]
    else:
        again = split(dataclasses.replace(encoded.cache.index, files=[part.file for part in parts]))
        train, dev = again.train, again.held_out
    return {"train": train, "dev": dev, "test": encoded.sides.held_out}


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


def new_model(n: int, D: int, H: int, V: int) -> Model:
    generator = torch.Generator().manual_seed(0)
    C = torch.randn(V + 2, D, generator=generator)
    C[V + 1] = 0                                # before the start is nothing, now and for ever
    # How large weights should be at the start is the next lesson's subject.
    W1 = torch.randn(n * D, H, generator=generator) * (5 / 3) / math.sqrt(n * D)
    W2 = torch.randn(H, V, generator=generator) * 0.01
    return [x.requires_grad_() for x in (C, W1, torch.zeros(H), W2, torch.zeros(V))]


def logits(model: Model, contexts: Tensor) -> Tensor:
    """(N, n) -> (N, V)"""
    C, W1, b1, W2, b2 = model
    points = F.embedding(contexts, C, padding_idx=len(C) - 1)           # (N, n, D); the last row gets no gradient
    h = torch.tanh(points.flatten(1) @ W1 + b1)                         # (N, H)
    return h @ W2 + b2


@torch.no_grad()
def bits(model: Model, side: Examples) -> float:
    """Bits per token."""
    nats = [F.cross_entropy(logits(model, contexts), following, reduction="sum")
            for contexts, following in zip(side[0].split(8192), side[1].split(8192), strict=True)]
    return float(sum(nats)) / len(side[1]) / math.log(2)


@torch.no_grad()
def draw(model: Model, n: int, length: int, generator: torch.Generator) -> Tensor:
    """A sound of so many tokens, from its start: (length,)."""
    V = len(model[4])
    codes = torch.tensor([V + 1] * (n - 1) + [V])
    for _ in range(length):
        p = logits(model, codes[-n:][None]).softmax(dim=1)
        codes = torch.cat([codes, torch.multinomial(p[0], 1, generator=generator)])
    return codes[n:]


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
    lengths, sizes = ((1, 4), (8, 64)) if args.short else ((1, 2, 4, 8, 16), (12, 50, 200, 800))

    # 1. Three sides, by file.
    encoded = encode_folder(args.folder, args.out, "melvq", codebook_size=V)
    spec, parts = encoded.spec, three_sides(encoded)
    sides = {name: Sequences(encoded.cache, side) for name, side in parts.items()}
    milliseconds = 1000 / spec.frame_rate
    counted = {name: baselines(spec, sides["train"], sides[name]) for name in ("dev", "test")}
    said = ", ".join(f"{name} {len(side):,} files ({side.num_frames.sum():,} tokens)" for name, side in sides.items())
    print(f"{said}; a token is {milliseconds:.0f} ms\ncounted, bits per dev token: "
          + ", ".join(f"{name} {value:.3f}" for name, value in counted["dev"].items()))

    # 2. The loop, in plain sight. `rates` says the learning rate of each step.
    def train(model: Model, n: int, rates: Tensor, looks: int = 12) -> tuple[Tensor, Curve]:
        """-> bits per token of each step's batch, and (step, train bits, dev bits) now and then."""
        contexts, following = examples(sides["train"], n, V)
        some = slice(None, None, max(1, len(contexts) // 8192))         # of the training side, as much as of the dev one
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
                curve.append((step + 1, bits(model, (contexts[some], following[some])), bits(model, dev)))
        return losses, curve

    # 3. The learning rate: one short run in which it rises from far too small to far too large.
    tried = 10 ** torch.linspace(-3, 1, max(40, steps // 4))
    rising, _ = train(new_model(usual, D, H, V), usual, tried, looks=0)
    width = max(1, len(tried) // 20)
    smooth = rising.unfold(0, width, 1).mean(dim=1).nan_to_num(math.inf)
    lowest = float(tried[int(smooth.argmin()) + width // 2])
    top = lowest / 3                            # there it still falls: at the lowest point it is about to turn
    rates = torch.full((steps,), top)
    rates[int(0.75 * steps):] /= 10             # the step decay
    print(f"learning rate: the loss is lowest at {lowest:.2g}, so {top:.2g}, and a tenth of it for the last quarter")

    # 4. Context: one token is what the bigram sees.
    models, losses, by_context = {}, {}, {}
    for n in lengths:
        models[n] = new_model(n, D, H, V)
        losses[n], by_context[n] = train(models[n], n, rates)
        print(f"context {n:2} ({n * milliseconds:3.0f} ms): train {by_context[n][-1][1]:.3f}, "
              f"dev {by_context[n][-1][2]:.3f} bits per token")
    best = min(lengths, key=lambda n: by_context[n][-1][2])

    # 5. Capacity: more units learn the training files ever better, and the dev files only up to a point.
    by_size = {}
    for size in sizes:
        by_size[size] = train(new_model(best, D, size, V), best, rates)[1]
        print(f"{size:4} hidden units: train {by_size[size][-1][1]:.3f}, dev {by_size[size][-1][2]:.3f}")

    # 6. Embeddings to look at: of two dimensions, as in the course, so that nothing has to be projected.
    flat = new_model(usual, 2, H, V)
    flat_bits = train(flat, usual, rates)[1][-1][2]
    points = flat[0][:V].detach().numpy()                               # (V, 2)
    loudness, pitch, met = look_at(encoded, sides["train"])
    told = {name: explained(points, values, met) for name, values in (("loudness", loudness), ("pitch", np.log2(pitch)))}
    print(f"embeddings of 2 dimensions: dev {flat_bits:.3f}; a plane over them explains "
          + ", ".join(f"{value:.0%} of the {name}" for name, value in told.items()))

    # 7. The library's MLP is this one; see `as_plain` for the one thing that it writes in another way.
    torch.manual_seed(0)
    library = SequenceModel(spec, MLP(MLP.Config(dim=64, context=best, hidden_dim=H)), Parallel(1))
    optimizer = torch.optim.AdamW(library.parameters(), lr=2e-3)
    crops = Crops(encoded.cache, parts["train"], num_frames=64, batch_size=16)
    for step in range(steps // 4):
        nats, tokens = library.nll(crops.batch(step)[0])                # all 64 steps of 16 crops at once
        optimizer.zero_grad()
        (nats / tokens).backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / (steps // 4))
        optimizer.step()
    theirs = held_out_score(library, sides["dev"]).loss
    plain = bits(as_plain(library, V), examples(sides["dev"], best, V))
    assert abs(theirs - plain) < 1e-4, (theirs, plain)
    print(f"the library's MLP: dev {theirs:.5f}; its weights in the model above: {plain:.5f}")

    # 8. The test side, once, with what the dev side has chosen.
    tested = bits(models[best], examples(sides["test"], best, V))
    print(f"test, context {best}: {tested:.3f} bits per token; counted bigram {counted['test']['bigram']:.3f}")

    # 9. Sounds: each several draws one after the other, as long as the middle one of the test files.
    def sound(name: str, pieces: list[Tensor], title: str, about: str) -> Clip:
        pause = torch.zeros(1, round(0.15 * spec.sample_rate))
        with torch.inference_mode():
            wavs = [wav for codes in pieces for wav in (encoded.frontend.decode(codes[None, None])[0], pause)]
        write_audio(args.out / f"{name}.wav", torch.cat(wavs[:-1], dim=1), spec.sample_rate)
        return Clip(args.out / f"{name}.wav", title, notes=[about])

    count = min(6, len(sides["test"]))
    length = min(int(np.median(sides["test"].num_frames)), math.ceil(4 * spec.frame_rate))
    sounds = [sound("held-out", [sides["test"][i][0, :length] for i in range(count)], "Held-out files",
                    f"{count} of them, through the tokens and back: as good as it can get.")]
    for n, model in models.items():
        generator = torch.Generator().manual_seed(0)
        sounds.append(sound(f"context-{n}", [draw(model, n, length, generator) for _ in range(count)],
                            f"Context {n}", f"{n * milliseconds:.0f} ms; {by_context[n][-1][2]:.3f} bits per dev token."))

    # 10. The page.
    gaps = {n: curve[-1][2] - curve[-1][1] for n, curve in by_context.items()}
    largest, least = by_size[sizes[-1]], min(by_size, key=lambda size: by_size[size][-1][2])
    turned = min(largest, key=lambda look: look[2])
    page = write_document(
        args.out / "index.html", "Lesson 3: the multi-layer perceptron",
        note(__doc__), text(f"{said}. A token is {milliseconds:.0f} ms of sound, one of {V}."),
        section("A learning rate",
                picture(draw_rates(tried, rising, smooth, width, top, losses[usual]),
                        "Loss over a rising learning rate, and over a training whose rate falls once",
                        f"Left: each step has a higher rate than the one before. Right: a training with {top:.2g}, and "
                        "a tenth of it for the last quarter."),
                text(f"Below {tried[len(tried) // 4]:.2g} hardly anything is learned. The loss is lowest at "
                     f"{lowest:.2g} and turns up beyond it, so {top:.2g}, a third of that, is fast and safe. A rate that high keeps "
                     "the weights jumping about the bottom of the valley; when it falls to a tenth, so does the loss "
                     "at once.")),
        section("How much past",
                picture(draw_bits(by_context, by_size, counted["dev"], milliseconds, best),
                        "Bits per token on the training and dev sides, by context, by hidden units and by step",
                        f"Left and right of it: after {steps:,} steps. The two others begin where the dev side chose "
                        f"{best} tokens."),
                table(["context", "milliseconds", "parameters", "train", "dev", "dev, bits per second"],
                      [[str(n), n * milliseconds, sum(x.numel() for x in models[n]), *curve[-1][1:],
                        curve[-1][2] * spec.frame_rate] for n, curve in by_context.items()],
                      "bits per token", main_row=lengths.index(best)),
                text(f"One token of context needs {by_context[lengths[0]][-1][2]:.3f} bits per dev token, the counted "
                     f"bigram, which sees the same, {counted['dev']['bigram']:.3f}. {best} tokens need "
                     f"{by_context[best][-1][2]:.3f}. " + (
                         f"More is not better: with {lengths[-1]} the training loss is {by_context[lengths[-1]][-1][1]:.3f}, "
                         f"yet the dev loss {by_context[lengths[-1]][-1][2]:.3f}. What stands between the two grows from "
                         f"{gaps[lengths[0]]:.2f} to {gaps[lengths[-1]]:.2f}: this is overfitting."
                         if best != lengths[-1] else "It is the longest that was tried: try more."),
                     f"Of the sizes, {least} hidden units are best for the dev side. The largest model's dev loss was "
                     f"{turned[2]:.3f} at step {turned[0]:,} and is {largest[-1][2]:.3f} at the end, its training loss "
                     f"{largest[-1][1]:.3f}."),
                text(f"The dev side has chosen among {len(lengths)} contexts, so its {by_context[best][-1][2]:.3f} is a "
                     f"little too good to be believed. The test side was looked at once, after that: {tested:.3f} bits "
                     f"per token, beside {counted['test']['bigram']:.3f} of the counted bigram on the same files.")),
        section("Where tokens lie",
                picture(draw_points(points, loudness, pitch, met), "The 2-D embedding of each token, coloured twice",
                        "Each dot is a token, the larger the more often it was met. It lies where training has put it; "
                        "the colours were not known to the model."),
                text(f"A plane over the picture explains {told['loudness']:.0%} of what the tokens differ in loudness, "
                     f"and {told['pitch']:.0%} of their pitch (the band in which a token's typical frame is loudest "
                     f"beside the other tokens); over points drawn by lot it would be about {2 / V:.1%}. Two dimensions "
                     f"are few: this model needs {flat_bits:.3f} bits per dev token, the one with {D} "
                     f"{by_context[usual][-1][2]:.3f}.")),
        section("The same in the library",
                text(f"audiogen.backbones.MLP in a SequenceModel, trained on crops by AdamW, needs {theirs:.5f} bits per "
                     f"dev token. Its weights in this lesson's five tensors give {plain:.5f}: it is the same model. It "
                     "looks at all steps of a crop at once, since sliding n tokens through a matrix is a convolution.")),
        section("How it sounds", text("Six draws each, one after the other."), grid(clip_cards(sounds))))
    print(f"open {page}")


def as_plain(library: SequenceModel, V: int) -> Model:
    """The library's weights as C, W1, b1, W2, b2: two linear layers with nothing between them are one."""
    backbone, head = library.backbone, library.head.linear
    C = torch.cat([library.embed.table.weight[:V], library.bos[None], torch.zeros(1, len(library.bos))])
    return [C, backbone.first.linear.weight.T, backbone.first.linear.bias, (head.weight @ backbone.last.weight).T,
            head.weight @ backbone.last.bias + head.bias]


def look_at(encoded: Encoded, training: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each token's typical mel frame: loudness, the frequency (Hz) at which it stands out, how often it was met."""
    frontend, V = encoded.frontend, encoded.spec.codebook_size
    typical = frontend.quantizer.decode(torch.arange(V)[None, None])[0].numpy()         # (F, V), standardised by band
    band = (typical - typical.mean(axis=0)).argmax(axis=0)
    basis = frontend.mel.basis.numpy()                                                  # (F, bins)
    centres = basis.argmax(axis=1) * encoded.spec.sample_rate / 2 / (basis.shape[1] - 1)
    met = np.bincount(torch.cat([codes[0] for codes in training]).numpy(), minlength=V)
    return typical.mean(axis=0), centres[band], met


def explained(points: np.ndarray, values: np.ndarray, met: np.ndarray) -> float:
    """How much of the variance of `values` a plane over the points explains, each counting as often as it was met."""
    weight = np.sqrt(met / met.sum())
    values = values - (values * weight ** 2).sum()
    plane = np.column_stack([points, np.ones(len(points))]) * weight[:, None]
    rest = values * weight - plane @ np.linalg.lstsq(plane, values * weight, rcond=None)[0]
    return float(1 - (rest ** 2).sum() / ((values * weight) ** 2).sum())


def draw_rates(tried: Tensor, rising: Tensor, smooth: Tensor, width: int, top: float, losses: Tensor) -> Figure:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogx(tried, rising, color="lightgrey", linewidth=0.8)
    left.semilogx(tried[width // 2:][:len(smooth)], smooth)
    left.axvline(top, color="tab:orange", linestyle="--", label=f"chosen: {top:.2g}")
    left.set(xlabel="learning rate", ylabel="bits per token of the batch", ylim=(float(smooth.min()) - 1.5, float(rising[0]) + 2))
    left.legend()
    width = max(1, len(losses) // 60)
    right.plot(losses, color="lightgrey", linewidth=0.6)
    right.plot(np.arange(len(losses) - width + 1) + width // 2, losses.unfold(0, width, 1).mean(dim=1))
    right.axvline(0.75 * len(losses), color="tab:orange", linestyle="--", label="the rate falls to a tenth")
    right.set(xlabel="step", ylabel="bits per token of the batch")
    right.legend()
    return figure


def draw_bits(by_context: dict[int, Curve], by_size: dict[int, Curve], counted: dict[str, float], milliseconds: float,
              best: int) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, curves, label in ((axes[0], {n * milliseconds: c for n, c in by_context.items()}, "context, ms"),
                              (axes[1], by_size, f"hidden units (context {best})")):
        for side, colour in ((1, "tab:blue"), (2, "tab:orange")):
            ax.plot(list(curves), [curve[-1][side] for curve in curves.values()], "o-", color=colour,
                    label=("", "train", "dev")[side])
        ax.set(xscale="log", xlabel=label, xticks=list(curves), xticklabels=[f"{x:.0f}" for x in curves])
        ax.minorticks_off()
    steps, train, dev = zip(*by_size[max(by_size)], strict=True)
    axes[2].plot(steps, train, "o-", steps, dev, "o-")
    axes[2].set(xlabel=f"step, {max(by_size)} hidden units")
    for ax in axes:
        ax.axhline(counted["bigram"], color="grey", linestyle="--", linewidth=1, label="counted bigram, dev")
    axes[0].set(ylabel="bits per token")
    axes[0].legend()
    return figure


def draw_points(points: np.ndarray, loudness: np.ndarray, pitch: np.ndarray, met: np.ndarray) -> Figure:
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    for ax, values, label, norm in zip(figure.subplots(1, 2), (loudness, pitch), (
            "loudness: mean of the typical frame", "pitch: where the typical frame stands out, Hz"),
            ("linear", "log"), strict=True):
        dots = ax.scatter(*points.T, c=values, s=8 + 120 * met / met.max(), cmap="viridis", norm=norm, alpha=0.85)
        ax.set(xlabel="first dimension", ylabel="second dimension", aspect="equal")
        figure.colorbar(dots, ax=ax, label=label)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
