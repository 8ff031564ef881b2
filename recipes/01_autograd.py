"""Lesson 1: autograd. Which way must each weight move?

    python recipes/01_autograd.py FOLDER [--out runs/01_autograd]

What it teaches. A derivative says how much a result changes when one number is nudged. A computation of a million steps
consists of simple operations (a sum, a product, an exponential) whose derivatives are known, and the chain rule
multiplies these along the way. One backward pass from the loss gives the gradient of the loss with respect to every
weight at once. Training moves each weight a little against its gradient, again and again. Two short files of
audiogen/course, engine.py and nn.py, hold all of it: single numbers, no torch, no numpy.

How it carries over to audio. Speech is voiced (vowels, m, z: the vocal folds vibrate, and the waveform repeats) or
unvoiced (s, f, t: air hisses). A network of 33 neurons learns to tell the two apart from two features of each 40 ms of
sound: how flat its spectrum is, and how much of its power lies below 1 kHz. Neither feature measures whether the
waveform repeats; the label measures nothing else. Every later lesson trains with this same loop, with more weights and
with torch to hold them.

What to try. --learning-rate 3, then 0.01. One hidden neuron instead of sixteen (--hidden 1): on spoken digits it learns
nothing, since a relu that is off for every frame has gradient 0 and never recovers; three neurons do learn. Replace
Value.relu by Value.tanh: does the boundary bend more smoothly? Use music instead of speech: what does the network tell
apart now?
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

MAX_FRAMES = 20_000  # per side of the split; files are sorted by content hash
COLOURS = "#b2182b", "#2166ac"  # one for each kind of frame
CHECK = ["", "value", "gradient by the chain rule", "gradient by nudging"]


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--hidden", type=int, default=16, help="neurons in each of the two hidden layers")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--batch-size", type=int, default=100, help="frames per step")
    parser.add_argument("--learning-rate", type=float, default=0.3, help="initial learning rate; falls linearly to 0")
    args = parser.parse_args()
    if args.short:
        args.steps, args.batch_size = 40, 20
    index = scan(args.folder)

    # 1. One neuron, one frame, one loss. Two features x, three weights to learn, and a score: above 0 means "voiced".
    #    The loss is -log of the probability 1 / (1 + exp(-score)) that the neuron gives to the true answer, "voiced".
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
    #    Compare two gradients: by the chain rule, one backward pass for all weights; and by nudging one weight at a
    #    time (a finite difference), without any calculus.
    checks = [check(forward, weight.label, weight) for weight in (w1, w2, b)]
    for name, _, grad, slope in checks:
        print(f"gradient of the loss with respect to {name}: {grad} by the chain rule, {slope} by nudging")

    # 2. Gradient descent: move each weight a little against its gradient, and the loss falls. That is all of training.
    descent = []
    for step in range(7):
        loss = forward()
        descent.append([step, w1.data, w2.data, b.data, loss.data])
        for weight in (w1, w2, b):
            weight.grad = 0.0  # backward adds to it, so that gradients of several losses accumulate
        loss.backward()
        for weight in (w1, w2, b):
            weight.data -= 0.5 * weight.grad
    print("loss over six steps of gradient descent:", " ".join(f"{row[-1]:.3f}" for row in descent))

    # 3. Frames of sound. The label says whether the waveform repeats at the pitch of a voice. The network sees only
    #    the two features, normalised to mean 0 and deviation 1 over the training files.
    sides = split(index)
    rate = min(main_sample_rate(index), 16_000)
    x, repeats = voicing.read_frames(training_wavs(index, sides.train, rate), rate, MAX_FRAMES)
    held_x, held_repeats = voicing.read_frames(training_wavs(index, sides.held_out, rate), rate, MAX_FRAMES)
    if not len(x) or not len(held_x):
        raise DataError(
            f"{args.folder}: the training or the held-out files have no frame of 40 ms above -60 dB; add longer or "
            "louder recordings"
        )
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-9
    x, held_x = (x - mean) / deviation, (held_x - mean) / deviation
    threshold, kinds, remark = 0.5, ("voiced", "unvoiced"), ""
    if not 0.05 < np.mean(repeats > threshold) < 0.95:
        threshold, kinds = float(np.median(repeats)), ("steadier", "rougher")
        remark = (
            f"{np.mean(repeats > 0.5):.1%} of the training frames repeat: too few of one kind to ask for voiced and "
            "unvoiced. The label now says which frames repeat better than half of the training frames do."
        )
    y, held_y = np.where(repeats > threshold, 1, -1), np.where(held_repeats > threshold, 1, -1)
    if abs(y.mean()) == 1:
        raise DataError(f"{args.folder}: all {len(y)} frames repeat equally well; use a folder that contains speech")
    some = [voicing.cut(wav[0].numpy(), rate) for wav in islice(training_wavs(index, sides.held_out, rate), 20)]
    loud = np.concatenate([frames[voicing.sounding(frames)] for frames in some])
    by_period = loud[np.argsort(voicing.periodicity(loud, rate))]
    tenth = by_period[: 1 + len(loud) // 10]
    extremes = np.stack([by_period[-1], tenth[voicing.spectral_features(tenth, rate)[:, 1].argmin()]])
    counts = (
        f"{len(y):,} training frames, {np.mean(y > 0):.1%} of them {kinds[0]}; {len(held_y):,} held-out frames, "
        f"{np.mean(held_y > 0):.1%} of them {kinds[0]}.{remark and ' ' + remark}"
    )
    print(f"{sides.summary}\n{counts}")

    # 4. Training: a few frames, forward, backward, step. The same loop trains a single neuron and then the network.
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

    # 5. Is the gradient also right in the whole network? Check the four weights with the largest gradients, using the
    #    loss over a few frames.
    network, few = models["network"], batch[:20]

    def loss_of_few() -> Value:
        return sum((1 + (-labels[i] * network(points[i])).exp()).log() for i in few)

    network.zero_grad()
    loss_of_few().backward()
    steepest = sorted(enumerate(network.parameters()), key=lambda pair: -abs(pair[1].grad))[:4]
    more_checks = [check(loss_of_few, f"weight {i}", weight) for i, weight in steepest]

    # 6. Evaluate on held-out files: next to a baseline that knows only what share of frames is voiced. Frames whose
    #    correlation is close to the threshold have an uncertain label, so clear frames are also scored alone.
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
        print(f"{name:>13}: {held:.3f} nats per held-out frame, {right} right, {of_clear} of clear frames right")

    # 7. Sounds: a few held-out files in which both kinds are frequent, separated into the two by the network.
    def predict(wav: np.ndarray) -> np.ndarray:
        frames = voicing.cut(wav, rate)
        p = probabilities(network, (voicing.spectral_features(frames, rate) - mean) / deviation)
        return np.where(voicing.sounding(frames), p, np.nan)

    sounds = [wav[0, : 4 * rate].numpy() for wav in islice(training_wavs(index, sides.held_out, rate), 60)]
    sounds.sort(key=lambda wav: min(np.sum((p := predict(wav)) > 0.5), np.sum(p <= 0.5)))
    heard = np.concatenate([0.5 * wav / (np.abs(wav).max() + 1e-9) for wav in sounds[-5:]] + [np.zeros(rate // 10)])
    p = predict(heard)
    parts = {
        "Everything": heard,
        **{
            f"Predicted {kind}": voicing.let_through(heard, which, rate)
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
        args,
        section(
            "One neuron, backwards",
            text(
                "A neuron gives one voiced frame a score; the higher the score, the smaller the loss. The number at an "
                "arrow is its slope: how much the box at its head changes per unit of change in the box at its "
                "tail. Read the graph from right to left. The gradient of the loss with respect to itself is 1. The "
                "gradient of any other box is the slope of its arrow times the gradient at the arrow's head, summed "
                "over all arrows that leave the box. Where a gradient is negative, increasing that number makes the "
                "loss smaller. Shaded boxes are inputs."
            ),
            picture(graph, "The graph of the loss of one neuron, from its weights and features on the left"),
            text(
                "A gradient can be measured without any calculus: move a weight by a millionth up and down, and see "
                "how far the loss moves (a finite difference). That takes two forward passes for each weight; one "
                "backward pass gives all gradients."
            ),
            table(CHECK, checks),
            text("Six steps of gradient descent. Each step subtracts half of its gradient from each weight:"),
            table(["step", "w1", "w2", "b", "loss"], descent),
        ),
        section(
            "Frames of sound",
            text(
                f"{sides.summary}. Silence is left out. {counts}",
                f"A frame is {kinds[0]} if its waveform, shifted by some period between 1/{voicing.HIGHEST_PITCH} "
                f"and 1/{voicing.LOWEST_PITCH} s, correlates with itself by more than {threshold:.2f}. The label "
                "can't be computed from the two features: shuffle the frequencies below 1 kHz among themselves, and "
                "those above as well, and both features stay the same while the repetition is gone. The network can "
                "only learn what usually goes together"
                + (
                    ": voiced sounds are strong below 1 kHz and have spectral peaks; hisses have flat spectra or lie "
                    "above."
                    if kinds[0] == "voiced"
                    else "."
                ),
            ),
            picture(
                two_frames(extremes, rate, kinds),
                "Waveforms and spectra of a frame that repeats and of one that does not",
                "From the first held-out files, the frame that repeats most, and of the tenth that repeat least the "
                "one with most of its power above 1 kHz: the waveform, its correlation with itself after a shift by "
                "each period of a voice, and its spectrum. The label says whether a correlation exceeds the dotted "
                "line; the network sees two numbers about the spectrum, one of which compares both sides of its "
                "dotted line.",
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
                "Loss of the network by training step, compared with the held-out loss of two simpler models",
            ),
            text(
                "The chain rule against nudging once more, on the loss of a few frames: the four weights of the "
                f"trained network with the largest gradients, out of {len(network.parameters())}:"
            ),
            table(CHECK, more_checks),
        ),
        section(
            "How good",
            table(
                ["", "weights", "training loss", "held-out loss", "accuracy", "accuracy on clear frames"],
                rows,
                caption="Losses in nats per frame. A frame is clear if its correlation is more than 0.2 away from "
                "the threshold between the two kinds.",
            ),
            text(
                "The loss measures how much probability the right answer got; accuracy only counts whether it got "
                "more than one half. A bent boundary can therefore lower the loss and leave accuracy unchanged."
            ),
            picture(
                boundary(models, held_x, held_y, mean, deviation, kinds),
                "Held-out frames by their two features, over the probability that each model assigns",
                f"Each dot is a held-out frame. The background is the model's probability of {kinds[0]}; the line is "
                "where it is one half. The boundary of one neuron is always straight; the network's can bend.",
            ),
        ),
        section(
            "How it sounds",
            text(
                "The held-out files in which the network finds the most frames of both kinds, played one after "
                "another at equal peak level: everything, and with only the frames of one kind kept. The dots are "
                "the correlation that decides the label."
            ),
            picture(
                timeline(parts, p, rate, threshold, kinds[0]),
                "The waveform, the network's probability, and how well the waveform repeats",
            ),
            grid(clip_cards(clips)),
        ),
    )
    print(f"open {page}")


def check(function: Callable[[], Value], name: str, weight: Value, by: float = 1e-6) -> list[str]:
    """Compare the gradient that `backward` gave a weight with the central finite difference of `function`.

    Args:
        function: recomputes the loss from the current value of the weight.
        name: what to call the weight.
        weight: the weight, whose gradient is already computed.
        by: how far to nudge it in each direction.

    Returns:
        A row under the headings of CHECK.
    """
    grad, results = weight.grad, []
    for move in (by, -2 * by):
        weight.data += move
        results.append(function().data)
    weight.data += by
    return [name, *(f"{number:+.8f}" for number in (weight.data, grad, (results[0] - results[1]) / (2 * by)))]


def scores(model: MLP, x: np.ndarray) -> np.ndarray:
    """Return the score of each frame: features (T, 2) -> (T,)."""
    return np.array([model(point).data for point in x.tolist()])


def probabilities(model: MLP, x: np.ndarray) -> np.ndarray:
    """Return the probability that each frame is of the first kind: features (T, 2) -> (T,)."""
    return np.exp(-np.logaddexp(0, -scores(model, x)))


def judge(model: MLP, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the loss in nats per frame, and which frames are classified correctly: (T,) bool.

    Args:
        model: the classifier.
        x: (T, 2), features.
        y: (T,), 1 or -1.
    """
    margins = scores(model, x) * y
    return float(np.logaddexp(0, -margins).mean()), margins > 0


def percent(right: np.ndarray, clear: np.ndarray) -> list[str]:
    """Return the accuracy over all frames and over the clear ones, as percentages."""
    return [f"{side.mean():.1%}" if len(side) else "none" for side in (right, right[clear])]


def two_frames(frames: np.ndarray, rate: int, kinds: tuple[str, str]) -> Figure:
    """Plot the waveforms (2, size), autocorrelations and spectra of two frames, the more periodic one first."""
    figure, ms = Figure(figsize=(11, 4.2), layout="constrained"), 1000 / rate
    lags = np.arange(rate // voicing.HIGHEST_PITCH, rate // voicing.LOWEST_PITCH + 1)
    for row, frame, colour, kind in zip(figure.subplots(2, 3, sharex="col"), frames, COLOURS, kinds, strict=True):
        similar = [np.corrcoef(frame[:-lag], frame[lag:])[0, 1] for lag in lags]
        power = np.abs(np.fft.rfft(frame * np.hanning(len(frame)))) ** 2
        row[0].plot(np.arange(len(frame)) * ms, frame, color=colour)
        row[0].set(ylabel=kind)
        row[1].plot(lags * ms, similar, color=colour)
        row[1].axhline(0.5, color="black", lw=0.6, ls=":")
        row[1].set(ylim=(-1, 1.05))
        row[2].plot(np.fft.rfftfreq(len(frame), ms / 1000), 10 * np.log10(power / power.max() + 1e-7), color=colour)
        row[2].axvline(1000, color="black", lw=0.6, ls=":")
    for axes, title, label in zip(
        figure.axes[:3],
        ("waveform", "correlation with itself, shifted", "spectrum, dB"),
        ("ms", "shift, ms", "Hz"),
        strict=True,
    ):
        axes.set_title(title)
        figure.axes[figure.axes.index(axes) + 3].set_xlabel(label)
    return figure


def boundary(
    models: dict[str, MLP],
    x: np.ndarray,
    y: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    kinds: tuple[str, str],
) -> Figure:
    """Plot frames by their features, over the probability that each model assigns to every point of the plane.

    Args:
        models: two classifiers by name.
        x: (T, 2), normalised features.
        y: (T,), 1 or -1.
        mean: (2,), subtracted in the normalisation, in dB.
        deviation: (2,), divided by in the normalisation, in dB.
        kinds: names of the labels 1 and -1.
    """
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
        axes.set(title=name, xlabel="spectral flatness (dB)", ylabel="power below over above 1 kHz (dB)")
        axes.label_outer()
        axes.legend(loc="lower left", markerscale=3)
    figure.colorbar(ground, label=f"probability of {kinds[0]}")
    return figure


def timeline(parts: dict[str, np.ndarray], p: np.ndarray, rate: int, threshold: float, kind: str) -> Figure:
    """Plot waveforms, and below them the network's probability and the periodicity that decides the label.

    Args:
        parts: (N,) each, the whole waveform first.
        p: (T,), the network's probability of `kind` for each frame of the whole.
        rate: Hz.
        threshold: periodicity above which the label is `kind`.
        kind: name of the label.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for (title, wav), colour in zip(parts.items(), ("silver", *COLOURS), strict=True):
        above.plot(np.arange(len(wav)) / rate, np.where(wav == 0, np.nan, wav), color=colour, lw=0.6, label=title)
    seconds, frames = voicing.middles(len(p), rate) / rate, voicing.cut(next(iter(parts.values())), rate)
    below.plot(seconds, p, color=COLOURS[0], lw=1.2, label=f"the network's probability of {kind}")
    below.plot(seconds, voicing.periodicity(frames, rate), "k.", ms=3, label="correlation with itself one period later")
    below.axhline(threshold, color="black", lw=0.6, ls=":")
    below.set(xlabel="seconds", ylim=(-0.05, 1.05))
    for axes in (above, below):
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
