"""Lesson 1: autograd. Which way must each weight move?

    python recipes/01_autograd.py FOLDER [--out runs/01_autograd]

What it teaches. A derivative says how much a result moves when one number is nudged. A computation of a million steps
is made of steps whose derivative is plain (a sum, a product, an exponential), and the chain rule multiplies them along
the way. Carried backwards from the loss, one walk gives the slope of the loss by every weight at once; training is to
move each weight a little against its slope, again and again. All of it is in two short files of audiogen/course,
engine.py and nn.py: single numbers, no torch, no numpy.

How it carries over to audio. Speech is voiced (vowels, m, z: the vocal folds swing, and the sound repeats) or unvoiced
(s, f, t: air hisses). A network of 33 neurons learns to tell which from two numbers about each 40 ms of sound: how flat
its spectrum is, and how much of its power lies below 1 kHz. Neither knows whether anything repeats; the label knows
nothing else. Every later lesson trains by this very loop, with more weights, and with torch to hold them.

What to try. --learning-rate 3, then 0.01. One hidden neuron instead of sixteen (--hidden 1): on spoken digits it learns
nothing at all, since a relu that is off for every frame has slope 0 and can't come back; three do. Value.tanh in the
place of Value.relu: does the boundary bend more softly? Music instead of speech: what is left to be told apart?
"""

import random
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import trange

from audiogen.audio.io import write_audio
from audiogen.course import voicing
from audiogen.course.engine import Value
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.course.nn import MLP
from audiogen.course.plot_graph import draw
from audiogen.data import main_sample_rate, scan, split, training_wavs
from audiogen.errors import DataError, TrainingError
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.listen.charts import Line, line_chart
from audiogen.utils.scripts import run_script

MOST_FRAMES = 20_000  # of each side, whose files come in an order that their content draws
COLOURS = "#b2182b", "#2166ac"  # of the two kinds
CHECK = ["", "value", "slope by the chain rule", "slope by nudging"]


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--hidden", type=int, default=16, help="neurons in each of the two hidden layers")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=100, help="frames per step")
    parser.add_argument("--learning-rate", type=float, default=0.3, help="at first; it falls to 0 in a straight line")
    args = parser.parse_args()
    if args.short:
        args.steps, args.batch_size = 40, 20
    index = scan(args.folder)

    # 1. One neuron, one frame, one loss. Two features x, three weights to learn, and a score: above 0 says "voiced".
    #    The loss is -log of the probability 1 / (1 + exp(-score)) that the neuron gives to what is true, "voiced".
    w1, w2, b = Value(-0.5, label="w1"), Value(0.8, label="w2"), Value(0.1, label="b")
    x1, x2 = Value(1.2, label="x1"), Value(-0.4, label="x2")

    def forward() -> Value:
        score = w1 * x1 + w2 * x2 + b
        loss = (1 + (-score).exp()).log()
        score.label, loss.label = "score", "loss"
        return loss

    loss = forward()
    loss.backward()
    graph = draw(loss)
    #    The slope by the chain rule, one walk back for all; and by nudging one weight a little, without any calculus.
    checks = [check(forward, weight.label, weight) for weight in (w1, w2, b)]
    for name, _, grad, slope in checks:
        print(f"slope of the loss by {name}: {grad} by the chain rule, {slope} by nudging")

    # 2. Gradient descent: each weight a little against its slope, and the loss falls. There is no more to training.
    descent = []
    for step in range(7):
        loss = forward()
        descent.append([step, w1.data, w2.data, b.data, loss.data])
        for weight in (w1, w2, b):
            weight.grad = 0.0  # backward adds to it, so that the slopes of several losses can gather
        loss.backward()
        for weight in (w1, w2, b):
            weight.data -= 0.5 * weight.grad
    print("six steps down:", " ".join(f"{row[-1]:.3f}" for row in descent))

    # 3. Frames of sound. The label asks if the waveform repeats itself at the pitch of a voice. The network sees only
    #    the two features, shifted and scaled to mean 0 and deviation 1 over the training files.
    sides = split(index)
    rate = min(main_sample_rate(index), 16_000)
    x, repeats = voicing.read_frames(training_wavs(index, sides.train, rate), rate, MOST_FRAMES)
    held_x, held_repeats = voicing.read_frames(training_wavs(index, sides.held_out, rate), rate, MOST_FRAMES)
    if not len(x) or not len(held_x):
        raise DataError(f"{args.folder}: one side has no frame of 40 ms above -60 dB; add longer or louder recordings")
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-9
    x, held_x = (x - mean) / deviation, (held_x - mean) / deviation
    threshold, kinds, remark = 0.5, ("voiced", "unvoiced"), ""
    if not 0.05 < np.mean(repeats > threshold) < 0.95:
        threshold, kinds = float(np.median(repeats)), ("steadier", "rougher")
        remark = (
            f"Of these frames {np.mean(repeats > 0.5):.1%} repeat: too few of one kind to ask for voiced and "
            "unvoiced. The question is now which of them repeat better than half of the training frames do."
        )
    y, held_y = np.where(repeats > threshold, 1, -1), np.where(held_repeats > threshold, 1, -1)
    if abs(y.mean()) == 1:
        raise DataError(f"{args.folder}: its {len(y)} frames all repeat alike; give a folder with speech in it")
    counts = (
        f"{len(y):,} training frames, {np.mean(y > 0):.1%} of them {kinds[0]}; {len(held_y):,} held out, "
        f"{np.mean(held_y > 0):.1%}.{remark and ' ' + remark}"
    )
    print(f"{sides.summary}\n{counts}")

    # 4. Training: a few frames, forward, backward, step. The same loop for a single neuron, and last for the network.
    points, labels = x.tolist(), y.tolist()
    watched = random.Random(0).sample(range(len(held_y)), min(500, len(held_y)))
    models = {
        "one neuron": MLP(2, [1], rng=random.Random(0)),
        "network": MLP(2, [args.hidden, args.hidden, 1], Value.relu, rng=random.Random(0)),
    }
    for name, model in models.items():
        rng, batch_losses, held_losses, began = random.Random(0), [], [], time.perf_counter()
        for step in trange(args.steps, desc=name, leave=False, disable=None):
            batch = rng.sample(range(len(points)), min(args.batch_size, len(points)))
            try:
                losses = [(1 + (-labels[i] * model(points[i])).exp()).log() for i in batch]
                loss = sum(losses) / len(losses)
                model.zero_grad()
                loss.backward()
            except ArithmeticError as error:
                raise TrainingError(f"step {step} of the {name}: {error}; lower --learning-rate") from error
            for parameter in model.parameters():
                parameter.data -= args.learning_rate * (1 - step / args.steps) * parameter.grad
            batch_losses.append(loss.data)
            if step % max(1, args.steps // 40) == 0 or step == args.steps - 1:
                held_losses.append((step, judge(model, held_x[watched], held_y[watched])[0]))
        print(f"{name}: {len(model.parameters())} weights, {args.steps} steps in {time.perf_counter() - began:.0f} s")

    # 5. Is the gradient right in the whole network, too? Its loss over a few frames, and the four steepest weights.
    network, few = models["network"], batch[:20]

    def loss_of_few() -> Value:
        return sum((1 + (-labels[i] * network(points[i])).exp()).log() for i in few)

    network.zero_grad()
    loss_of_few().backward()
    steepest = sorted(enumerate(network.parameters()), key=lambda pair: -abs(pair[1].grad))[:4]
    more_checks = [check(loss_of_few, f"weight {i}", weight) for i, weight in steepest]

    # 6. Judged on held-out files, beside the guess that knows only how many frames are voiced. Frames on the brink of
    #    repeating have a label that nobody could be sure of, so the clear ones are counted by themselves as well.
    share = float(np.mean(y > 0))
    clear = np.abs(held_repeats - threshold) > 0.2
    rows = [
        [
            f"always {kinds[share < 0.5]}",
            1,
            None,
            -np.log(np.where(held_y > 0, share, 1 - share)).mean(),
            *percent((held_y > 0) == (share >= 0.5), clear),
        ]
    ]
    for name, model in models.items():
        (trained, _), (held, right) = judge(model, x[:5000], y[:5000]), judge(model, held_x, held_y)
        rows.append([name, len(model.parameters()), trained, held, *percent(right, clear)])
    for name, _, _, held, right, of_clear in rows:
        print(f"{name:>13}: {held:.3f} nats per held-out frame, {right} right, {of_clear} of the clear ones")

    # 7. Sounds: some held-out files in which both kinds occur evenly, taken apart by what the network says.
    def says(wav: np.ndarray) -> np.ndarray:
        frames = voicing.cut(wav, rate)
        p = probabilities(network, (voicing.spectral_features(frames, rate) - mean) / deviation)
        return np.where(voicing.sounding(frames), p, np.nan)

    sounds = [wav[0, : 4 * rate].numpy() for wav in islice(training_wavs(index, sides.held_out, rate), 60)]
    sounds.sort(key=lambda wav: min(np.sum((p := says(wav)) > 0.5), np.sum(p <= 0.5)))
    heard = np.concatenate([0.5 * wav / (np.abs(wav).max() + 1e-9) for wav in sounds[-5:]] + [np.zeros(rate // 10)])
    p = says(heard)
    parts = {
        "All of it": heard,
        **{
            f"What it calls {kind}": voicing.let_through(heard, which, rate)
            for kind, which in zip(kinds, (p > 0.5, p <= 0.5), strict=True)
        },
    }
    clips = []
    for title, wav in parts.items():
        path = args.out / f"{title.lower().replace(' ', '-')}.wav"
        write_audio(path, torch.from_numpy(wav), rate)
        clips.append(Clip(path, title, "held-out files"))

    # 8. The page.
    page = write_lesson(
        __file__,
        args.out / "index.html",
        section(
            "One neuron, backwards",
            text(
                "A neuron looks at one voiced frame and gives it a score; the higher, the smaller the loss. The "
                "number at an arrow is its slope: how much the box at its head moves per unit that the box at its "
                "tail does. Read from right to left: the loss moves by 1 per unit of itself, and every other "
                "gradient is the slope of the arrow times the gradient at its head. Where it is negative, more of "
                "this number makes the loss smaller. Shaded boxes are inputs."
            ),
            picture(graph, "The graph of the loss of one neuron, from its weights and features on the left"),
            text(
                "A slope can be measured without any calculus: move a weight by a millionth, and look. That takes "
                "two computations for each weight; the walk back is one for all."
            ),
            table(CHECK, checks),
            text("Six steps down, each weight moved against its slope by half of it:"),
            table(["step", "w1", "w2", "b", "loss"], descent),
        ),
        section(
            "Frames of sound",
            text(
                f"{sides.summary}. Silence is left out. {counts}",
                f"A frame is called {kinds[0]} if its waveform, moved by some period of 1/{voicing.HIGHEST_PITCH} "
                f"to 1/{voicing.LOWEST_PITCH} s, correlates with itself by more than {threshold:.2f}. No formula "
                "leads there from the two features: shuffle the frequencies below 1 kHz, and those above, and "
                "both stay what they were while all that repeats is gone. What can be learned is how the sounds "
                "are coloured: voices are strong below and have peaks, hisses are flat or lie high.",
            ),
        ),
        section(
            "Training",
            line_chart(
                [
                    Line("network, held-out frames", *zip(*held_losses, strict=True)),
                    Line("network, batches", range(args.steps), batch_losses),
                ],
                {row[0]: row[3] for row in rows[:2]},
                "training steps",
                "Nats per frame, lower is better",
                "Loss of the network by training step, beside the held-out loss of simpler answers",
            ),
            text(
                "The chain rule against nudging once more, for the four steepest weights of the trained network, "
                f"out of {len(network.parameters())}, by the loss of a few frames:"
            ),
            table(CHECK, more_checks),
        ),
        section(
            "How good",
            table(
                ["", "weights", "training loss", "held-out loss", "right", "right of the clear ones"],
                rows,
                caption="Losses in nats per frame. A frame is clear if its correlation is over 0.2 away from the "
                "line between the two kinds.",
            ),
            text(
                "The loss asks how much probability went to what was true, the percentage only which side of one "
                "half it was on. So a boundary that bends can lower the one and leave the other as it is."
            ),
            picture(
                boundary(models, held_x, held_y, mean, deviation, kinds),
                "Held-out frames by their two features, over what each model says of every place",
                "Each dot is a held-out frame; the ground is the probability that the model gives, and the "
                "line is where it is one half. One neuron can only cut straight; the network bends its line.",
            ),
        ),
        section(
            "How it sounds",
            text(
                "Held-out files in which the network finds both kinds most evenly, at one loudness, end to end: "
                "whole, and with only the frames of one kind let through. The dots are what the label goes by."
            ),
            picture(
                timeline(parts, p, rate, threshold, kinds[0]),
                "The waveform, the probability that the network gives, and how well the waveform repeats",
            ),
            grid(clip_cards(clips)),
        ),
    )
    print(f"open {page}")


def check(function: Callable[[], Value], name: str, weight: Value, by: float = 1e-6) -> list[str]:
    """A weight, the slope that `backward` gave it, and that of function() from a bit above to a bit below."""
    grad, results = weight.grad, []
    for move in (by, -2 * by):
        weight.data += move
        results.append(function().data)
    weight.data += by
    return [name, *(f"{number:+.8f}" for number in (weight.data, grad, (results[0] - results[1]) / (2 * by)))]


def scores(model: MLP, x: np.ndarray) -> np.ndarray:
    """(T, 2) -> (T,)."""
    return np.array([model(point).data for point in x.tolist()])


def probabilities(model: MLP, x: np.ndarray) -> np.ndarray:
    """(T, 2) -> (T,), of the first kind."""
    return np.exp(-np.logaddexp(0, -scores(model, x)))


def judge(model: MLP, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Nats per frame, and which frames (T,) are told right."""
    margins = scores(model, x) * y
    return float(np.logaddexp(0, -margins).mean()), margins > 0


def percent(right: np.ndarray, clear: np.ndarray) -> list[str]:
    """How many of all frames, and of the clear ones."""
    return [f"{side.mean():.1%}" if len(side) else "none" for side in (right, right[clear])]


def boundary(
    models: dict[str, MLP],
    x: np.ndarray,
    y: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    kinds: tuple[str, str],
) -> Figure:
    """Frames (T, 2) over the probability that each model gives to every place; the axes in dB."""
    few = slice(None, None, 1 + len(x) // 2500)
    x, y = x[few], y[few]
    places = np.stack(np.meshgrid(*(np.linspace(x[:, i].min() - 0.2, x[:, i].max() + 0.2, 60) for i in range(2))))
    flatness, ratio = places * deviation[:, None, None] + mean[:, None, None]  # (60, 60) each
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, 2, sharey=True), models.items(), strict=True):
        p = probabilities(model, places.reshape(2, -1).T).reshape(flatness.shape)
        ground = axes.contourf(flatness, ratio, p, np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.45)
        for value, kind, colour in zip((1, -1), kinds, COLOURS, strict=True):
            axes.scatter(*(x[y == value] * deviation + mean).T, s=4, color=colour, label=kind)
        if p.min() < 0.5 < p.max():
            axes.contour(flatness, ratio, p, [0.5], colors="black", linewidths=1.5)
        axes.set(title=name, xlabel="spectral flatness (dB)", ylabel="power below 1 kHz over above (dB)")
        axes.label_outer()
        axes.legend(loc="lower left", markerscale=3)
    figure.colorbar(ground, label=f"probability of {kinds[0]}")
    return figure


def timeline(parts: dict[str, np.ndarray], p: np.ndarray, rate: int, threshold: float, kind: str) -> Figure:
    """Waveforms, and below them what is said of their frames (T,): by the network, and by the label."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for (title, wav), colour in zip(parts.items(), ("silver", *COLOURS), strict=True):
        above.plot(np.arange(len(wav)) / rate, np.where(wav == 0, np.nan, wav), color=colour, lw=0.6, label=title)
    seconds, frames = voicing.middles(len(p), rate) / rate, voicing.cut(next(iter(parts.values())), rate)
    below.plot(seconds, p, color=COLOURS[0], lw=1.2, label=f"probability that the network gives to {kind}")
    below.plot(seconds, voicing.periodicity(frames, rate), "k.", ms=3, label="correlation with itself, a period later")
    below.axhline(threshold, color="black", lw=0.6, ls=":")
    below.set(xlabel="seconds", ylim=(-0.05, 1.05))
    for axes in (above, below):
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
