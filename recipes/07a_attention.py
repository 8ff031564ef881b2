"""Lesson 7a: attention. Which parts of the past does each step use?

    python recipes/07a_attention.py FOLDER [--out runs/07a_attention]

What it teaches. Attention is an average of the past whose weights come from the data: each step has a query, a key and
a value, and the values whose keys match the query get larger weights. The lesson builds it up in small versions, checks
that each equals the next, and ends at the library's own layer. Then it adds the other parts of a transformer one by
one. The functions are in audiogen/course/attention.py, the parts in audiogen/course/transformer.py; read them along
with the lesson.

How it carries over to audio. The steps are slices of sound of 16 ms. With a mask that hides later steps, the layers
predict the next slice. Without it, they see a whole clip in both directions and recognise the word that was spoken. One
sequence can also attend to another (cross-attention): here a query for each word searches the spectrogram for it.

What to try. --layers 8: which models still learn? --rate 0.03: which ones learn now? --steps 1500: does dropout help
once the model has seen every file many times? Then run 07b_gpt.py, which looks inside a trained GPT.
"""

import argparse
import copy
import math
from itertools import islice, product

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
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

DIM, HEADS = 64, 4  # D, H
CROP, MAX_CROPS = 64, 1000  # steps per crop; maximum number of crops in an evaluation
MAX_STEPS = 256  # clips to be recognised are cut to this length


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=128, help="V, the number of typical frames")
    parser.add_argument("--layers", type=int, default=4, help="number of layers of each language model")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of the language models")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each model")
    args = parser.parse_args()
    if args.short:
        args.codes, args.layers, args.steps = 16, 2, 4

    tokens = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=args.codes)
    frames = encode_folder(args.folder, args.out / "frames", "mel")
    print(tokens.sides.summary)
    page = write_lesson(
        __file__,
        args,
        text(tokens.sides.summary + "."),
        build_up(frames.held_out[0].T[:CROP].double()),
        scale(),
        *language_models(tokens, args),
        *naming(frames, args),
    )
    print(f"open {page}")


# 1. From averaging the past to the library's own layer.


@torch.no_grad()
def build_up(x: Tensor) -> str:
    """Check that each version of attention equals the next one, on the mel frames (S, D) of a clip."""
    torch.manual_seed(0)
    (S, D), mask, rows = x.shape, small.causal_mask(len(x)), []

    def same(what: str, ours: Tensor, other: Tensor) -> None:
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-10)
        rows.append([what, f"{(ours - other).abs().max():.0e}"])
        print(f"equal to {rows[-1][1]}: {what}")

    mean = small.past_mean_loop(x)  # y[t] = mean of x[0] ... x[t]
    same("averaging in a loop = a product with a triangle of ones", small.past_mean_matrix(x), mean)
    same("= softmax weights, with scores of minus infinity for later steps", small.past_mean_softmax(x), mean)
    same(
        "= attention with zero queries, which match all keys equally",
        small.attend(torch.zeros_like(x), x, x, mask),
        mean,
    )
    ours = Attention(D, HEADS, turned=False).double()
    q, k, v = ours.qkv(x).chunk(3, dim=1)
    same(
        "attention with learned queries, keys and values = torch's attention",
        small.attend(q, k, v, mask),
        nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    )
    heads = [small.attend(*(y[:, part] for y in (q, k, v)), mask) for part in torch.arange(D).chunk(HEADS)]
    same(
        "several heads = attention on a slice of the features each, concatenated",
        ours(x[None], x[None], mask)[0],
        ours.out(torch.cat(heads, dim=1)),
    )
    torchs = nn.MultiheadAttention(D, HEADS, batch_first=True).double()
    torchs.in_proj_weight, torchs.in_proj_bias, torchs.out_proj = ours.qkv.weight, ours.qkv.bias, ours.out
    asking = torch.randn(1, 5, D).double()  # another sequence
    same(
        "cross-attention from another sequence = torch's MultiheadAttention",
        ours(asking, x[None]),
        torchs(asking, x[None], x[None])[0],
    )
    order = torch.cat([torch.randperm(S - 1), torch.tensor([S - 1])])  # shuffles the past, but not the last step
    same(
        "last output with the past shuffled = last output without (no positions)",
        ours(x[None], x[None], mask)[0, -1],
        ours(x[None, order], x[None, order], mask)[0, -1],
    )
    library = CausalAttention(D, HEADS, window=S).double()
    ours.turned, library.qkv, library.out = True, ours.qkv, ours.out  # rotate queries and keys by their positions
    y, shuffled = library(x[None])[0], library(x[None, order])[0]
    same("attention with rotary positions = the library's CausalAttention", ours(x[None], x[None], mask), y)
    noticed = float((y - shuffled)[0, -1].norm() / y[0, -1].norm())
    print(f"with rotary positions, shuffling the past changes the last output by {noticed:.1%} of its norm")

    figure = Figure(figsize=(10, 5), layout="constrained")
    (clip, run), (even, chosen) = figure.subplots(2, 2)
    for axis, title, y in (clip, "a held-out clip", x), (run, "the mean of its past at each step", mean):
        axis.imshow(y.T.numpy(), aspect="auto", origin="lower", cmap="magma", vmin=float(x.min()), vmax=float(x.max()))
        axis.set(title=title, xlabel="step", ylabel="mel band")
    for axis, title, q in (even, "weights of that mean", 0 * x), (chosen, "weights by similarity (q = k = x)", x):
        axis.imshow(small.attention_weights(q, x, mask).numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=0.3)
        axis.set(title=title, xlabel="key", ylabel="query")
    own = q_k_v(x)
    return section(
        "Step by step",
        table(["equation", "largest difference"], rows),
        text(
            f"Computed on {S} frames of a held-out clip, in float64. Attention alone ignores the order of the past. "
            f"With rotary positions (and untrained weights), shuffling the past changes the last output by "
            f"{noticed:.1%} of its norm."
        ),
        picture(
            figure,
            "A spectrogram, its running mean, and two triangles of weights",
            "In a running mean each new frame counts for less, so the mean soon hardly changes. With weights from the "
            "data, a step can choose the frames that are similar to it.",
        ),
        picture(
            own,
            "A query, its scores with the keys before it, the weights, and the mean of the values",
            "One step of attention, with the frames of the clip as queries, keys and values. From the top: the clip, "
            "with the frame that asks in a box; the product of this query with each key up to it (the scores); the "
            "softmax of the scores (the weights). Right: the query, and the mean of the values with these weights, "
            "which is the output. Layers learn three matrices, so that their queries, keys and values differ.",
        ),
    )


def q_k_v(x: Tensor) -> Figure:
    """Plot one step of attention over the frames (S, D) of a clip: query, scores, weights and output."""
    louder = x.mean(dim=1)
    t = len(x) // 2 + int(louder[len(x) // 2 :].argmax())  # a loud frame with a long past
    scores = x[: t + 1] @ x[t] / math.sqrt(x.shape[1])
    weights = scores.softmax(dim=0)
    figure = Figure(figsize=(10, 5), layout="constrained")
    grid = figure.add_gridspec(3, 3, height_ratios=(2, 1, 1), width_ratios=(10, 1, 1))
    shades = {"aspect": "auto", "origin": "lower", "cmap": "magma", "vmin": float(x.min()), "vmax": float(x.max())}
    clip = figure.add_subplot(grid[0, 0])
    clip.imshow(x.T.numpy(), **shades)
    clip.add_patch(Rectangle((t - 0.5, -0.5), 1, x.shape[1], fill=False, color="cyan", lw=2))
    clip.set(title="keys and values: the frames; the query in a box", ylabel="mel band", xticks=[])
    for row, values, label in ((1, scores, "score q·k"), (2, weights, "weight")):
        axis = figure.add_subplot(grid[row, 0])
        axis.bar(range(t + 1), values.numpy(), width=1, color="tab:blue")
        axis.set(xlim=(-0.5, len(x) - 0.5), ylabel=label)
    axis.set(xlabel="step")
    for column, vector, title in ((1, x[t], "query"), (2, weights @ x[: t + 1], "output")):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(vector[:, None].numpy(), **shades)
        axis.set(title=title, xticks=[], yticks=[])
    return figure


# 2. Why 1 / sqrt(d): products of longer vectors are larger, and the softmax of large scores is nearly one-hot.


def scale() -> str:
    """Measure how concentrated a softmax over random keys is by vector length, with and without the scale."""
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
            f"Random queries and {keys} random keys. Without the scale, a softmax over products of long vectors gives "
            "nearly all weight to one key before anything is learned. Where a weight p is near 1, its gradient "
            "p (1 - p) is near 0, so training hardly changes it.",
        ),
    )


LADDER = {
    "attention only": {"feed_forward": False, "residual": False, "norm": nn.Identity},
    "+ feed-forward": {"residual": False, "norm": nn.Identity},
    "+ residual": {"norm": nn.Identity},
    "+ layer norm": {},
    "batch norm instead": {"norm": BatchNorm},
    "layer norm + dropout": {"dropout": 0.1},
}
BESIDE = {
    "layer norm, learned positions": {"positions": "learned", "num_steps": CROP},
    "layer norm, no positions": {"positions": "none"},
    "+ residual, faster": {"norm": nn.Identity},
    "+ layer norm, faster": {},
}


# 3. The other parts of a transformer: the same language model with its parts added one after another.


def language_models(encoded: Encoded, args: argparse.Namespace) -> list[str]:
    """Train the models of `LADDER` and `BESIDE` on the tokens, and compare them."""
    seen, pieces = (
        list(islice((piece for codes in side for piece in codes.split(CROP, dim=1)), MAX_CROPS))
        for side in (encoded.training, encoded.held_out)
    )
    bits = baselines(encoded.spec, encoded.training, pieces)
    print("counted, bits per held-out code: " + ", ".join(f"{name} {loss:.3f}" for name, loss in bits.items()))
    crops, models, curves, rows = encoded.crops(CROP, batch_size=16), {}, {}, []
    for name, settings in {**LADDER, **BESIDE}.items():
        torch.manual_seed(0)
        model = SequenceModel(encoded.spec, Transformer(DIM, HEADS, args.layers, **settings), Parallel(1))
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        rate, curve = args.rate * (3 if "faster" in name else 1), {}
        for step in range(args.steps):
            for group in optimizer.param_groups:  # warm-up, then linear decay to zero
                group["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / args.steps)
            nats, entries = model.nll(crops.batch(step)[0])  # of (16, 1, CROP)
            optimizer.zero_grad()
            (nats / entries).backward()
            optimizer.step()
            if 8 * (step + 1) // args.steps > 8 * step // args.steps:  # evaluate eight times, last after training
                curve[step + 1] = held_out_score(model, pieces).loss
        models[name], curves[name] = model, curve
        rows.append([name, f"{rate:g}", f"{curve[args.steps]:,.3f}", f"{held_out_score(model, seen).loss:,.3f}"])
        print("{2} bits per held-out code, {3} on training files: {0}, learning rate {1}".format(*rows[-1]))
    last = {name: curve[args.steps] for name, curve in curves.items()}

    figure = Figure(figsize=(9, 4), layout="constrained")
    views = LADDER, ["+ residual", "+ layer norm", *BESIDE]
    for axis, names, level in zip(figure.subplots(1, 2), views, (max(bits.values()), min(bits.values())), strict=True):
        low = min(level, *(min(curves[name].values()) for name in names))
        for name in names:
            axis.plot(list(curves[name]), list(curves[name].values()), "o-", ms=3, label=name)
        for name, loss in bits.items():
            axis.axhline(loss, color="0.5", lw=0.8, ls=":")
            axis.annotate(name, (0, loss), va="top" if name == "unigram" else "bottom", fontsize=8, color="0.4")
        axis.set(
            xlabel="training steps",
            ylabel="bits per code",
            xlim=(0, None),
            ylim=(0.95 * low, 1.15 * max(level, last["+ layer norm"])),
        )
        axis.legend(fontsize=8)
    rows += [[name, "", f"{loss:.3f}", ""] for name, loss in bits.items()]
    return [
        section(
            "The other parts of a transformer",
            table(["model", "learning rate", "held-out bits per code", "on training files"], rows),
            picture(
                figure,
                "Held-out bits per code over training, model by model",
                f"Dotted: counted models. Right: enlarged; faster means a learning rate of {3 * args.rate:g} instead "
                f"of {args.rate:g}. A curve that is missing on the right lies far above.",
            ),
            text(
                f"Without residual connections the final held-out loss is {last['+ feed-forward']:.3f}, with them "
                f"{last['+ residual']:.3f}."
                + (
                    " Without them, each layer passes on averages of averages: little of the current frame reaches the "
                    "top, and little gradient reaches the bottom."
                    if last["+ residual"] < 0.95 * last["+ feed-forward"]
                    else ""
                ),
                f"What does a norm contribute? At a learning rate of {args.rate:g} the final loss is "
                f"{last['+ residual']:.3f} without and {last['+ layer norm']:.3f} with layer norm; at three times that "
                f"rate it is {last['+ residual, faster']:.3f} and {last['+ layer norm, faster']:.3f}. Dropout is meant "
                f"to reduce overfitting; here it changes {last['+ layer norm']:.3f} to "
                f"{last['layer norm + dropout']:.3f}.",
            ),
        ),
        batch_norm(models, crops, pieces),
        positions(models),
    ]


def batch_norm(models: dict[str, SequenceModel], crops: Crops, pieces: list[Tensor]) -> str:
    """Measure how much the second halves of crops affect predictions in their first halves, by norm and mode."""
    (batch, _), (other, _), half, rows = crops.batch(0), crops.batch(1), CROP // 2, []
    changed = Batch(torch.cat([batch.x[:, :, :half], other.x[:, :, half:]], dim=2))  # same first, other second halves
    for name, mode in product(("+ layer norm", "batch norm instead"), ("training", "evaluation")):
        model = copy.deepcopy(models[name]).train(mode == "training")  # a copy, since running statistics change
        with torch.no_grad():
            moved = (model(batch) - model(changed))[:, :, :half].abs().mean()
            nats, entries = zip(*(model.nll(Batch(piece[None])) for piece in pieces), strict=True)
        rows.append([name, mode, float(moved) / math.log(2), float(sum(nats)) / sum(entries) / math.log(2)])
        print(f"{name}, {mode}: other second halves change the loss of first halves by {rows[-1][2]:.3f} bits per code")
    return section(
        "Batch norm sees the future",
        text(
            "We replace the second half of each crop and measure how much the loss of the first half changes. A causal "
            "model must not change at all."
        ),
        table(["norm", "mode", "mean change of the first half, bits per code", "loss with one clip per batch"], rows),
        text(
            "Layer norm uses the features of one step only. Batch norm computes mean and variance over all steps of "
            "the batch: in training, a prediction depends on later steps, and on which clips share the batch (in the "
            "last column, each clip is alone). In evaluation it uses averages kept from training. Then it doesn't see "
            "the future, but it computes another function than in training."
        ),
    )


def positions(models: dict[str, SequenceModel]) -> str:
    """Plot how the scores of one head depend on distance, for rotary and for learned positions."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("+ layer norm", "layer norm, learned positions"), strict=True):
        model, first = models[name], models[name].backbone.blocks[0]
        x = model.embed.table.weight.mean(0).expand(1, CROP, DIM)  # the same input at every step
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
            "The first head of the first layer, with the same input at every step. Rotary: queries and keys are "
            "rotated by angles proportional to their step, so a score depends only on their distance, and the three "
            "curves coincide. Learned: a table has one vector per step, so scores also depend on the step itself, and "
            f"step {CROP} has no vector at all.",
        ),
    )


# 4. Without the mask: an encoder recognises whole clips; with cross-attention, each label queries the clip.


def naming(encoded: Encoded, args: argparse.Namespace) -> list[str]:
    """Train classifiers of the clips' labels without a mask and with cross-attention, and compare them."""
    training, held_out = encoded.training, encoded.held_out
    labels = label_names(training.names)
    places = [i for i, name in enumerate(held_out.names) if label_of(name) in labels]
    if not places:
        nothing = (
            "No label occurs both in training and in held-out files (a label is the start of a name like "
            "LABEL_more.wav, or a folder), so there is nothing to recognise."
        )
        print(nothing)
        return [section("Without the mask", text(nothing))]

    def batch(side: Sequences, chosen: list[int]) -> tuple[Tensor, Tensor]:
        clips = [side[i][:, :MAX_STEPS].T for i in chosen]
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
        print(f"{rows[-1][1]:.1f} % of {len(truth)} held-out clips recognised: {name}")
    rows.append(["always the most frequent label", 100 * float(truth.bincount().max()) / len(truth)])

    figure, ticks = Figure(figsize=(7.5, 5), layout="constrained"), range(len(labels))
    axis = figure.subplots()
    confusion, *_ = np.histogram2d(truth, named["encoder"], bins=np.arange(len(labels) + 1))
    figure.colorbar(axis.imshow(confusion, cmap="Blues"), label="held-out clips")
    axis.set(xlabel="predicted", ylabel="true", xticks=ticks, xticklabels=labels, yticks=ticks, yticklabels=labels)

    sounds, shown = [], list({label_of(held_out.names[i]): i for i in places}.values())[:4]
    maps = Figure(figsize=(10, 5), layout="constrained")
    for (above, below), i in zip(maps.subplots(2, len(shown), sharex="col", squeeze=False).T, shown, strict=True):
        name, (x, _) = held_out.names[i], batch(held_out, [i])
        q, k, _ = model.attention.heads(model.queries, model.encode(x)[0])  # the last model, "queries"
        place = {"aspect": "auto", "extent": (0, x.shape[2] / encoded.spec.frame_rate, len(labels) - 0.5, -0.5)}
        above.imshow(x[0].flip(0).numpy(), cmap="magma", **place)
        above.set(title=f"true label: {label_of(name)}", yticks=[])
        below.imshow(small.attention_weights(q, k).mean(1)[0].detach().numpy(), cmap="Blues", **place)
        below.set(xlabel="seconds", yticks=ticks, yticklabels=labels)
        path, rate = args.out / f"held-out-{len(sounds)}.wav", encoded.spec.sample_rate
        write_audio(path, read_audio(args.folder / name, rate)[:, : MAX_STEPS * encoded.spec.hop_length], rate)
        sounds.append(Clip(path, name, f"true label: {label_of(name)}"))
    return [
        section(
            "Without the mask",
            table(["", "% of held-out clips recognised"], rows),
            text(
                "Encoder: the same layers without a mask over all mel frames of a clip, then the mean over frames. Bag "
                "of frames: each frame attends only to itself, so order plays no role. Queries: a learned query for "
                "each label attends to the frames of such a bag."
            ),
            picture(figure, "Confusion matrix of the encoder"),
        ),
        section(
            "One sequence attends to another",
            picture(
                maps,
                "Spectrograms, and below each of them the attention weights of each label's query",
                "Cross-attention: the queries are learned, one for each label; keys and values come from the frames. "
                "Each row shows where the query of one label attends (mean over heads), whether that label is the true "
                "one or not. Its logit depends on what it finds there.",
            ),
            grid(clip_cards(sounds)),
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(run_script(main))
