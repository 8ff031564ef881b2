"""Lesson 6: WaveNet. How to predict sound one sample at a time.

    python recipes/06_wavenet.py FOLDER [--out runs/06_wavenet] [--minutes 4]

What it teaches. A model that reads the waveform itself needs a long context: at 8,000 samples a second, a tenth of a
second is 800 steps. A tree gets there by merging neighbours pair by pair, level by level. The trees of different steps
have nodes in common. Computing the trees of all steps at once, and each common node only once, gives a stack of dilated
convolutions: each layer sees twice as far as the one below it for the same work, so ten layers with dilations 1, 2, 4
... 512 see 1,024 samples:

    layer 3, dilation 4   o . . . o
    layer 2, dilation 2       o . o
    layer 1, dilation 1         o o      -> predicts the next sample

How it carries over to audio. WaveNet was made for audio. Samples are quantized to 256 levels, finer near silence
(mu-law), and each is predicted as one of 256 classes, exactly like characters. Bits per sample then measure the whole
signal, since the front-end loses nothing but the rounding to 256 levels. The receptive field is a duration: if it is
shorter than one period of a voice (3 to 12 ms), a model can learn the timbre of a sound but not its pitch; with a
longer one it can also learn pitch, and then syllables.

What to try. Use a separate folder for each experiment (--out runs/06_try). Use more or fewer layers (--set
backbone.num_layers=10, or backbone.dilation_cycle=5): how many bits does a shorter receptive field cost, and what does
the sound lose first? Train for longer (--minutes 60, or --resume --minutes 60 to continue): a long context pays off
late. Sample at a lower temperature: `audiogen generate runs/06_wavenet/wavenet --out drawn --temperature 0.9`
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
from audiogen.listen import Clip, clip_slider, picture, section, table, text
from audiogen.listen.html import code, link
from audiogen.models.backbones.wavenet import WaveNet
from audiogen.models.layers import CausalConv
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import require_no_run
from audiogen.utils.scripts import run_script

#: Three models of ten layers, whose dilations start again at 1 after 2, 7 or 10 layers: they have the same number of
#: parameters and take the same time, but have different receptive fields. The first model is a single layer, wide
#: enough for about as many parameters.
SMALL = (
    WaveNet.Config(dim=64, residual_dim=120, num_layers=1, dilation_cycle=1),
    *(WaveNet.Config(dim=64, residual_dim=32, num_layers=10, dilation_cycle=cycle) for cycle in (2, 7, 10)),
)


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: the model.
        loss: bits per held-out sample.
        seconds: training time.
        wavs: (B, N), generated sounds, each starting with its prompt.
    """

    model: SequenceModel
    loss: float
    seconds: float
    wavs: Tensor

    @property
    def samples(self) -> int:
        """Receptive field in samples."""
        return self.model.backbone.receptive_field

    @property
    def ms(self) -> float:
        """Receptive field in milliseconds."""
        return 1000 * self.samples / self.model.spec.sample_rate

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def __str__(self) -> str:
        return f"{self.samples:,} samples, {self.ms:.3g} ms"


def tree(x: Tensor, levels: list[CausalConv]) -> Tensor:
    """Merge pairs of neighbours, then pairs of the results (makemore, part 5): (B, 2 ** len(levels), D) -> (B, D)."""
    for level in levels:
        x = level.linear(x.reshape(len(x), -1, 2 * x.shape[2])).tanh()  # (B, S / 2, D): FlattenConsecutive(2)
    return x[:, 0]


def stack(x: Tensor, levels: list[CausalConv]) -> Tensor:
    """Compute the tree of every step by convolutions with dilations 1, 2, 4 ...: (B, S, D) -> (B, S, D)."""
    for level in levels:
        x = level(x)[0].tanh()
    return x


def trees(x: Tensor, levels: list[CausalConv]) -> Tensor:
    """Compute a separate tree for every step with enough past: (1, S, D) -> (1, S - 2 ** len(levels) + 1, D)."""
    return tree(x[0].unfold(0, 2 ** len(levels), 1).transpose(1, 2), levels)[None]


def periodicity(wavs: Sequence[Tensor], rate: int) -> float:
    """Measure how strongly sounds (N,) repeat after one period of a voice (60 to 400 Hz).

    This is the highest autocorrelation in windows of 40 ms, averaged with the energy of each window as its weight.

    Returns:
        Near 0 for noise, 1 for a sustained note.
    """
    size, lags = round(0.04 * rate), torch.arange(rate // 400, rate // 60)
    x = torch.cat([F.pad(wav, (0, max(0, size - len(wav)))).unfold(0, size, size // 2) for wav in wavs])
    x = x - x.mean(dim=1, keepdim=True)
    r = torch.fft.irfft(torch.fft.rfft(x, 2 * size).abs().square())  # (windows, size) -> (windows, lags)
    return float((r[:, lags] / (1 - lags / size)).amax(dim=1).sum() / r[:, 0].sum().clamp(min=1e-9))


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of the large model")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each small model")
    parser.add_argument("--resume", action="store_true", help="continue training the large model")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=1", help="a setting of the large model"
    )
    args = parser.parse_args()
    place = args.out / "wavenet"  # run folder of the large model, with its own page
    if not args.resume:
        require_no_run(place)
    seconds, steps, crop = (0.05, 3, 256) if args.short else (1.0, args.steps, 2048)

    # 1. A tree and convolutions: over eight samples and with the same weights, one function computed in two orders.
    torch.manual_seed(0)
    with torch.no_grad():
        levels = [CausalConv(16, 16, kernel_size=2, dilation=2**level).double() for level in range(3)]
        x = torch.randn(1, 100, 16, dtype=torch.float64)
        apart = (trees(x, levels) - stack(x, levels)[:, 7:]).abs().max().item()
        assert apart < 1e-12
        print(f"a tree over 8 samples and convolutions with dilations 1, 2, 4 differ by at most {apart:.1e}")
        levels = [CausalConv(16, 16, kernel_size=2, dilation=2**level) for level in range(10)]
        x = torch.randn(1, 1023 + 512, 16)
        began = time.perf_counter()
        by_trees = trees(x, levels)
        halfway = time.perf_counter()
        by_stack = stack(x, levels)[:, 1023:]
        done = time.perf_counter()
        assert torch.allclose(by_trees, by_stack, atol=1e-5)
    work = (
        f"{512 * 1023:,} merges in {halfway - began:.3f} seconds by trees, {x.shape[1] * 10:,} in "
        f"{done - halfway:.3f} seconds by convolutions"
    )
    print(f"512 predictions from 1,024 samples each: {work}")

    # 2. WaveNet adds gates, residuals and skips. Train one with the library. In so short a time, many steps on one crop
    #    each reach a lower loss than fewer steps on more crops.
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
    print("counted, bits per held-out sample: " + ", ".join(f"{name} {loss:.3f}" for name, loss in bits.items()))

    # All models continue the same held-out prompts: the first quarter of a second of a file, or half of a short file.
    encoded = encode_folder(args.folder, place, place)  # the codes and the front-end of the run
    frontend, held_out = encoded.frontend, encoded.held_out
    given = min(rate // 4, int(np.median(held_out.num_frames)) // 2)
    prompted = [i for i in range(len(held_out)) if held_out.num_frames[i] >= 2 * given][:4]
    prompt = torch.stack([held_out[i][:, :given] for i in prompted])  # (4, 1, P)

    def with_sounds(model: SequenceModel, loss: float, spent: float) -> Trained:
        request = Request(prompt, seeds=range(len(prompt)))
        codes = generate(model, round(seconds * rate), request).x.cpu()
        one = Trained(model, loss, spent, frontend.decode(codes)[:, 0])
        print(f"{one}: {loss:.3f} bits per held-out sample after {spent:.0f} s, {one.parameters:,} parameters")
        return one

    last_score = [event for event in events if event["event"] == "held_out"][-1]
    large = with_sounds(run.model, final["loss"], last_score["seconds"])

    # 3. Longer and longer receptive fields: small models, trained for the same number of steps.
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
        small.append(with_sounds(model, held_out_score(model, held_out).loss, spent))

    # 4. How much of the generated sound has a pitch?
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
        *((f"{one}", one.wavs) for one in models),
        ("the recordings", [frontend.decode(held_out[i][None])[0, 0] for i in prompted]),
    ]
    clips: dict[str, list[Clip]] = {name: [] for name, _ in heard}
    for number, (name, wavs) in enumerate(heard):
        for i, wav in list(zip(prompted, wavs, strict=True))[:2]:
            path = args.out / f"{number}-{i}.wav"
            write_audio(path, wav[None], rate)
            clips[name].append(Clip(path, name, notes=[held_out.names[i]], prompt_seconds=given / rate))
    page = write_lesson(
        __file__,
        args,
        text(f"{encoded.sides.summary}; {rate:,} samples per second."),
        section(
            "A tree, and the same tree at every step",
            picture(
                draw_trees(),
                "A tree over eight samples, and a stack of dilated convolutions that contains it",
                "Left: a tree merges eight samples pair by pair. Right: convolutions with dilations 1, 2 and 4 compute "
                "the tree of every step at once. The trees of the last step (blue) and of the fourth step before it "
                "(orange) share the black nodes, which are computed once.",
            ),
            text(
                "All nodes of a level have the same weights. With equal weights, tree and convolutions are one "
                f"function, computed in two orders: in float64 they differ by at most {apart:.1e} at every step that "
                "has enough past. The convolutions save work: a tree over n samples needs n - 1 merges for each "
                "prediction, the stack log2 n for each step. 512 predictions from 1,024 samples each took "
                f"{work}. Generation saves work in the same way: each layer keeps its past results, so a new sample "
                "costs one node per layer."
            ),
        ),
        section(
            "What WaveNet adds",
            text(
                "Where the tree has a tanh, a WaveNet layer has a gated unit: the tanh of one convolution, times the "
                "sigmoid of another, which scales it by 0 to 1. The layer's input is added to its output (the "
                "residual connection), so a layer only has to compute a change, and gradients reach the lowest layer "
                "undiminished. The output of each gate also goes straight to the top (the skip connection), so the "
                "prediction combines short and long contexts. (Here the embedded input goes there as well, scaled by a "
                "gain that starts at 0, so the model contains a bigram.)"
            ),
            code(
                "z = tanh(conv(x)) * sigmoid(conv'(x))     both see steps t and t - dilation\n"
                "x = x + residual(z)                       to the next layer\n"
                "top = relu(sum of skip(z), all layers)    to the prediction"
            ),
        ),
        section(
            "What a long context is worth",
            text(
                f"The small models were trained for {steps:,} steps on the same crops. Three of them have ten layers "
                "and differ only in their dilations, which double from 1 on and start again after 2, 7 or 10 layers. "
                "The one that sees two samples is a single, wider layer. The large model was trained for "
                f"{large.seconds:.0f} seconds."
            ),
            picture(
                draw_worth(models, periodic, bits),
                "Bits per sample and periodicity over receptive field",
                "Left: bits per held-out sample, with counted models. Right: periodicity of generated sound and of "
                "held-out files. The star is the large model. The grey band is one period of a voice.",
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
                f"From each small model to the next, the longer receptive field saved {saved} bits per sample (a "
                "negative number is a loss). Models learn to use a distant past late, so a long receptive field need "
                "not pay off after a short training. Listeners weigh errors differently: what they notice is pitch, "
                "vowels and syllables. Periodicity is the highest correlation of 40 ms of sound with the same sound "
                "1/400 to 1/60 s later."
            ),
        ),
        section(
            "What it sounds like",
            text(
                "All models continue the same two held-out prompts; the last position of the slider is the recordings. "
                "Check three things. Is the continuation as loud as the prompt, or does noise break out at once? Do "
                "the spectrograms show the stripes of a pitch, as those of the recordings do? Does sound come and go "
                "as syllables or notes do? The last needs the longest context."
            ),
            clip_slider("receptive field", clips, len(SMALL)),
        ),
        section(
            "The large model",
            text(
                f"Its dilations are {', '.join(str(gate.dilation) for gate in run.model.backbone.gates)}; 1 plus their "
                f"sum is its receptive field, {large.samples:,} samples. Its own page shows its loss curves, more of "
                "its samples, and a recording that it continues:"
            ),
            link("wavenet/index.html"),
        ),
        before_after=[several[0] for several in list(clips.values())[: len(models) : len(models) - 1]],
    )
    print(f"open {page}")


def draw_trees() -> Figure:
    """Plot a tree over eight samples, and the convolutions that compute it at every step.

    A node of level l at step t is computed from those of the level below at t and t - 2 ** (l - 1).
    """
    levels, steps = range(4), 13

    def nodes(t: int) -> set[tuple[int, int]]:
        return {(level, t - i * 2**level) for level in levels for i in range(2 ** (3 - level))}

    every = {(level, t) for level in levels for t in range(2**level - 1, steps)}
    last, before = nodes(steps - 1), nodes(steps - 5)
    panels = {
        "a tree": [(last, "tab:blue")],
        "convolutions with dilations 1, 2, 4": [
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
    """Plot loss and periodicity by receptive field.

    Args:
        models: the small models, then the large one.
        periodic: the periodicity of the held-out files, then of each model's sounds.
        bits: loss of the counted models in bits per sample, by name.
    """
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
