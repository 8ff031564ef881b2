"""Lesson 7: attention. Which of the past does each step look at?

    python recipes/07_attention.py FOLDER [--out runs/07_attention]

What it teaches. Attention is an average of the past whose weights come from the data: each step asks (a query), each
offers (a key), and the values of those that fit count for more. It is built up in steps, each checked to equal the
next, as far as the library's own layer; then what stands around it in a transformer, part by part. The functions are
in audiogen/course/attention.py, the parts in audiogen/course/transformer.py: read them beside this.

How it carries over to audio. The steps are slices of sound, 16 ms each. With a mask, which hides what comes later, the
layers predict the next slice. Without it they read a whole clip, to and fro, and name the word that was spoken. And one
sequence can question another (cross-attention): here a query for each word looks for it along the spectrogram.

What to try. --layers 8: which of the models still learn? --rate 0.03: and now? --steps 1500: does dropout pay when the
files have been seen often? Then 07_gpt.py, which looks inside a trained GPT.
"""

import argparse
import copy
import math
from itertools import islice, product

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from audiogen.audio.io import read_audio, write_audio
from audiogen.course import attention as small
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.course.transformer import Attention, BatchNorm, Namer, Transformer
from audiogen.data import Crops, Encoded, Sequences, encode_folder, label_names, label_of
from audiogen.evaluation.scores import baselines, held_out_score
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.models.batch import Batch
from audiogen.models.layers import CausalAttention
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.utils.scripts import run_script

DIM, HEADS, CROP, MOST, LONGEST = 64, 4, 64, 1000, 256  # D, H, steps of a crop, crops scored, steps of a clip named


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=128, help="V, how many typical frames")
    parser.add_argument("--layers", type=int, default=4, help="of each language model")
    parser.add_argument("--rate", type=float, default=0.01, help="the learning rate of the language models")
    parser.add_argument("--steps", type=int, default=300, help="of training, for each model")
    args = parser.parse_args()
    if args.short:
        args.codes, args.layers, args.steps = 16, 2, 4

    tokens = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=args.codes)
    frames = encode_folder(args.folder, args.out / "frames", "mel")
    print(tokens.sides.summary)
    page = write_lesson(
        __file__,
        args.out / "index.html",
        text(tokens.sides.summary + "."),
        build_up(frames.held_out[0].T[:CROP].double()),
        scale(),
        *language_models(tokens, args),
        *naming(frames, args),
    )
    print(f"open {page}")


# 1. From averaging the past to the library's own layer. x (S, D) is a clip of sound: its mel frames.


@torch.no_grad()
def build_up(x: Tensor) -> str:
    torch.manual_seed(0)
    (S, D), mask, rows = x.shape, small.causal_mask(len(x)), []

    def same(what: str, ours: Tensor, other: Tensor) -> None:
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-10)
        rows.append([what, f"{(ours - other).abs().max():.0e}"])
        print(f"equal to {rows[-1][1]}: {what}")

    mean = small.past_mean_loop(x)  # y[t] = mean of x[0] ... x[t]
    same("averaging in a loop = a product with a triangle of ones", small.past_mean_matrix(x), mean)
    same("= weights by softmax, minus infinity where none may look", small.past_mean_softmax(x), mean)
    same("= attention whose queries are zero: it prefers nobody", small.attend(torch.zeros_like(x), x, x, mask), mean)
    ours = Attention(D, HEADS, turned=False).double()
    q, k, v = ours.qkv(x).chunk(3, dim=1)  # each step asks, offers, and has something
    same(
        "attention with queries, keys and values = torch's",
        small.attend(q, k, v, mask),
        nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    )
    heads = [small.attend(*(y[:, part] for y in (q, k, v)), mask) for part in torch.arange(D).chunk(HEADS)]
    same(
        "many heads = a slice of the features each, side by side",
        ours(x[None], x[None], mask)[0],
        ours.out(torch.cat(heads, dim=1)),
    )
    torchs = nn.MultiheadAttention(D, HEADS, batch_first=True).double()
    torchs.in_proj_weight, torchs.in_proj_bias, torchs.out_proj = ours.qkv.weight, ours.qkv.bias, ours.out
    asking = torch.randn(1, 5, D).double()  # a sequence of its own: cross-attention
    same("one sequence asks another = torch's again", ours(asking, x[None]), torchs(asking, x[None], x[None])[0])
    order = torch.cat([torch.randperm(S - 1), torch.tensor([S - 1])])  # the past shuffled, the present in its place
    same(
        "the past in any order: attention alone does not notice",
        ours(x[None], x[None], mask)[0, -1],
        ours(x[None, order], x[None, order], mask)[0, -1],
    )
    library = CausalAttention(D, HEADS, window=S).double()
    ours.turned, library.qkv, library.out = True, ours.qkv, ours.out  # queries and keys turned by their positions
    y, shuffled = library(x[None])[0], library(x[None, order])[0]
    same("with rotary positions = the library's CausalAttention", ours(x[None], x[None], mask), y)
    noticed = float((y - shuffled)[0, -1].norm() / y[0, -1].norm())
    print(f"with rotary positions a shuffled past moves the last output by {noticed:.1%} of its length")

    figure = Figure(figsize=(10, 5), layout="constrained")
    (clip, run), (even, chosen) = figure.subplots(2, 2)
    for axis, title, y in (clip, "a held-out clip", x), (run, "the mean of its past, at each step", mean):
        axis.imshow(y.T.numpy(), aspect="auto", origin="lower", cmap="magma", vmin=float(x.min()), vmax=float(x.max()))
        axis.set(title=title, xlabel="step", ylabel="mel band")
    for axis, title, q in (even, "weights of that mean", 0 * x), (chosen, "weights by likeness (q = k = x)", x):
        axis.imshow(small.attention_weights(q, x, mask).numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=0.3)
        axis.set(title=title, xlabel="step looked at", ylabel="step")
    return section(
        "Step by step",
        table(["each step", "largest difference"], rows),
        text(
            f"On {S} frames of a held-out clip, in float64. Attention alone sees a bag of frames; with rotary "
            f"positions (weights untrained) the shuffled past moves the last output by {noticed:.1%} of its length."
        ),
        picture(
            figure,
            "A spectrogram, its running mean, and two triangles of weights",
            "In a mean each new frame "
            "counts for less: it soon stands still. Weights from the data let a step pick the frames like it.",
        ),
    )


# 2. The 1 / sqrt(d): products of longer vectors are larger, and a softmax of large scores has made up its mind.


def scale() -> str:
    torch.manual_seed(0)
    sizes, keys = [2**n for n in range(11)], 64
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for name, scaled in (("q·k", False), ("q·k / sqrt(d)", True)):
        pairs = [(torch.randn(500, 1, d), torch.randn(500, keys, d)) for d in sizes]
        weights = [small.attention_weights(q, k, scaled=scaled) for q, k in pairs]
        largest = [float(w.amax(-1).mean()) for w in weights]
        axes[0].plot(sizes, largest, "o-", label=name)
        axes[1].plot(sizes, [float(small.entropy(w).mean()) for w in weights], "o-", label=name)
        print(f"softmax of {name}, d = {sizes[-1]}: the largest of {keys} weights is {largest[-1]:.2f} on average")
    axes[0].set(title="largest weight", xlabel="d", ylim=(0, 1), xscale="log")
    axes[1].set(title=f"entropy in bits, at most {math.log2(keys):g}", xlabel="d", ylim=(0, 6.2), xscale="log")
    axes[0].legend()
    return section(
        "Why the square root",
        picture(
            figure,
            "Largest weight and entropy of a softmax by vector length, with and without the scale",
            f"Random queries and {keys} random keys. Unscaled, a softmax over long vectors gives nearly all to one key "
            "before anything was learned; and where a weight is near 1 its gradient, p (1 - p), is near 0: so it "
            "stays.",
        ),
    )


# 3. What stands around attention: the same language model with its parts put in one after the other.

LADDER = {
    "attention only": {"feed_forward": False, "residual": False, "norm": nn.Identity},
    "+ feed-forward": {"residual": False, "norm": nn.Identity},
    "+ residual": {"norm": nn.Identity},
    "+ layer norm": {},
    "batch norm in its place": {"norm": BatchNorm},
    "layer norm + dropout": {"dropout": 0.1},
}
BESIDE = {
    "layer norm, learned positions": {"positions": "learned", "num_steps": CROP},
    "layer norm, no positions": {"positions": "none"},
    "+ residual, faster": {"norm": nn.Identity},
    "+ layer norm, faster": {},
}


def language_models(encoded: Encoded, args: argparse.Namespace) -> list[str]:
    seen, pieces = (
        list(islice((piece for codes in side for piece in codes.split(CROP, dim=1)), MOST))
        for side in (encoded.training, encoded.held_out)
    )
    bits = baselines(encoded.spec, encoded.training, pieces)
    print("bits per code held out: " + ", ".join(f"{name} {loss:.3f}" for name, loss in bits.items()))
    crops, models, curves, rows = encoded.crops(CROP, batch_size=16), {}, {}, []
    for name, settings in {**LADDER, **BESIDE}.items():
        torch.manual_seed(0)
        model = SequenceModel(encoded.spec, Transformer(DIM, HEADS, args.layers, **settings), Parallel(1))
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        rate, curve = args.rate * (3 if "faster" in name else 1), {}
        for step in range(args.steps):
            for group in optimizer.param_groups:  # up at first, then down to zero
                group["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / args.steps)
            nats, entries = model.nll(crops.batch(step)[0])  # of (16, 1, CROP)
            optimizer.zero_grad()
            (nats / entries).backward()
            optimizer.step()
            if 8 * (step + 1) // args.steps > 8 * step // args.steps:  # eight times, the last time at the end
                curve[step + 1] = held_out_score(model, pieces).loss
        models[name], curves[name] = model, curve
        rows.append([name, f"{rate:g}", f"{curve[args.steps]:,.3f}", f"{held_out_score(model, seen).loss:,.3f}"])
        print("{2} bits held out, {3} in training: {0}, learning rate {1}".format(*rows[-1]))

    figure = Figure(figsize=(9, 4), layout="constrained")
    views, reached = (LADDER, ["+ residual", "+ layer norm", *BESIDE]), curves["+ layer norm"][args.steps]
    for axis, names, level in zip(figure.subplots(1, 2), views, (max(bits.values()), min(bits.values())), strict=True):
        low = min(level, *(min(curves[name].values()) for name in names))
        for name in names:
            axis.plot(list(curves[name]), list(curves[name].values()), "o-", ms=3, label=name)
        for name, loss in bits.items():
            axis.axhline(loss, color="0.5", lw=0.8, ls=":")
            axis.annotate(name, (0, loss), va="top" if name == "unigram" else "bottom", fontsize=8, color="0.4")
        axis.set(
            xlabel="steps of training",
            ylabel="bits per code",
            xlim=(0, None),
            ylim=(0.95 * low, 1.15 * max(level, reached)),
        )
        axis.legend(fontsize=8)
    rows += [[name, "", f"{loss:.3f}", ""] for name, loss in bits.items()]
    return [
        section(
            "What stands around attention",
            table(["model", "learning rate", "held-out bits per code", "in training files"], rows),
            picture(
                figure,
                "Held-out bits per code over training, model by model",
                f"Dotted: models that only count. Right: seen closer; faster: at {3 * args.rate:g}, not {args.rate:g}. "
                "A curve that can't be seen there lies far above.",
            ),
            text(
                "Without residuals each layer hands on averages of averages: little of the present frame is left at "
                f"the top, little gradient at the bottom. What is a norm worth? At a rate of {args.rate:g} the last "
                "loss is {:.3f} without and {:.3f} with it, at three times that {:.3f} and {:.3f}. Dropout is there "
                "against learning files by heart.".format(
                    *(
                        curves[name + faster][args.steps]
                        for faster in ("", ", faster")
                        for name in ("+ residual", "+ layer norm")
                    )
                )
            ),
        ),
        batch_norm(models, crops, pieces),
        positions(models),
    ]


def batch_norm(models: dict[str, SequenceModel], crops: Crops, pieces: list[Tensor]) -> str:
    (batch, _), (other, _), half, rows = crops.batch(0), crops.batch(1), CROP // 2, []
    changed = Batch(torch.cat([batch.x[:, :, :half], other.x[:, :, half:]], dim=2))  # the same beginnings, other ends
    for name, mode in product(("+ layer norm", "batch norm in its place"), ("training", "evaluation")):
        model = copy.deepcopy(models[name]).train(mode == "training")  # training moves the running statistics
        with torch.no_grad():
            moved = (model(batch) - model(changed))[:, :, :half].abs().mean()
            nats, entries = zip(*(model.nll(Batch(piece[None])) for piece in pieces), strict=True)
        rows.append([name, mode, float(moved) / math.log(2), float(sum(nats)) / sum(entries) / math.log(2)])
        print(f"{name}, {mode}: other ends move the beginnings by {rows[-1][2]:.3f} bits a code")
    return section(
        "Batch norm looks ahead",
        table(["norm", "mode", "bits per code by which other ends move the beginnings", "bits, clip by clip"], rows),
        text(
            "Layer norm needs a step's own features. Batch norm takes mean and variance over all steps of the batch: "
            "in training a prediction depends on what comes later, and on which clips share the batch (last column: "
            "each alone). In evaluation it takes averages kept from training: no look ahead, but another function."
        ),
    )


def positions(models: dict[str, SequenceModel]) -> str:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("+ layer norm", "layer norm, learned positions"), strict=True):
        model, first = models[name], models[name].backbone.blocks[0]
        x = model.embed.table.weight.mean(0).expand(1, CROP, DIM)  # the same sound at every step
        x = first.norms[0](x if model.backbone.table is None else x + model.backbone.table)
        q, k, _ = first.attention.heads(x, x)
        scores = (q @ k.mT)[0, 0].detach() / math.sqrt(q.shape[-1])  # (S, S), of the first head
        for t in (CROP // 3, 2 * CROP // 3, CROP - 1):
            axis.plot(np.arange(t + 1), scores[t, : t + 1].flip(0), lw=4 - 3 * t / CROP, label=f"step {t}")
        title = "rotary positions" if model.backbone.table is None else name
        axis.set(title=title, xlabel="steps back", ylabel="score q·k / sqrt(d)")
        axis.legend()
    return section(
        "Positions",
        picture(
            figure,
            "A head's scores over distance, for rotary and for learned positions",
            "The first head of the first layer, the same sound at every step. Rotary: query and key are turned by "
            "angles that grow with the step, so a score knows only how far apart they are: three curves in one. A "
            f"learned table has a vector a place: each step sees a distance in its own way, and step {CROP} has no "
            "vector at all.",
        ),
    )


# 4. Without the mask: an encoder reads a clip to and fro and names it. And cross-attention: each name asks the clip.


def naming(encoded: Encoded, args: argparse.Namespace) -> list[str]:
    training, held_out = encoded.training, encoded.held_out
    labels = label_names(training.names)
    places = [i for i, name in enumerate(held_out.names) if label_of(name) in labels]
    if not places:
        print(nothing := "No labels that both sides share (LABEL_more.wav, or a folder for each): nothing to name.")
        return [section("Without the mask", text(nothing))]

    def batch(side: Sequences, chosen: list[int]) -> tuple[Tensor, Tensor]:
        clips = [side[i][:, :LONGEST].T for i in chosen]
        return (
            nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=math.nan).mT,
            torch.tensor([labels.index(label_of(side.names[i])) for i in chosen]),
        )

    everything = [batch(held_out, places[i : i + 64]) for i in range(0, len(places), 64)]
    truth, named, rows = torch.cat([y for _, y in everything]), {}, []
    for name, mixing, asking in (("bag of frames", False, False), ("encoder", True, False), ("queries", False, True)):
        torch.manual_seed(0)
        model = Namer(encoded.spec, len(labels), DIM, HEADS, mixing, asking)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        for step in range(args.steps):
            optimizer.param_groups[0]["lr"] = 5e-3 * min(1, (step + 1) / 20) * (1 - step / args.steps)
            x, y = batch(training, torch.randint(len(training), (32,)).tolist())
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        named[name] = torch.cat([model(x).argmax(1) for x, _ in everything])
        rows.append([name, 100 * float((named[name] == truth).double().mean())])
        print(f"{rows[-1][1]:.1f} % of {len(truth)} held-out clips named rightly: {name}")
    rows.append(["the commonest label, always", 100 * float(truth.bincount().max()) / len(truth)])

    figure, ticks = Figure(figsize=(7.5, 5), layout="constrained"), range(len(labels))
    axis = figure.subplots()
    confusion, *_ = np.histogram2d(truth, named["encoder"], bins=np.arange(len(labels) + 1))
    figure.colorbar(axis.imshow(confusion, cmap="Blues"), label="held-out clips")
    axis.set(xlabel="named", ylabel="spoken", xticks=ticks, xticklabels=labels, yticks=ticks, yticklabels=labels)

    sounds, shown = [], list({label_of(held_out.names[i]): i for i in places}.values())[:4]
    maps = Figure(figsize=(10, 5), layout="constrained")
    for (above, below), i in zip(maps.subplots(2, len(shown), sharex="col", squeeze=False).T, shown, strict=True):
        name, (x, _) = held_out.names[i], batch(held_out, [i])
        q, k, _ = model.attention.heads(model.queries, model.encode(x)[0])  # the last: frames hear no others
        place = {"aspect": "auto", "extent": (0, x.shape[2] / encoded.spec.frame_rate, len(labels) - 0.5, -0.5)}
        above.imshow(x[0].flip(0).numpy(), cmap="magma", **place)
        above.set(title=f"spoken: {label_of(name)}", yticks=[])
        below.imshow(small.attention_weights(q, k).mean(1)[0].detach().numpy(), cmap="Blues", **place)
        below.set(xlabel="seconds", yticks=ticks, yticklabels=labels)
        path, rate = args.out / f"held-out-{len(sounds)}.wav", encoded.spec.sample_rate
        write_audio(path, read_audio(args.folder / name, rate)[:, : LONGEST * encoded.spec.hop_length], rate)
        sounds.append(Clip(path, name, f"spoken: {label_of(name)}"))
    return [
        section(
            "Without the mask",
            table(["", "% of held-out clips named rightly"], rows),
            text(
                "Encoder: the same layers over a whole clip's mel frames, none of them hidden, then their mean. Bag of "
                "frames: each sees itself alone, no order. Queries: one for each label attends to such frames."
            ),
            picture(figure, "Confusion matrix of the encoder"),
        ),
        section(
            "One sequence asks another",
            picture(
                maps,
                "Spectrograms, and below each where the query of each label looks",
                "Cross-attention: queries are the labels' own, keys and values the frames'. A row shows where one "
                "label looks (mean of the heads), whether it was spoken or not: what it finds there decides.",
            ),
            grid(clip_cards(sounds)),
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(run_script(main))
