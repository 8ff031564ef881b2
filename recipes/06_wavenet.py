"""Lesson 6: WaveNet, sound one sample at a time.

    python recipes/06_wavenet.py FOLDER [--out runs/06_wavenet] [--minutes 4]

What it teaches. A model that reads the wave itself must look far back: at 8,000 samples a second, a tenth of a second
is 800 steps. A tree gets there by fusing neighbours pair by pair, level by level. Computed for every step at once, with
what the trees of different steps have in common computed once, it is a stack of convolutions with gaps (dilations):
each layer sees twice as far as the one below it for the same work, so ten layers with gaps 1, 2, 4 ... 512 see 1,024
samples:

    layer 3, gap 4   o . . . o
    layer 2, gap 2       o . o
    layer 1, gap 1         o o      -> predicts the next sample

How it carries over to audio. It was made for audio. Samples are cut into 256 levels, finer near silence (mu-law), and
each is predicted as one of 256 classes, exactly like characters. Bits per sample then mean what they say: no front-end
throws anything away but the rounding to 256 levels. The receptive field is a time: below one period of a voice (3 to
12 ms) a model can know the colour of a sound, but not its pitch; beyond it there are syllables to be known.

What to try. Give each trial a folder of its own (--out runs/06_try). More layers or fewer (--set
backbone.num_layers=10, or backbone.dilation_cycle=5): how many bits does a shorter receptive field cost, and what is
lost from the sound first? Longer training (--minutes 60, or --resume --minutes 60 to go on): the far past pays late.
Draw with less chance: `audiogen generate runs/06_wavenet/wavenet --out drawn --temperature 0.9`
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.audio.io import write_audio
from audiogen.commands.train import train
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import encode_folder
from audiogen.evaluation.scores import held_out_score
from audiogen.generation.generate import generate
from audiogen.generation.request import Request
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.listen.html import code, link
from audiogen.models.backbones.wavenet import WaveNet
from audiogen.models.layers import CausalConv
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import require_no_run
from audiogen.utils.scripts import run_script

#: Ten layers whose gaps begin again after 2, 7 or 10 of them: equal in parameters and time, unlike in what they see.
#: The first has one layer only, as wide as makes its parameters as many.
SMALL = (
    WaveNet.Config(dim=64, residual_dim=120, num_layers=1, dilation_cycle=1),
    *(WaveNet.Config(dim=64, residual_dim=32, num_layers=10, dilation_cycle=cycle) for cycle in (2, 7, 10)),
)


@dataclass(frozen=True)
class Trained:
    """A model, its bits per held-out sample, the seconds that it was trained for, and what it made up (B, N)."""

    model: SequenceModel
    loss: float
    seconds: float
    wavs: Tensor

    @property
    def samples(self) -> int:
        return self.model.backbone.receptive_field

    @property
    def ms(self) -> float:
        return 1000 * self.samples / self.model.spec.sample_rate

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def __str__(self) -> str:
        return f"{self.samples:,} samples, {self.ms:.3g} ms"


def tree(x: Tensor, levels: list[CausalConv]) -> Tensor:
    """Fuses pairs of neighbours, then pairs of these (makemore, part 5): (B, 2 ** len(levels), D) -> (B, D)."""
    for level in levels:
        x = level.linear(x.reshape(len(x), -1, 2 * x.shape[2])).tanh()  # (B, S / 2, D): FlattenConsecutive(2)
    return x[:, 0]


def stack(x: Tensor, levels: list[CausalConv]) -> Tensor:
    """The same weights as convolutions with gaps 1, 2, 4 ...: (B, S, D) -> (B, S, D), a tree's answer at every step."""
    for level in levels:
        x = level(x)[0].tanh()
    return x


def trees(x: Tensor, levels: list[CausalConv]) -> Tensor:
    """A tree for every step that has enough past, one by one: (1, S, D) -> (1, S - 2 ** len(levels) + 1, D)."""
    return tree(x[0].unfold(0, 2 ** len(levels), 1).transpose(1, 2), levels)[None]


def periodicity(wavs: Sequence[Tensor], rate: int) -> float:
    """How much of sounds (N,) comes again after one period of a voice (60 to 400 Hz): near 0 noise, 1 a held note.

    The highest autocorrelation in windows of 40 ms, each counting by its energy.
    """
    size, lags = round(0.04 * rate), torch.arange(rate // 400, rate // 60)
    x = torch.cat([F.pad(wav, (0, max(0, size - len(wav)))).unfold(0, size, size // 2) for wav in wavs])
    x = x - x.mean(dim=1, keepdim=True)
    r = torch.fft.irfft(torch.fft.rfft(x, 2 * size).abs().square())  # (windows, size) -> (windows, lags)
    return float((r[:, lags] / (1 - lags / size)).amax(dim=1).sum() / r[:, 0].sum().clamp(min=1e-9))


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of the large model")
    parser.add_argument("--steps", type=int, default=1000, help="of training each small one")
    parser.add_argument("--resume", action="store_true", help="go on with the large model where it was stopped")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=1", help="any setting of the large model"
    )
    args = parser.parse_args()
    place = args.out / "wavenet"  # the large model's run, with a page of its own
    if not args.resume:
        require_no_run(place)
    seconds, steps, crop = (0.05, 3, 256) if args.short else (1.0, args.steps, 2048)

    # 1. The tree over eight samples, and the same weights as three convolutions: one function, computed in two orders.
    torch.manual_seed(0)
    with torch.no_grad():
        levels = [CausalConv(16, 16, kernel_size=2, dilation=2**level).double() for level in range(3)]
        x = torch.randn(1, 100, 16, dtype=torch.float64)
        apart = (trees(x, levels) - stack(x, levels)[:, 7:]).abs().max().item()
        assert apart < 1e-12
        print(f"a tree over 8 samples and convolutions with gaps 1, 2, 4: at most {apart:.1e} apart")
        levels = [CausalConv(16, 16, kernel_size=2, dilation=2**level) for level in range(10)]
        x = torch.randn(1, 1023 + 512, 16)
        began = time.perf_counter()
        by_trees = trees(x, levels)
        halfway = time.perf_counter()
        by_stack = stack(x, levels)[:, 1023:]
        done = time.perf_counter()
        assert torch.allclose(by_trees, by_stack, atol=1e-5)
    work = (
        f"{512 * 1023:,} pairs fused in {halfway - began:.3f} seconds by trees, {x.shape[1] * 10:,} in "
        f"{done - halfway:.3f} by convolutions"
    )
    print(f"512 predictions from 1,024 samples each: {work}")

    # 2. WaveNet adds gates, residuals and skips to it. The library trains one. In so little time, many steps on one
    #    crop each get further than fewer on more.
    settings = ["training.batch_size=1", "training.evaluations=8", f"training.sample_seconds={seconds}"]
    if args.short:
        settings += ["backbone.dim=16", "backbone.residual_dim=8", "training.crop_frames=256"]
    run = train(
        args.folder,
        place,
        frontend="mulaw",
        backbone="wavenet",
        resume=args.resume,
        minutes=None if args.short else args.minutes,
        steps=steps if args.short else None,
        overrides=[*settings, *args.overrides],
    )
    rate, events = run.sample_rate, read_metrics(place)
    final = [event for event in events if event["event"] == "final"][-1]
    bits = {name: counted["loss"] for name, counted in final["baselines"].items()}
    print("bits per held-out sample by counting: " + ", ".join(f"{name} {loss:.3f}" for name, loss in bits.items()))

    # All models are heard as they go on from the same held-out beginnings, a quarter of a second or half a short file.
    encoded = encode_folder(args.folder, place, place)  # what the run has encoded, with its front-end
    frontend, held_out = encoded.frontend, encoded.held_out
    given = min(rate // 4, int(np.median(held_out.num_frames)) // 2)
    prompted = [i for i in range(len(held_out)) if held_out.num_frames[i] >= 2 * given][:4]
    prompt = torch.stack([held_out[i][:, :given] for i in prompted])  # (4, 1, P)

    def judged(model: SequenceModel, loss: float, spent: float) -> Trained:
        request = Request(prompt, seeds=range(len(prompt)))
        codes = generate(model, round(seconds * rate), request).x.cpu()
        one = Trained(model, loss, spent, frontend.decode(codes)[:, 0])
        print(f"{one}: {loss:.3f} bits per held-out sample after {spent:.0f} s, {one.parameters:,} parameters")
        return one

    last_score = [event for event in events if event["event"] == "held_out"][-1]
    large = judged(run.model, final["loss"], last_score["seconds"])

    # 3. Small ones under one budget, which see ever more of the past.
    crops = encoded.crops(num_frames=crop, batch_size=1)
    small = []
    for config in SMALL:
        torch.manual_seed(0)
        model = SequenceModel(encoded.spec, WaveNet(config), Parallel(1))
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
        began = time.perf_counter()
        for step in range(steps):
            batch, _ = crops.batch(step)  # x: (1, 1, 2048)
            nats, entries = model.nll(batch)
            optimizer.zero_grad()
            (nats / entries).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * min((step + 1) / 20, 1 - step / steps)
            optimizer.step()
        spent = time.perf_counter() - began
        small.append(judged(model, held_out_score(model, held_out).loss, spent))

    # 4. How much of what they made up has a pitch?
    models = [*small, large]
    originals = [frontend.decode(held_out[i][None])[0, 0] for i in range(min(40, len(held_out)))]
    periodic = [periodicity(wavs, rate) for wavs in [originals, *(one.wavs[:, given:] for one in models)]]
    print(
        "periodicity: "
        + ", ".join(f"{value:.2f} ({name})" for name, value in zip(["held out", *models], periodic, strict=True))
    )

    # 5. The page.
    saved = ", ".join(f"{round(short.loss - long.loss, 3) + 0.0:.3f}" for short, long in itertools.pairwise(small))
    heard = [
        ("held out", [frontend.decode(held_out[i][None])[0, 0] for i in prompted]),
        *((f"{one}", one.wavs) for one in models),
    ]
    clips = []
    for number, (name, wavs) in enumerate(heard):
        for i, wav in list(zip(prompted, wavs, strict=True))[:2]:
            path = args.out / f"{number}-{i}.wav"
            write_audio(path, wav[None], rate)
            clips.append(Clip(path, name, notes=[held_out.names[i]], prompt_seconds=given / rate))
    page = write_lesson(
        __file__,
        args.out / "index.html",
        text(f"{encoded.sides.summary}; {rate:,} samples a second."),
        section(
            "A tree, and the same tree at every step",
            picture(
                draw_trees(),
                "A tree over eight samples, and a stack of dilated convolutions that holds it",
                "Left: a tree fuses eight samples pair by pair. Right: convolutions with gaps 1, 2 and 4 do "
                "every step's tree at once. The trees of the last step (blue) and of four steps before "
                "(orange) share the nodes in black, which are computed once.",
            ),
            text(
                "With the same weights, the same at all nodes of a level, the two are one function, computed in "
                f"two orders: in float64 they differ by at most {apart:.1e}, at the last step and at every other "
                "that has eight samples behind it. What the convolutions save is work: a tree over n samples "
                "fuses n - 1 pairs for each prediction, the stack log2 n for each step. 512 predictions from "
                f"1,024 samples each took {work}. Generating saves in the same way: a layer keeps its past "
                "results, and a new sample costs one node a layer."
            ),
        ),
        section(
            "What WaveNet adds",
            text(
                "Where the tree has a tanh, a layer of WaveNet has a gate: the tanh of one convolution says what, "
                "the sigmoid of another, from 0 to 1, how much of it. The layer's input goes around it and is "
                "added to what comes out (the residual), so that a layer only has to say what is to be changed, "
                "and a gradient reaches the lowest one undiminished. And each gate's output goes straight to the "
                "top as well (the skip), so that what is seen near and what is seen far are weighed together. "
                "(Here the input itself goes there too, by a gain that begins at 0: the bigram is a part of it.)"
            ),
            code(
                "z = tanh(conv(x)) * sigmoid(conv'(x))     both look at t and t - gap\n"
                "x = x + residual(z)                       to the next layer\n"
                "top = relu(sum of skip(z), all layers)    to the prediction"
            ),
        ),
        section(
            "What the past is worth",
            text(
                f"The small models were trained for {steps:,} steps on the same crops. Three have ten layers and "
                "differ only in their gaps, which double from 1 on and begin again after 2, 7 or 10 layers. "
                "The one that sees two samples is a single layer, wider. The large one was trained for "
                f"{large.seconds:.0f} seconds."
            ),
            picture(
                draw_worth(models, periodic, bits),
                "Bits per sample and periodicity over receptive field",
                "Left: bits per held-out sample, beside models that only count. Right: how much of the sound "
                "comes again after one period of a voice, in what the models made up and in held-out files. "
                "The star is the large model. Grey: one period of a voice.",
            ),
            table(
                [
                    "receptive field",
                    "bits per sample",
                    "bits per second",
                    "parameters",
                    "training seconds",
                    "periodicity",
                ],
                [
                    [f"{one}", one.loss, one.loss * rate, one.parameters, one.seconds, value]
                    for one, value in zip(models, periodic[1:], strict=True)
                ],
                main_row=len(models) - 1,
            ),
            text(
                f"Each longer memory saved {saved} bits a sample over the one before (below zero: it cost some). "
                "What lies far back is found late in training, and need not pay under a short budget. Ears count "
                "differently: pitch, vowels and syllables are all that they hear. Periodicity is the highest "
                "correlation of 40 ms of sound with itself, 1/400 to 1/60 s later."
            ),
        ),
        section(
            "What it sounds like",
            text(
                "All models go on from the same two held-out beginnings, marked as prompt. Look for three things, "
                "which ask for ever longer memory. Is what follows as loud as the prompt, or does noise break out "
                "at once? Does sound come and go as syllables or notes do? Are there the stripes of a pitch, as "
                "in the recordings?"
            ),
            grid(clip_cards(clips)),
        ),
        section(
            "The large model",
            text(
                f"Gaps {', '.join(str(gate.dilation) for gate in run.model.backbone.gates)}: 1 + their sum is "
                f"{large.samples:,} samples. Its own page has its curves, more of what it made up, and a "
                "recording that it goes on from:"
            ),
            link("wavenet/index.html"),
        ),
    )
    print(f"open {page}")


def draw_trees() -> Figure:
    """A node of level l at step t is made of those of the level below at t and t - 2 ** (l - 1)."""
    levels, steps = range(4), 13

    def nodes(t: int) -> set[tuple[int, int]]:
        return {(level, t - i * 2**level) for level in levels for i in range(2 ** (3 - level))}

    every = {(level, t) for level in levels for t in range(2**level - 1, steps)}
    last, before = nodes(steps - 1), nodes(steps - 5)
    panels = {
        "a tree": [(last, "tab:blue")],
        "convolutions with gaps 1, 2, 4": [
            (every, "lightgrey"),
            (before, "tab:orange"),
            (last, "tab:blue"),
            (last & before, "black"),
        ],
    }
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for ax, (title, layers) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for shown, colour in layers:
            for level, t in shown:
                for below in {(level - 1, t), (level - 1, t - 2 ** (level - 1))} & shown if level else ():
                    ax.plot((below[1], t), (below[0], level), color=colour, linewidth=1, zorder=1)
            ax.scatter([t for _, t in shown], [level for level, _ in shown], color=colour, s=45, zorder=2)
        ax.set(
            title=title,
            xlabel="step",
            xlim=(-0.7, steps - 0.3),
            yticks=levels,
            yticklabels=["samples", "level 1", "level 2", "level 3"],
        )
    return figure


def draw_worth(models: list[Trained], periodic: list[float], bits: dict[str, float]) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    ms = [one.ms for one in models]
    for ax, values, label in (
        (axes[0], [one.loss for one in models], "bits per held-out sample"),
        (axes[1], periodic[1:], "periodicity"),
    ):
        ax.axvspan(3, 12, color="0.92")
        ax.plot(ms[:-1], values[:-1], "o-")
        ax.plot(ms[-1], values[-1], "*", markersize=14)
        ax.set(xscale="log", xlabel="receptive field, ms", ylabel=label)
    for name, style in (("unigram", ":"), ("bigram", "--")):
        axes[0].axhline(bits[name], color="grey", linestyle=style, label=f"{name}, counted: {bits[name]:.3f}")
    axes[0].legend()
    axes[1].axhline(periodic[0], color="grey", linestyle="--", label=f"held-out files: {periodic[0]:.2f}")
    axes[1].set(ylim=(0, 1))
    axes[1].legend()
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
