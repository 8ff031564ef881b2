"""Lesson 5: backpropagation by hand. What does loss.backward() do?

    python recipes/05_backprop.py FOLDER [--out runs/05_backprop]

What it teaches. A network is a chain of operations, and each of them must answer one question: given the gradient dy of
the loss with respect to its output, what are the gradients with respect to its input and its weights? Asking each
operation in turn, from the last to the first, is all of backpropagation. Here every answer is a few lines of tensor
arithmetic (audiogen/course/backward, with the derivations), and the model learns without autograd.

How it carries over to audio. The model is the MLP of courses on text, with 16 ms slices of sound in place of letters: a
recording is a word that begins and ends with a boundary token. Then come operations that courses on text leave out. The
gradient of a dilated convolution goes back in time through the same gaps, so a layer's dilation is the number of
milliseconds by which an error reaches further into the past. The others are layer norm and attention, where an error
says which moment should have been attended to. Lessons 6 and 7a explain these layers; come back to the "Back through"
sections of the page after them.

What to try. Change a sign in one backward function and run again: which number in the first table reveals it, and does
the model still learn? Use a shorter or longer --context: how far does the held-out loss follow the training loss down?
Write the backward pass of another operation (GELU, RMS norm), and check it as the table does.
"""

import math
from collections.abc import Sequence

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from audiogen.audio.io import write_audio
from audiogen.course import backward as b
from audiogen.course.gradient_check import by_autograd, by_differences, largest_difference
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.course.manual_mlp import MLPByHand, windows
from audiogen.course.reference_pairs import PAIRS
from audiogen.data import encode_folder
from audiogen.evaluation.scores import baselines
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.models.sampling import Sampling, draw, uniforms
from audiogen.utils.scripts import run_script

DIM, HIDDEN, BATCH = 16, 200, 64
DILATIONS = (1, 2, 4, 8, 16)
#: The operations of audiogen/course/backward, and the gradient that each passes back, in the notation of `NOTATION`.
GRADIENTS = {
    "cross_entropy": "probabilities minus one-hot",
    "linear": "dx = dy W,  dW = dy\N{PRIME} x",
    "tanh": "dy (1 - y²)",
    "batch_norm_steps": "each line of the forward pass, from the last to the first",
    "batch_norm": "(g - mean(g) - n mean(g n)) / deviation",
    "embedding": "for each code, the sum of dy over its occurrences",
    "causal_conv": "an anticausal convolution of dy",
    "gate": "for each factor, dy times the other factor",
    "wavenet_layer": "the sum over both outputs",
    "layer_norm": "as batch norm, over each row instead",
    "softmax": "y (dy - sum(y dy))",
    "self_attention": "the transposes: a step receives gradients from later steps",
}
NOTATION = (
    "dy is the gradient of the loss with respect to the output y of an operation, dx and dW are those with respect to "
    "its input x and its weights W; ′ is the transpose. In the norms, n is the normalised input (x minus its mean, "
    "divided by its deviation), and g is dy times the gain. Each formula is derived in audiogen/course/backward."
)


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, the number of typical frames")
    parser.add_argument("--context", type=int, default=8, help="number of tokens that the model sees")
    parser.add_argument("--steps", type=int, default=8000, help="training steps")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each sample")
    args = parser.parse_args()
    steps = 40 if args.short else args.steps

    # 1. Check every operation: compare its gradient with autograd's, and with finite differences.
    torch.manual_seed(0)
    checks = []
    for name, formula in GRADIENTS.items():
        pair = PAIRS[name](lambda: int(torch.randint(3, 7, ())))  # every size is drawn from 3 to 6
        _, dy, ours = pair.run()
        oracles = [oracle(pair.reference, pair.inputs, dy) for oracle in (by_autograd, by_differences)]
        largest = max(float(gradient.abs().max()) for gradient in oracles[0])
        apart = [largest_difference(ours, theirs) / largest for theirs in oracles]
        checks.append([name.replace("_", " "), formula, *(f"{most:.0e}" if most else "0" for most in apart)])
        print(f"{checks[-1][0]:>16}: {checks[-1][2]} from autograd, {checks[-1][3]} from finite differences")

    # 2. Sound to tokens. A file is a word: boundary tokens precede it, and one follows it.
    encoded = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=args.codes)
    spec, boundary = encoded.spec, args.codes
    print(encoded.sides.summary)
    x, y = windows([codes[0] for codes in encoded.training], args.context, boundary)  # (N, context), (N,)
    held_x, held_y = windows([codes[0] for codes in encoded.held_out], args.context, boundary)
    held_x, held_y = held_x[held_y != boundary], held_y[held_y != boundary]  # the counted models predict no boundary

    # 3. Train the same network twice, from the same weights and on the same batches: once by hand, once with autograd.
    #    Do so in float64 and in float32, to see whether the difference between the two is rounding.
    curves = {}
    for dtype in (torch.float64, torch.float32):
        by_hand, reference = (MLPByHand(args.codes + 1, args.context, DIM, HIDDEN, dtype=dtype) for _ in range(2))
        parameters = [p.requires_grad_() for p in reference.parameters.values()]
        batches, curves[dtype] = torch.Generator().manual_seed(0), []
        for step in range(steps):
            rows = torch.randint(len(x), (BATCH,), generator=batches)
            learning_rate = 0.5 if step < 0.6 * steps else 0.05

            loss = by_hand.loss(x[rows], y[rows])
            by_hand.backward()
            by_hand.step(learning_rate)

            reference_loss = autograd_loss(reference.parameters, x[rows], y[rows])
            gradients = torch.autograd.grad(reference_loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= learning_rate * gradient
            curves[dtype].append((loss.item(), reference_loss.item()))
            if step % max(1, steps // 4) == 0 or step == steps - 1:
                print(f"{str(dtype)[6:]} step {step:5d}: loss {loss:.6f} by hand, {reference_loss:.6f} by autograd")
    apart = {dtype: [abs(ours - theirs) for ours, theirs in curve] for dtype, curve in curves.items()}
    print(
        "largest difference between the two losses: "
        + ", ".join(f"{max(a):.0e} nats in {str(dtype)[6:]}" for dtype, a in apart.items())
    )
    rounding = max(apart[torch.float64]) < 1e-3 * max(apart[torch.float32])

    # 4. Evaluate. Batch norm uses the mean and variance of the training files, so that each row is scored by itself.
    bits = baselines(spec, encoded.training, encoded.held_out)
    counted = min(bits.values())
    with torch.no_grad():
        for name, model in (("trained by hand", by_hand), ("trained by autograd", reference)):
            bits[name] = model.nll(held_x, held_y, model.statistics(x)) / math.log(2)
    for name, loss in bits.items():
        print(f"{name:>20}: {loss:.3f} bits per token on held-out files")
    statistics = by_hand.statistics(x)
    known = by_hand.nll(x[y != boundary], y[y != boundary], statistics) / math.log(2)
    verdict = (
        "Losses are on held-out files. The model spends some probability on the end of a file, which the counted "
        f"models can't predict; that counts against it. On its training files it needs {known:.3f} bits per token. "
    )
    if bits["trained by hand"] > counted:
        verdict += (
            "Counting does better on held-out files: the model has memorised its training files. Use more recordings "
            "or fewer steps."
            if known < counted
            else "Counting does better: the model was not trained for long enough."
        )
    print(verdict)

    # 5. Sounds: held-out files, encoded as tokens and decoded; and samples from the model.
    sounds = []
    for i in range(min(3, len(encoded.held_out))):
        sounds.append(
            (f"held-out-{i}.wav", encoded.held_out.names[i], "held-out file, round trip", encoded.held_out[i])
        )
    for seed in range(3):
        codes = drawn(by_hand, statistics, boundary, math.ceil(args.seconds * spec.frame_rate), seed)
        sounds.append((f"drawn-{seed}.wav", f"Sample {seed}", "from the model trained by hand", codes[None]))
    clips = []
    for file, title, kind, codes in sounds:
        with torch.inference_mode():
            write_audio(args.out / file, encoded.frontend.decode(codes[None])[0], spec.sample_rate)
        clips.append(Clip(args.out / file, title, kind))

    # 6. The page.
    some = torch.cat([codes[0] for codes in encoded.held_out])[:40]  # codes for the pictures of gradients
    vectors = by_hand.parameters["embedding"][some][None]  # (1, S, DIM)
    before = MLPByHand(args.codes + 1, args.context, DIM, HIDDEN)
    loudness = encoded.frontend.quantizer.decode(torch.arange(args.codes)[None, None])[0].mean(dim=0)
    order = torch.cat([loudness.argsort(), torch.tensor([boundary])])
    milliseconds = 1000 / spec.frame_rate
    reach = 1 + sum(DILATIONS)
    page = write_lesson(
        __file__,
        args,
        section(
            "Every operation, checked",
            text(
                "The largest difference in any gradient, relative to the operation's largest gradient, in float64: "
                "from autograd through torch's own layers; and from the finite difference (f(x + h) - f(x - h)) / 2h, "
                "which needs no calculus but loses about half of the digits to rounding.",
                NOTATION,
            ),
            table(["operation", "gradient passed back", "from autograd", "from finite differences"], checks),
        ),
        section(
            "Learning without autograd",
            text(
                f"{encoded.sides.summary}. {spec.frame_rate:.1f} tokens per second, each one of {spec.codebook_size}; "
                f"the model sees the last {args.context} tokens ({args.context * milliseconds:.0f} ms)."
            ),
            picture(
                training_picture(curves, apart),
                "Loss curves by hand and by autograd, and their difference",
                "Left: both loss curves. Right: their largest difference in every hundredth of the training. The two "
                "add numbers in different orders, so the last digits may differ."
                + (
                    " In float64 the difference is less than a thousandth of that in float32: it is rounding, not an "
                    "error in a formula."
                    if rounding
                    else ""
                ),
            ),
        ),
        section(
            "How good",
            table(
                ["model", "bits per token", "bits per second"],
                [[name, loss, loss * spec.frame_rate] for name, loss in bits.items()],
                main_row=list(bits).index("trained by hand"),
            ),
            text(verdict),
        ),
        section(
            "The first gradient",
            picture(
                logits_picture(
                    [("before training", before, before.statistics(x)), ("after", by_hand, statistics)],
                    held_x[:48],
                    held_y[:48],
                    order,
                    milliseconds,
                ),
                "Gradients of the logits over time, before and after training",
                "Probabilities minus one-hot, one column for each held-out slice. Training raises the logits of blue "
                "cells, the code that came, and lowers those of red cells, codes that were likely and did not come. A "
                "column sums to zero. Before training, the red part is spread over all codes, too thin to see. After "
                "it, a pale column was predicted well and teaches little; one with a dark cell of each colour was a "
                "surprise.",
            ),
        ),
        section(
            "Back through time",
            picture(
                time_picture(vectors, milliseconds),
                "Size of the gradient at each layer and moment",
                f"{len(DILATIONS)} untrained WaveNet layers. The gradient of the last step only, at the top, is passed "
                "down. Each layer passes it on through its two taps, so the number of steps that it reaches doubles, "
                f"to {reach} steps or {reach * milliseconds:.0f} ms. White is exactly zero. The column at 0 ms stays "
                "dark in every row, since the residual connection around a layer passes the gradient on unchanged; "
                "gradients that passed through many gates are fainter.",
            ),
        ),
        section(
            "Back through attention",
            picture(
                attention_picture(vectors, milliseconds),
                "Attention, the gradient of its weights, and that of its scores",
                "Queries, keys and values are the embeddings learned above; the loss is the squared distance between "
                "the output of a step and the embedding of the next code. Left: the attention weights. Middle: their "
                "gradient; more attention to a red cell would raise the loss, to a blue cell lower it. Right: the "
                "gradient of the scores: that of the weights minus its weighted mean over the row, times the weight. "
                "Each row sums to zero, and a cell with almost no attention gets almost no gradient.",
            ),
        ),
        section(
            "How it sounds",
            text(
                "Where the model draws a boundary, the sample continues with the start of a new file. The model sees "
                f"the last {args.context * milliseconds:.0f} ms, so it can't plan anything longer."
            ),
            grid(clip_cards(clips)),
        ),
    )
    print(f"open {page}")


def autograd_loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Compute the loss of MLPByHand's network with torch's own layers.

    Args:
        p: parameters by name.
        x: (N, context), codes.
        y: (N,), the codes that follow.
    """
    hidden = F.linear(F.embedding(x, p["embedding"]).flatten(1), p["hidden_weight"])
    hidden = F.batch_norm(hidden, None, None, p["gain"], p["bias"], training=True).tanh()
    return F.cross_entropy(F.linear(hidden, p["out_weight"], p["out_bias"]), y)


def drawn(model: MLPByHand, statistics: tuple[Tensor, Tensor], boundary: int, length: int, seed: int) -> Tensor:
    """Draw `length` codes; where the model draws a boundary, start again without context.

    Draws at most 2 * length tokens, so the result is shorter if more than half of them are boundaries.

    Args:
        model: the model.
        statistics: mean and variance for batch norm.
        boundary: the token at both ends of a file.
        length: number of codes.
        seed: seed of the random numbers.

    Returns:
        (length,) or shorter.
    """
    codes, context = [], [boundary] * model.context
    for u in uniforms([seed], 0, 2 * length, 1)[0, :, 0]:
        code = int(draw(model.logits(torch.tensor([context]), statistics)[0], Sampling(), u))
        context = [*context[1:], code] if code != boundary else [boundary] * model.context
        codes += [code] if code != boundary else []
    return torch.tensor(codes[:length])


def training_picture(curves: dict, apart: dict) -> Figure:
    """Plot both loss curves in float32, and their differences.

    Args:
        curves: dtype -> a list over steps of the losses by hand and by autograd, in nats.
        apart: dtype -> their differences.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    size = max(1, len(apart[torch.float32]) // 100)  # steps per point

    def groups(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[: len(values) // size * size].view(-1, size)

    ours, theirs = (groups(curve).mean(dim=1) / math.log(2) for curve in zip(*curves[torch.float32], strict=True))
    steps = torch.arange(len(ours)) * size
    left.plot(steps, ours, lw=5, color="#9ecae1", label="by hand")
    left.plot(steps, theirs, "--", lw=1.5, color="#08306b", label="by autograd")
    left.set(xlabel="step", ylabel="training loss, bits per token")
    for dtype, differences in apart.items():
        right.semilogy(steps, groups(differences).amax(dim=1), label=str(dtype)[6:])
    right.set(xlabel="step", ylabel="|by hand - by autograd|, nats")
    for axes in (left, right):
        axes.legend()
    return figure


def logits_picture(models: list, x: Tensor, y: Tensor, order: Tensor, milliseconds: float) -> Figure:
    """Plot the gradients of the logits over time.

    Args:
        models: tuples of a name, a model, and its statistics for batch norm.
        x: (N, context), codes.
        y: (N,), the codes that follow.
        order: (V,), codes from the bottom of the picture to the top.
        milliseconds: duration of a token.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (name, model, statistics) in zip(figure.subplots(1, 2, sharey=True), models, strict=True):
        _, saved = b.cross_entropy(model.logits(x, statistics), y)
        gradient = len(x) * b.cross_entropy_backward(1.0, saved)[:, order]
        image = axes.imshow(
            gradient.T.numpy(),
            origin="lower",
            aspect="auto",
            cmap="RdBu_r",
            vmin=-0.5,
            vmax=0.5,
            interpolation="nearest",
            extent=(0, len(x) * milliseconds, 0, len(order)),
        )
        axes.set(title=name, xlabel="ms", ylabel="code, quiet to loud" if name == "before training" else "")
    figure.colorbar(image, ax=figure.axes, label="dL/dlogit of one step", extend="both")
    return figure


def time_picture(x: Tensor, milliseconds: float) -> Figure:
    """Plot the size of the gradient at each step of each of some WaveNet layers with random weights.

    The gradient starts as noise at the last step of the output, and as zero at all others.

    Args:
        x: (1, S, D), input of the lowest layer.
        milliseconds: duration of a token.
    """
    S, D, saves = x.shape[1], x.shape[2], []
    torch.manual_seed(1)
    for dilation in DILATIONS:
        scale = 1 / math.sqrt(2 * D)
        (x, _), saved = b.wavenet_layer(
            x, scale * torch.randn(2, 2 * D, D), torch.zeros(2 * D), scale * torch.randn(D, D), torch.zeros(D), dilation
        )
        saves.append(saved)
    dx = torch.zeros_like(x)
    dx[0, -1] = torch.randn(D)
    rows = [dx[0].norm(dim=1)]
    for saved in reversed(saves):
        dx = b.wavenet_layer_backward((dx, torch.zeros_like(dx)), saved)[0]
        rows.append(dx[0].norm(dim=1))
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots()
    sizes = torch.stack(rows)
    image = axes.imshow(
        sizes.where(sizes > 0, torch.nan).numpy(),
        aspect="auto",
        cmap="YlGnBu",
        norm=LogNorm(),
        interpolation="nearest",
        extent=((0.5 - S) * milliseconds, 0.5 * milliseconds, len(rows), 0),
    )
    axes.set(
        xlabel="ms, relative to the last step",
        yticks=[i + 0.5 for i in range(len(rows))],
        yticklabels=["output", *(f"below dilation {d}" for d in reversed(DILATIONS))],
    )
    figure.colorbar(image, label="|dL/dx|")
    return figure


def attention_picture(x: Tensor, milliseconds: float) -> Figure:
    """Plot attention weights over vectors (1, S, D), and the gradients of the weights and of the scores."""
    q, target = x[:, None, :-1], x[:, None, 1:]  # (1, 1, S - 1, D)
    y, (*_, weights) = b.causal_attention(q, q, q)
    dweights = ((y - target) @ q.mT).tril()  # L = |y - target|^2 / 2, so dy = y - target
    dscores = b.softmax_backward(dweights, (weights,))
    figure, span = Figure(figsize=(10, 3.2), layout="constrained"), q.shape[2] * milliseconds
    for axes, matrix, title in zip(
        figure.subplots(1, 3, sharey=True),
        (weights, dweights, dscores),
        ("weights", "dL/d weights", "dL/d scores"),
        strict=True,
    ):
        most = float(matrix.abs().quantile(0.99))
        low, colours = (0, "Purples") if title == "weights" else (-most, "RdBu_r")
        image = axes.imshow(matrix[0, 0].numpy(), cmap=colours, vmin=low, vmax=most, extent=(0, span, span, 0))
        axes.set(title=title, xlabel="key, ms", ylabel="query, ms" if title == "weights" else "")
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
