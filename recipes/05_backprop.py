"""Lesson 5: backpropagation by hand. What does loss.backward() do?

    python recipes/05_backprop.py FOLDER [--out runs/05_backprop]

What it teaches. A network is a chain of pieces, and each piece can be asked one question: if the loss changes by dy for
a small change of your output, by how much does it change for a change of your input and of your weights? The answers,
taken from the last piece to the first, are the whole of backpropagation. Here every answer is a few lines of tensor
arithmetic (audiogen/course/backward, with the derivations), autograd does nothing, and the model learns all the same.

How it carries over to audio. The model is the one of text courses, over 16 ms slices of sound in the place of letters:
a recording is a word that begins and ends with a boundary. Then come the pieces that text courses leave out: the
dilated convolution, whose gradient runs back in time through the same gaps, so that a layer's dilation is a number of
milliseconds that an error reaches into the past; layer norm; and attention, where an error says which moment should
have been listened to. Lessons 6 and 7 explain these layers: come back to the page's "Back through" after them.

What to try. Change a sign in one backward function and run again: which number of the first table betrays it, and does
the model still learn? A shorter or longer --context: how far does the held-out loss follow the training loss down?
Write the backward pass of another piece (GELU, RMS norm), and check it as the table does.
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
from audiogen.course.reference_pairs import PIECES
from audiogen.data import encode_folder
from audiogen.evaluation.scores import baselines
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.models.sampling import Sampling, draw, uniforms
from audiogen.utils.scripts import run_script

DIM, HIDDEN, BATCH = 16, 200, 64
DILATIONS = (1, 2, 4, 8, 16)
#: The pieces of audiogen/course/backward, and what comes back through each, in the signs of `SIGNS`.
GRADIENTS = {
    "cross_entropy": "probabilities minus one-hot",
    "linear": "dx = dy W,  dW = dy\N{PRIME} x",
    "tanh": "dy (1 - y²)",
    "batch_norm_steps": "line by line, from the last to the first",
    "batch_norm": "(g - mean(g) - n mean(g n)) / deviation",
    "embedding": "a sum for each code",
    "causal_conv": "a convolution of dy that looks ahead",
    "gate": "each factor gets the other one",
    "wavenet_layer": "the sum over both ways out",
    "layer_norm": "as batch norm, each row by itself",
    "softmax": "y (dy - sum(y dy))",
    "self_attention": "the transposes: a step hears from later ones",
}
SIGNS = (
    "dy is how much the loss changes for a change of the piece's output y, dx and dW the same for its input x and "
    "its weights W; ′ turns rows into columns. In the norms n is x less its mean, over its deviation, and g "
    "is dy times the gain. Each formula is derived in audiogen/course/backward."
)


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, how many typical frames")
    parser.add_argument("--context", type=int, default=8, help="tokens that the model sees")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each sample")
    args = parser.parse_args()
    steps = 40 if args.short else args.steps

    # 1. Every piece, checked: its gradient beside autograd's, and beside the slope that small steps measure.
    torch.manual_seed(0)
    checks = []
    for name, formula in GRADIENTS.items():
        twins = PIECES[name](lambda: int(torch.randint(3, 7, ())))  # every size from 3 to 6
        _, dy, ours = twins.run()
        oracles = [oracle(twins.reference, twins.inputs, dy) for oracle in (by_autograd, by_differences)]
        largest = max(float(gradient.abs().max()) for gradient in oracles[0])
        apart = [largest_difference(ours, theirs) / largest for theirs in oracles]
        checks.append([name.replace("_", " "), formula, *(f"{most:.0e}" if most else "0" for most in apart)])
        print(f"{checks[-1][0]:>16}: {checks[-1][2]} from autograd, {checks[-1][3]} from measured slopes")

    # 2. Sound to tokens. A file is a word: it begins after boundaries and ends with one.
    encoded = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=args.codes)
    spec, boundary = encoded.spec, args.codes
    print(encoded.sides.summary)
    x, y = windows([codes[0] for codes in encoded.training], args.context, boundary)  # (N, context), (N,)
    held_x, held_y = windows([codes[0] for codes in encoded.held_out], args.context, boundary)
    held_x, held_y = held_x[held_y != boundary], held_y[held_y != boundary]  # judged on what counting is judged on

    # 3. The same network twice, from the same weights, on the same batches: one learns by hand, one by autograd.
    #    First in float32, as one trains, then in float64, to see that what comes between them is rounding.
    curves = {}
    for dtype in (torch.float64, torch.float32):
        by_hand, twin = (MLPByHand(args.codes + 1, args.context, DIM, HIDDEN, dtype=dtype) for _ in range(2))
        parameters = [p.requires_grad_() for p in twin.parameters.values()]
        batches, curves[dtype] = torch.Generator().manual_seed(0), []
        for step in range(steps):
            rows = torch.randint(len(x), (BATCH,), generator=batches)
            learning_rate = 0.5 if step < 0.6 * steps else 0.05

            loss = by_hand.loss(x[rows], y[rows])
            by_hand.backward()
            by_hand.step(learning_rate)

            twin_loss = autograd_loss(twin.parameters, x[rows], y[rows])
            gradients = torch.autograd.grad(twin_loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= learning_rate * gradient
            curves[dtype].append((loss.item(), twin_loss.item()))
            if step % max(1, steps // 4) == 0 or step == steps - 1:
                print(f"{str(dtype)[6:]} step {step:5d}: loss {loss:.6f} by hand, {twin_loss:.6f} by autograd")
    apart = {dtype: [abs(ours - theirs) for ours, theirs in curve] for dtype, curve in curves.items()}
    print("farthest apart: " + ", ".join(f"{max(a):.0e} nats in {str(dtype)[6:]}" for dtype, a in apart.items()))

    # 4. How good. Batch norm takes its mean and variance from the training side, so that a row is judged by itself.
    bits = baselines(spec, encoded.training, encoded.held_out)
    counted = min(bits.values())
    with torch.no_grad():
        for name, model in (("trained by hand", by_hand), ("trained by autograd", twin)):
            bits[name] = model.nll(held_x, held_y, model.statistics(x)) / math.log(2)
    for name, loss in bits.items():
        print(f"{name:>20}: {loss:.3f} bits per token on held-out files")
    statistics = by_hand.statistics(x)
    known = by_hand.nll(x[y != boundary], y[y != boundary], statistics) / math.log(2)
    verdict = (
        f"On held-out files; the chance that the model gives to the end of a file is counted against it. On the "
        f"files that it was trained on it needs {known:.3f} bits per token. "
    )
    if bits["trained by hand"] > counted:
        verdict += (
            "Counting does better: it knows those files by heart, rather than what they have in common. More "
            "recordings would help, or fewer steps."
            if known < counted
            else "Counting does better: it was not trained for long enough."
        )
    print(verdict)

    # 5. Sounds: what was held out, through the tokens and back; and what the model makes up.
    sounds = []
    for i in range(min(3, len(encoded.held_out))):
        sounds.append(
            (f"held-out-{i}.wav", encoded.held_out.names[i], "held out, through the tokens", encoded.held_out[i])
        )
    for seed in range(3):
        codes = drawn(by_hand, statistics, boundary, math.ceil(args.seconds * spec.frame_rate), seed)
        sounds.append((f"drawn-{seed}.wav", f"Sample {seed}", "drawn, trained by hand", codes[None]))
    clips = []
    for file, title, kind, codes in sounds:
        with torch.inference_mode():
            write_audio(args.out / file, encoded.frontend.decode(codes[None])[0], spec.sample_rate)
        clips.append(Clip(args.out / file, title, kind))

    # 6. The page.
    some = torch.cat([codes[0] for codes in encoded.held_out])[:40]  # codes to look at gradients on
    vectors = by_hand.parameters["embedding"][some][None]  # (1, S, DIM)
    before = MLPByHand(args.codes + 1, args.context, DIM, HIDDEN)
    loudness = encoded.frontend.quantizer.decode(torch.arange(args.codes)[None, None])[0].mean(dim=0)
    order = torch.cat([loudness.argsort(), torch.tensor([boundary])])
    milliseconds = 1000 / spec.frame_rate
    reach = 1 + sum(DILATIONS)
    page = write_lesson(
        __file__,
        args.out / "index.html",
        section(
            "Every piece, checked",
            text(
                "The largest difference of any gradient, as a part of the piece's largest one, in float64: from "
                "autograd through torch's own layers; and from the slope (f(x + h) - f(x - h)) / 2h, which knows no "
                "calculus, but loses half of the digits to rounding.",
                SIGNS,
            ),
            table(["piece", "what comes back", "from autograd", "from slopes"], checks),
        ),
        section(
            "Learning without autograd",
            text(
                f"{encoded.sides.summary}. {spec.frame_rate:.1f} tokens per second, each one of {spec.codebook_size}; "
                f"the model sees the last {args.context} ({args.context * milliseconds:.0f} ms)."
            ),
            picture(
                training_picture(curves, apart),
                "Loss curves by hand and by autograd, and their difference",
                "Left: the two lie on each other. Right: how far apart they are, at most, in every hundredth of "
                "the training. Each sums in its own order, so last digits may differ; that the gap shrinks with "
                "the precision shows that it is rounding and nothing else.",
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
                "Probabilities minus one-hot, a column for each held-out slice. Blue is pulled up: the slice that "
                "came. Red is pushed down: what was thought likely and did not come. A column sums to zero. Before "
                "training the push is spread over all codes, too thin to see. After it, a pale column was foreseen and "
                "teaches little; one with a dark cell of each colour was a surprise.",
            ),
        ),
        section(
            "Back through time",
            picture(
                time_picture(vectors, milliseconds),
                "Size of the gradient at each layer and moment",
                f"{len(DILATIONS)} WaveNet layers, not yet trained. An error at the last step alone, at the top, goes "
                "down: each layer hands it on through its two taps, so the moments that it reaches double in number, "
                f"to {reach} steps or {reach * milliseconds:.0f} ms. White is exactly zero. The present stays dark in "
                "every row, since the sum around a layer hands the error on as it is; what came through many gates is "
                "fainter.",
            ),
        ),
        section(
            "Back through attention",
            picture(
                attention_picture(vectors, milliseconds),
                "Attention, the gradient of its weights, and that of its scores",
                "Queries, keys and values are the vectors learned above; the loss is how far a step's result lies from "
                "the vector that comes next. Left: who listened to whom. Middle: what more of each value would have "
                "cost (red) or saved (blue). Right: what reaches the scores, which is the difference to the row's mean "
                "times the attention that there was. A row sums to zero, and a step that was hardly listened to hardly "
                "learns.",
            ),
        ),
        section(
            "How it sounds",
            text(
                "Where the model draws the boundary, a sample goes on with another beginning, as if the next file "
                f"came. It remembers {args.context * milliseconds:.0f} ms, so nothing longer holds together but by "
                "chance."
            ),
            grid(clip_cards(clips)),
        ),
    )
    print(f"open {page}")


def autograd_loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The network of MLPByHand, from torch's own layers."""
    hidden = F.linear(F.embedding(x, p["embedding"]).flatten(1), p["hidden_weight"])
    hidden = F.batch_norm(hidden, None, None, p["gain"], p["bias"], training=True).tanh()
    return F.cross_entropy(F.linear(hidden, p["out_weight"], p["out_bias"]), y)


def drawn(model: MLPByHand, statistics: tuple[Tensor, Tensor], boundary: int, length: int, seed: int) -> Tensor:
    """(length,) codes; where the model ends a word, the next one begins. Gives up after as many ends as codes."""
    codes, context = [], [boundary] * model.context
    for u in uniforms([seed], 0, 2 * length, 1)[0, :, 0]:
        code = int(draw(model.logits(torch.tensor([context]), statistics)[0], Sampling(), u))
        context = [*context[1:], code] if code != boundary else [boundary] * model.context
        codes += [code] if code != boundary else []
    return torch.tensor(codes[:length])


def training_picture(curves: dict, apart: dict) -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    size = max(1, len(apart[torch.float32]) // 100)  # steps that make one point

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
    """Down through WaveNet layers with random weights: |gradient| (layers + 1, S), from an error at the last step."""
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
        xlabel="ms, the error at 0",
        yticks=[i + 0.5 for i in range(len(rows))],
        yticklabels=["the error", *(f"below dilation {d}" for d in reversed(DILATIONS))],
    )
    figure.colorbar(image, label="|dL/dx|")
    return figure


def attention_picture(x: Tensor, milliseconds: float) -> Figure:
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
        axes.set(title=title, xlabel="listened to, ms", ylabel="listening, ms" if title == "weights" else "")
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
