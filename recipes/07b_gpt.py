"""Lesson 7b: GPT on audio tokens. What do its heads attend to?

    python recipes/07b_gpt.py FOLDER [--out runs/07b_gpt] [--frontend codec] [--minutes 6]

What it teaches. With attention, each step chooses which earlier steps it uses, instead of a fixed set of taps. On
samples this is wasteful, since a second is thousands of steps. On the tokens of a codec a second is some fifty frames,
and a few hundred steps of context cover whole words and bars. After training, the page shows where each head attends,
how far back, and how many bits per code the model loses when that head is silenced.

How it carries over to audio. A neural codec produces several codes per frame, each refining the one before it (residual
vector quantization). In which order does a GPT see them? The pattern decides: "parallel" draws the K codes of a frame
at once, "flatten" draws them one after another in K times as many steps, and "delay" shifts row k by k steps, so that a
code depends on the coarser codes of its own frame for only K - 1 additional steps (MusicGen):

    parallel  0 1 2      delay  0 1 2 . .      flatten  0 . 1 . 2 .
              0 1 2             . 0 1 2 .               . 0 . 1 . 2

What to try. Use a separate folder for each experiment (--out runs/07b_try). --set pattern.kind=parallel: what happens
to the bits, and to the sound? `--frontend melvq` for tokens made from mel frames by k-means, or `--frontend encodec`
(its weights are downloaded, licence CC-BY-NC). --set backbone.num_heads=1: how much do several heads per layer help?
"""

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from audiogen.audio.io import write_audio
from audiogen.commands.train import train
from audiogen.course.attention import entropy, look_back
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import EncodedCache, Sequences
from audiogen.frontends import FRONTENDS
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.listen.html import link
from audiogen.listen.run_reader import read_folder
from audiogen.listen.selection import choose
from audiogen.listen.spectrograms import mel_power
from audiogen.models.batch import Batch
from audiogen.models.sequence_model import SequenceModel
from audiogen.runs.event_log import read_metrics
from audiogen.runs.folder import read_source
from audiogen.utils.scripts import run_script

SHORT = [
    "frontend.codebook_size=8",
    "frontend.num_codebooks=2",
    "frontend.griffin_lim_iterations=2",
    "backbone.dim=16",
    "backbone.num_layers=2",
    "backbone.num_heads=2",
    "training.crop_frames=32",
    "training.batch_size=2",
    "training.evaluations=1",
    "training.sample_seconds=0.3",
]
STRETCHES = 16  # number of crops of held-out sound to analyse


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--frontend", default="codec", help=f"{', '.join(FRONTENDS)}, or the folder of a front-end")
    parser.add_argument("--minutes", type=float, default=6.0, help="training time of the GPT")
    parser.add_argument("--resume", action="store_true", help="continue training the GPT")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=1", help="a setting of the GPT's run"
    )
    args = parser.parse_args()

    # 1. Train: with the library's own loop, as `audiogen train` does, which writes a listening page of its own.
    place = args.out / "gpt"
    how_long = {"steps": 4} if args.short else {"minutes": args.minutes}
    run = train(
        args.folder,
        place,
        frontend="melvq" if args.short else args.frontend,
        backbone="gpt",
        resume=args.resume,
        overrides=[*(SHORT if args.short else ()), *args.overrides],
        **how_long,
    )

    # 2. Held-out sound to analyse: the codes of all files concatenated, as in training, and cut into crops.
    held_out = Sequences(EncodedCache.open(read_source(place), run.frontend), run.split().held_out)
    x = stretches(held_out, run.config.training.crop_frames).to(run.model.bos.device)  # (B, K, T)
    with torch.inference_mode():
        wav = run.frontend.decode(x[:1])[0].cpu()  # what the first crop sounds like
    seconds = wav.shape[1] / run.sample_rate

    spec, model, frame_rate = run.frontend.spec, run.model, x.shape[2] / seconds
    print(
        f"\n{frame_rate:.1f} frames per second of {spec.num_codebooks} codes, each one of {spec.codebook_size}: "
        f"{spec.num_codebooks * math.log2(spec.codebook_size) * frame_rate / 1000:.2f} kbit/s without a model"
    )
    steps = model.pattern.num_steps(round(frame_rate))
    print(f"pattern {run.config.pattern}: {steps} steps for a second of sound")
    print(
        f"each layer sees {model.backbone.config.window} steps, all layers together see "
        f"{model.backbone.receptive_field}"
    )
    print(f"parameters: {sum(p.numel() for p in model.parameters()):,}")
    final = [event for event in read_metrics(place) if event["event"] == "final"][-1]
    print(
        f"held-out bits per second: {final['bits_per_second']:.0f}; counted models: "
        + ", ".join(f"{name} {counted['bits_per_second']:.0f}" for name, counted in final["baselines"].items())
    )

    # 3. Where does each head attend? How far back, and how much worse is the model without it?
    maps = attention_maps(model, x)
    _, L, H, S, _ = maps.shape
    step = seconds / x.shape[2] / model.pattern.stride  # seconds
    late = slice(S // 2, None)  # steps with a long past
    back = 1000 * step * look_back(maps)[..., late].mean(dim=(0, 3))  # (L, H) ms
    spread = (2 ** entropy(maps)[..., late]).mean(dim=(0, 3))  # (L, H) steps
    newest = maps.diagonal(dim1=3, dim2=4)[..., late].mean(dim=(0, 3))  # (L, H)
    whole = bits_per_code(model, x)
    worth = torch.tensor([[bits_per_code(model, x, (layer, head)) - whole for head in range(H)] for layer in range(L)])
    worth = worth.round(decimals=3) + 0.0  # no "-0.000"
    name = {(layer, head): f"layer {layer + 1}, head {head + 1}" for layer in range(L) for head in range(H)}
    seen = torch.arange(1, S + 1).clamp(max=model.backbone.config.window)[late].double()  # steps in a window
    rows = [[name[at], float(back[at]), float(spread[at]), 100 * float(newest[at]), float(worth[at])] for at in name]
    for row in rows:
        print(
            "{0}: attends {1:.0f} ms back on average, to {2:.1f} effective steps; silencing it costs {4:.3f} bits per "
            "code".format(*row)
        )
    rows.append(
        [
            "equal weights over the window",
            500 * step * float((seen - 1).mean()),
            float(seen.mean()),
            100 * float((1 / seen).mean()),
            None,
        ]
    )

    # 4. Pictures: maps of some heads under the spectrogram of the first crop. x: time attended to; y: time predicted.
    chosen: dict[tuple[int, int], list[str]] = {}  # a head may be chosen for several reasons
    for why, where in (
        ("shortest look-back", back.argmin()),
        ("longest look-back", back.argmax()),
        ("fewest effective steps", spread.argmin()),
        ("costs most when silenced", worth.argmax()),
    ):
        chosen.setdefault(divmod(int(where), H), []).append(why)
    figure = Figure(figsize=(4 * len(chosen), 5.7), layout="constrained")
    axes = figure.subplots(2, len(chosen), height_ratios=(1, 3), sharex=True, squeeze=False)
    decibels = 10 * np.log10(mel_power(wav, run.sample_rate, 400, run.sample_rate / 2).numpy() + 1e-10)
    for (above, below), (at, whys) in zip(axes.T, chosen.items(), strict=True):
        above.imshow(
            decibels, aspect="auto", origin="lower", cmap="magma", extent=(0, seconds, 0, 1), vmin=decibels.max() - 80
        )
        above.set_title(f"{name[at]}:\n{', '.join(whys)}", fontsize=10)
        above.set(yticks=[])
        # Column j is the input of step j: code j - 1, and `bos` in the leftmost column.
        below.imshow(
            maps[0][at].sqrt().numpy(),
            aspect="auto",
            cmap="Blues",
            vmin=0,
            vmax=0.7,
            interpolation="nearest",
            extent=(-step, (S - 1) * step, S * step, 0),
        )
        below.set(xlabel="seconds, attended to", ylabel="seconds, predicted", xlim=(0, seconds))
        for end in (end / x.shape[2] * seconds for end in np.cumsum(held_out.num_frames) if end < x.shape[2]):
            above.axvline(end, color="white", lw=0.7, ls=":")
            below.axvline(end, color="0.6", lw=0.7, ls=":")
    every = Figure(figsize=(2.2 * H, 2.2 * L), layout="constrained")
    for at, axis in zip(name, every.subplots(L, H, squeeze=False).flat, strict=True):
        axis.imshow(maps[0][at].sqrt().numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=0.7)
        axis.set(xticks=[], yticks=[])
        axis.set_title(name[at], fontsize=8)
    scatter = Figure(figsize=(9, 4.5), layout="constrained")
    axis = scatter.subplots()
    area = 20 + 400 * (worth / worth.max().clamp(min=1e-9)).clamp(min=0)
    for layer in range(L):
        axis.scatter(back[layer], spread[layer], area[layer], alpha=0.6, label=f"layer {layer + 1}")
    axis.plot(*rows[-1][1:3], "kx", label=rows[-1][0])
    axis.set(xlabel="mean look-back, ms", ylabel="effective steps, 2 ^ entropy", xlim=(0, None), ylim=(0, None))
    axis.legend(markerscale=0.5)

    path = args.out / "held-out.wav"
    write_audio(path, wav, run.sample_rate)
    sounds = choose(read_folder(run.folder))

    # 5. The page.
    page = write_lesson(
        __file__,
        args,
        section(
            "How it sounds",
            grid(clip_cards([*sounds.pairs[:2], *sounds.generated[:2]])),
            text("The run's own page has more of its sounds, loss curves and scores:"),
            link(f"{run.folder.name}/index.html"),
        ),
        section(
            "Under the spectrogram",
            picture(
                figure,
                "Attention maps of some heads, each under the spectrogram of the same held-out sound",
                "Each row is a predicted step, from top to bottom; dark cells are the steps that it attends to (colour "
                "is the square root of the weight). Nothing lies right of the diagonal, in the future. Dotted lines "
                "are the ends of files.",
            ),
            grid(clip_cards([Clip(path, "The model's input", "held-out sound, encoded and decoded")])),
        ),
        section(
            "How far back",
            picture(
                scatter,
                "Look-back distance and entropy of each head",
                "Each dot is a head; its size is the cost of silencing it. Left: heads that attend to the most recent "
                "frames. Bottom: heads that attend to single steps. The cross is a head with equal weights over its "
                "window.",
            ),
            text(
                f"The heads attend {float(back.min()):.0f} to {float(back.max()):.0f} ms back on average, to "
                f"{float(spread.min()):.1f} to {float(spread.max()):.1f} effective steps (2 ^ entropy of the weights). "
                f"With all heads the model needs {whole:.3f} bits per code on these crops; silencing one head adds "
                f"{float(worth.min()):.3f} to {float(worth.max()):.3f}. A map shows where a head attends, not whether "
                "that matters: other heads, or the residual stream, may carry the same information."
            ),
            table(
                [
                    "head",
                    "mean look-back (ms)",
                    "effective steps",
                    "% of weight on the newest step",
                    "bits per code added by silencing it",
                ],
                rows,
            ),
        ),
        section("All heads", picture(every, "Attention maps of all heads", "Each row is a layer, the first on top.")),
    )
    print(f"open {page}")


def stretches(held_out: Sequences, num_frames: int) -> Tensor:
    """Concatenate the first held-out codes, and cut them into crops.

    Args:
        held_out: codes (K, T) of each file.
        num_frames: frames per crop.

    Returns:
        (B, K, num_frames), B <= STRETCHES; a single shorter crop if there is not enough sound.
    """
    joined, wanted = [], STRETCHES * num_frames
    for codes in held_out:
        joined.append(codes[:, :wanted])
        wanted -= joined[-1].shape[1]
        if wanted == 0:
            break
    whole = torch.cat(joined, dim=1)
    num_frames = min(num_frames, whole.shape[1])
    return whole.unfold(1, num_frames, num_frames).transpose(0, 1).contiguous()


@torch.inference_mode()
def attention_maps(model: SequenceModel, x: Tensor) -> Tensor:
    """Return the attention weights of all layers and heads while the model predicts x (B, K, T): (B, L, H, S, S)."""
    maps = []
    hooks = [
        block.attention.register_forward_pre_hook(lambda part, given: maps.append(part.weights(given[0])))
        for block in model.backbone.blocks
    ]
    model(Batch(x))
    for hook in hooks:
        hook.remove()
    return torch.stack(maps, dim=1).cpu()


@torch.inference_mode()
def bits_per_code(model: SequenceModel, x: Tensor, silent: tuple[int, int] | None = None) -> float:
    """Return the loss on x (B, K, T) in bits per code.

    Args:
        model: the model.
        x: (B, K, T).
        silent: layer and index of a head whose output is replaced by zeros; None for none.
    """

    def silence(part: torch.nn.Module, inputs: tuple[Tensor]) -> Tensor:
        found = inputs[0].unflatten(-1, (model.backbone.config.num_heads, -1)).clone()  # (B, S, H, D / H)
        found[:, :, silent[1]] = 0
        return found.flatten(2)

    hook = model.backbone.blocks[silent[0]].attention.out.register_forward_pre_hook(silence) if silent else None
    nats, entries = model.nll(Batch(x))
    if hook:
        hook.remove()
    return float(nats) / entries / math.log(2)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
