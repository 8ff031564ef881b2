"""Lesson 2: the bigram. Which sound follows which?

    python recipes/02_bigram.py FOLDER [--out runs/02_bigram]

What it teaches. The smallest language model is a table: count how often each token follows each other token, divide by
the row's sum, and the rows are distributions to draw from. Its loss, the mean of -log2 p(next | present), is the first
rung that every later model has to beat. The same table is one linear layer over one-hot inputs, and gradient descent
comes to what counting finds at once. Counting alone calls every pair that it has not met impossible, so something is
added to every count (smoothing); in the layer the same is done by weight decay, since weights of zero mean "anything
may follow".

How it carries over to audio. Text comes in characters; sound must be cut into tokens first. Every 16 ms the spectrum
is taken, in bands as ears hear them (a mel spectrogram), and the nearest of V typical spectra takes its place (k-means,
audiogen/course/kmeans.py): a recording becomes a sequence of numbers as a word is one of letters. The first section
of the page shows each step, and the way back. The bigram then knows how one 16 ms slice leads to the next, and nothing
more: samples have the right colour and no words.

What to try. More typical frames (--codes 1024): does the loss get better or worse, and why can't you compare it? How
much more smoothing does the larger table need? Another folder: music repeats more than speech, so how far below the
unigram does its bigram come?
"""

import dataclasses
import inspect
import math
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from audiogen.audio.io import write_audio
from audiogen.course.kmeans import draw_steps, nearest_to, typical_frames
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import Encoded, encode_folder, training_wavs
from audiogen.evaluation.ngram import Bigram, cross_entropy, row_entropies
from audiogen.evaluation.report import originals
from audiogen.evaluation.scores import baselines, held_out_score
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.listen.html import code
from audiogen.models.backbones import Bigram as BigramBackbone
from audiogen.models.batch import Batch
from audiogen.models.patterns import Parallel
from audiogen.models.sampling import uniforms
from audiogen.models.sequence_model import SequenceModel
from audiogen.utils.scripts import run_script


def train_table(counts: torch.Tensor, decay: float, steps: int) -> tuple[np.ndarray, list[float]]:
    """One linear layer from V inputs to V logits, trained on all pairs at once -> its table, bits per pair by step.

    The input is one-hot, so the layer's answer to token a is row a of W, and all pairs of the same two tokens have the
    same loss: instead of going through the pairs, each cell's loss counts as often as its pair occurs.
    """
    W = torch.zeros_like(counts, requires_grad=True)  # (V, V); all zero: each row is uniform
    optimizer = torch.optim.Adam([W], betas=(0.9, 0.95))
    curve = []
    for step in range(steps):
        nats = -(counts * W.log_softmax(dim=1)).sum()
        loss = nats + decay * W.square().sum()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * (1 - step / steps)
        optimizer.step()
        curve.append(nats.item() / counts.sum().item() / math.log(2))
    return W.softmax(dim=1).detach().numpy(), curve


def follow(start: np.ndarray, transitions: np.ndarray, chances: np.ndarray) -> list[int]:
    """Draws tokens: the first from `start` (V,), each next one from the row of the one before; `chances` in (0, 1)."""
    codes: list[int] = []
    for u in chances:
        cumulative = (transitions[codes[-1]] if codes else start).cumsum()
        codes.append(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")))
    return codes


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, how many typical frames")
    parser.add_argument("--steps", type=int, default=400, help="of training a table by gradient")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each sample")
    parser.add_argument("--seed", type=int, default=5, help="of the samples")
    args = parser.parse_args()
    V, steps, seconds = (16, 100, 0.5) if args.short else (args.codes, args.steps, args.seconds)
    powers = range(-6, 5, 5) if args.short else range(-12, 13)  # of two: the strengths of smoothing to try

    # 1. Sound to tokens. What is learned (the typical frames) is learned from the training files alone.
    encoded = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=V)
    frontend, spec = encoded.frontend, encoded.spec
    training, held_out = encoded.training, encoded.held_out
    print(encoded.sides.summary)
    print(f"{spec.frame_rate:.1f} tokens per second, each one of {V}")

    # 2. Count. A row of the table, divided by its sum, is what follows one token.
    counted, held = Bigram(V), Bigram(V)
    for model, sequences in ((counted, training), (held, held_out)):
        for codes in sequences:
            model.add(codes[0].numpy())
    alone = counted.with_added(0)  # (V, V)
    least = cross_entropy(counted.counts, alone)
    filled, unseen = (counted.counts > 0).mean(), held.counts[counted.counts == 0].sum() / held.counts.sum()
    print(
        f"{counted.counts.sum():,} pairs fill {filled:.1%} of {V * V:,} cells; the counted table needs {least:.4f} "
        f"bits per training pair,\nand calls {unseen:.1%} of the held-out pairs impossible"
    )

    # 3. Smooth: the same constant is added to every count, and held-out files say which one is best. A file's first
    #    token has none before it: it is the unigram's, here and in the library's baselines.
    firsts = counted.unigram.nats(codes[0, :1].numpy() for codes in held_out) / math.log(2)

    def held_out_bits(transitions: np.ndarray) -> float:
        following = held.counts.sum() * cross_entropy(held.counts, transitions)
        return float((firsts + following) / held.unigram.counts.sum())

    bits = baselines(spec, training, held_out)
    by_adding = {2.0**p: held_out_bits(counted.with_added(2.0**p)) for p in powers}
    added = min(by_adding, key=by_adding.get)
    for name, loss in bits.items():
        print(f"{name:>8}: {loss:.3f} bits per held-out token")
    print(
        f"smoothed: {by_adding[added]:.3f} with {added:g} added to every count (the bigram above falls back on the "
        f"unigram instead,\n          its strength of {counted.strength():g} chosen on the training files alone)"
    )

    # 4. The same model as one linear layer. A one-hot input picks a row of W, so W is the table of logits.
    W = torch.randn(V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    present, following = training[0][0, :-1], training[0][0, 1:]
    layer = F.cross_entropy(F.one_hot(present, V).double() @ W, following)
    assert torch.allclose(layer, -W.log_softmax(dim=1)[present, following].mean(), rtol=1e-12)
    counts = torch.from_numpy(counted.counts).double()
    learned, curve = train_table(counts, 0.0, steps)
    reached = cross_entropy(counted.counts, learned)
    apart = np.abs(learned - alone)[counted.counts.sum(axis=1) > 0].max()
    print(
        f" learned: {reached:.4f} bits per training pair after {steps} steps, {reached - least:.5f} above counting; "
        f"no probability\n          is off by more than {apart:.5f}"
    )

    # 5. Weight decay is smoothing: it pulls W to zero, which is the uniform table, as added counts pull the table.
    decayed = {2.0**p: train_table(counts, 2.0**p, steps)[0] for p in powers[::2]}
    by_decay = {decay: held_out_bits(transitions) for decay, transitions in decayed.items()}
    decay = min(by_decay, key=by_decay.get)
    print(
        f" decayed: {by_decay[decay]:.3f} bits per held-out token with a weight decay of {decay:g}, "
        f"{by_decay[max(by_decay)]:.3f} with {max(by_decay):g}"
    )

    # 6. Which sounds are followed by anything, which by one thing only? Of the tokens that occur often enough to tell.
    entropies, met = row_entropies(alone), counted.counts.sum(axis=1)
    often = np.flatnonzero(met >= np.median(met))
    ranked = often[np.argsort(entropies[often])]
    ends = {"one thing follows": ranked[:5], "anything follows": ranked[-5:][::-1]}
    for name, rows in ends.items():
        print(f"{name}: to tokens " + ", ".join(f"{row} (as good as {2 ** entropies[row]:.1f})" for row in rows))

    # 7. Draw, always with the same random numbers: what differs is the table's doing.
    def sound(name: str, codes: torch.Tensor | list[int], about: str) -> Clip:
        path = args.out / f"{name.replace(' ', '-')}.wav"
        with torch.inference_mode():
            write_audio(path, frontend.decode(torch.as_tensor(codes).view(1, 1, -1))[0], spec.sample_rate)
        return Clip(path, name.capitalize(), notes=[about])

    chances = uniforms([args.seed], 0, math.ceil(seconds * spec.frame_rate), 1)[0, :, 0].numpy()
    start = counted.unigram.probabilities()
    tables = {
        "unigram": (np.tile(start, (V, 1)), "Each slice drawn by itself: the right sounds in no order."),
        "counted": (alone, "Only pairs that occur in the training files."),
        "learned": (learned, "The linear layer without decay."),
        "smoothed": (
            counted.with_added(added),
            f"{added:g} added to every count: now and then a pair that nobody has heard.",
        ),
        "decayed too far": (decayed[max(decayed)], f"A weight decay of {max(decayed):g}: nearly uniform."),
    }
    drawn = {name: follow(start, transitions, chances) for name, (transitions, _) in tables.items()}
    same = [a == b for a, b in zip(drawn["counted"], drawn["learned"], strict=True)]
    together = (
        f"the same {len(same)} tokens"
        if all(same)
        else f"{same.index(False)} of {len(same)} tokens until the first one that differs"
    )
    print(f"the same draws from the counted and the learned table: {together}")
    sounds = [sound(name, drawn[name], about) for name, (_, about) in tables.items()]
    slices = [
        sound(name, np.repeat(rows, math.ceil(0.3 * spec.frame_rate)), "Five typical slices, 0.3 s each.")
        for name, rows in ends.items()
    ]

    # 8. The library's bigram is this table once more: an embedding times a linear layer, trained on crops. With
    #    dim >= V it can hold every entry. From here on, lessons change only what stands between the two ends.
    torch.manual_seed(0)
    model = SequenceModel(spec, BigramBackbone(BigramBackbone.Config(dim=V)), Parallel(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    crops = encoded.crops(num_frames=256, batch_size=32)
    for step in range(steps):
        batch, _ = crops.batch(step)  # x: (32, 1, 256)
        nats, tokens = model.nll(batch)
        optimizer.zero_grad()
        (nats / tokens).backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
    library = held_out_score(model, held_out).loss
    with torch.inference_mode():
        begin = sum(model(Batch(codes[None, :, :1])).item() for codes in held_out) / math.log(2)
    print(
        f" library: {library:.3f} bits per held-out token after {steps} steps on crops, {begin / len(held_out):.2f} "
        f"for a file's first one (unigram {firsts / len(held_out):.2f})"
    )

    # 9. The page.
    typical = frontend.quantizer.decode(torch.arange(V)[None, None])[0].numpy()  # (F, V)
    order = np.argsort(typical.mean(axis=0))
    losses = bits | {
        f"counted, {added:g} added": by_adding[added],
        f"linear layer, weight decay {decay:g}": by_decay[decay],
        "embedding times linear layer, on crops": library,
    }
    page = write_lesson(
        __file__,
        args.out / "index.html",
        text(f"{encoded.sides.summary}. {spec.frame_rate:.1f} tokens per second, each one of {V}."),
        tokens_section(encoded, args.folder, args.out),
        section(
            "What follows what",
            picture(
                draw_tables(alone[order][:, order], learned[order][:, order], np.array(curve) - least),
                "Transition probabilities as counted and as learned, and the learned one's loss by step",
                "Tokens from quiet to loud. Bright cells are likely transitions; the diagonal: most slices are "
                "followed by one like themselves. Black: never met, or nearly never.",
            ),
            text(
                f"On the training pairs the counted table needs {least:.4f} bits, the least that any table can "
                f"reach. The layer begins with all weights zero, the uniform table, and needs {reached:.4f} after "
                f"{steps} steps, {reached - least:.5f} more. No probability differs by more than {apart:.5f}: "
                "they are one model."
            ),
        ),
        section(
            "What was never met",
            text(
                f"{counted.counts.sum():,} training pairs fill {filled:.1%} of {V * V:,} cells, and {unseen:.1%} "
                "of the held-out pairs fall into an empty one. The counted table calls these impossible, so its "
                f"held-out loss is {'infinite' if unseen else 'finite by luck'}."
            ),
            picture(
                draw_sweeps(by_adding, by_decay, bits),
                "Held-out bits over added counts and over weight decay",
                "Left: the same constant is added to every count. Right: the layer is trained to the end with "
                "a penalty on the square of its weights. Above: all of it; below: the same around the best.",
            ),
            text(
                f"Both curves go from learning by heart to the uniform table, with the best in between: "
                f"{by_adding[added]:.3f} bits at {added:g} added, {by_decay[decay]:.3f} at a decay of {decay:g}. "
                "Adding s to every count is the same as a penalty of -s log p on every cell; weight decay is a "
                "penalty of W squared. Both are least where a row is uniform, and a row that was met often "
                "resists either one. (Both strengths were chosen on the files that judge them.)",
                "The bigram of the table, which later lessons are measured by, falls back on the unigram instead. "
                f"Its strength s, here {counted.strength():g}, is chosen on the training files alone; p(b) is how "
                "often b occurs:",
            ),
            code("p(b | a) = (count(a, b) + s p(b)) / (count(a) + s)"),
            table(
                ["model", "bits per held-out token", "bits per second"],
                [[name, loss, loss * spec.frame_rate] for name, loss in losses.items()],
            ),
            text(
                "The last row is the library's bigram: the same table as an embedding times a linear layer. It "
                f"learns how files begin as well: after {steps} steps it needs {begin / len(held_out):.2f} bits "
                "for a file's first token. The rows above leave that one to the unigram, which needs "
                f"{firsts / len(held_out):.2f}."
            ),
        ),
        section(
            "How open it is what follows",
            picture(
                draw_rows(entropies, met, typical, ends),
                "Entropy of each row, and the spectra of the ends",
                "Left: each dot is a token. Right: typical frames of both ends, low bands at the bottom.",
            ),
            table(
                ["token", "", "as open as a choice among", "followed by itself", "met"],
                [
                    [f"{row}", name, float(2 ** entropies[row]), f"{alone[row, row]:.0%}", int(met[row])]
                    for name, rows in ends.items()
                    for row in rows
                ],
            ),
            text(
                "Of the tokens that occur more often than the middle one. A row that was met n times can't look "
                "more open than a choice among n, so rare ones would look closed whatever their sound."
            ),
            grid(clip_cards(slices)),
        ),
        section(
            "How it sounds",
            text(
                "All are drawn with the same random numbers. From the counted and the learned table they give "
                f"{together}."
            ),
            grid(clip_cards(sounds)),
        ),
    )
    print(f"open {page}")


def tokens_section(encoded: Encoded, folder: Path, out: Path) -> str:
    """How a held-out file becomes tokens, and sound again."""
    frontend, spec, V = encoded.frontend, encoded.spec, encoded.spec.codebook_size
    mel, rate, ms = frontend.mel, spec.sample_rate, 1000 / spec.frame_rate
    index = dataclasses.replace(encoded.cache.index, folder=folder)
    wavs = islice(training_wavs(index, encoded.sides.train, rate), 100)
    some = torch.cat([mel.encode(wav[None])[0].T for wav in wavs])[:20_000]  # (N, F)
    typical = frontend.quantizer.decode(torch.arange(V)[None, None])[0].T  # (V, F)
    ((name, wav),) = originals(folder, encoded.sides.held_out, rate, most=1)
    frames, codes = mel.encode(wav[None])[0].T, frontend.encode(wav[None])  # (T, F), (1, 1, T)
    left = {
        who: float((frames - rows[nearest_to(rows, frames)]).square().mean() / frames.square().mean())
        for who, rows in (("lines", typical_frames(some, V)), ("library", typical))
    }
    print(
        "of a held-out file's mel frames, the nearest typical one misses: "
        + ", ".join(f"{part:.1%} ({who})" for who, part in left.items())
    )
    clips = []
    for title, heard in (("Original", wav), ("Round trip", frontend.decode(codes)[0, :, : wav.shape[1]])):
        path = out / f"{title.lower().replace(' ', '-')}.wav"
        write_audio(path, heard, rate)
        clips.append(Clip(path, name, title))
    return section(
        "From sound to tokens",
        picture(
            draw_steps(wav[0], frames, codes[0, 0], typical, 1000 / rate, ms),
            "A held-out file as a waveform, as mel frames, as tokens, and as the typical frames of these",
        ),
        text(
            f"From the top: {name}, the waveform. Its mel frames: every {ms:.0f} ms the spectrum of a window of four "
            f"times that, in {frames.shape[1]} bands, narrow for low frequencies and wide for high ones as ears hear "
            "them; of each band the logarithm, shifted and scaled to mean 0 and deviation 1 over the training files. "
            f"Its tokens: the number of the nearest of {V} typical frames. And what these stand for.",
            "The typical frames come from training files. The library does in essence this:",
        ),
        code(inspect.getsource(typical_frames)),
        text(
            f"From {len(some):,} training frames these lines make typical ones that miss {left['lines']:.1%} of the "
            "held-out frames above (the squares of what is left, beside those of what was there); the library's, from "
            f"up to {frontend.config.fit_frames:,}, miss {left['library']:.1%}.",
            "The way back: typical frames say how loud each band is at each moment, but not where in its swing each "
            "wave stands (its phase), without which there is no waveform. Griffin-Lim guesses: it begins with phases "
            f"by chance, and {frontend.config.griffin_lim_iterations} times makes sound of them, takes the spectrum "
            "of that sound, keeps its phases, and puts the loudness back. What you hear below is lost to every model "
            "of these tokens.",
        ),
        grid(clip_cards(clips)),
    )


def draw_tables(alone: np.ndarray, learned: np.ndarray, excess: np.ndarray) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, values, title in zip(axes, (alone, learned), ("counted", "learned"), strict=False):
        image = ax.imshow(np.log10(values.clip(1e-12)), origin="lower", cmap="magma", vmin=-4, vmax=0)
        ax.set(
            title=f"{title}: log10 p(next | present)",
            xlabel="next token (quiet to loud)",
            ylabel="present token (quiet to loud)",
        )
        figure.colorbar(image, ax=ax, shrink=0.8)
    axes[2].semilogy(excess)
    axes[2].set(title="learning: bits per pair above counting", xlabel="step")
    return figure


def draw_sweeps(by_adding: dict[float, float], by_decay: dict[float, float], bits: dict[str, float]) -> Figure:
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row", height_ratios=(1, 1.5))
    for column, losses, label, colour in (
        (0, by_adding, "added to every count", "tab:blue"),
        (1, by_decay, "weight decay", "tab:orange"),
    ):
        best = min(losses, key=losses.get)
        for ax in axes[:, column]:
            ax.plot(list(losses), list(losses.values()), ".-", color=colour)
            ax.plot(best, losses[best], "o", color=colour, markersize=9)
            for (name, loss), style in zip(bits.items(), (":", "-.", "--"), strict=True):
                ax.axhline(loss, color="grey", linestyle=style, linewidth=1, label=f"{name} {loss:.3f}")
            ax.set(xscale="log", ylabel="" if column else "bits per held-out token")
        ax.text(0.03, 0.9, f"best: {losses[best]:.3f} at {best:.3g}", transform=ax.transAxes)
        ax.set(xlabel=label, ylim=(losses[best] - 0.1, losses[best] + 0.6))
    axes[0, 0].legend(loc="center left")
    return figure


def draw_rows(entropies: np.ndarray, met: np.ndarray, typical: np.ndarray, ends: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(3, 1.2, 1.2))
    dots = axes[0].scatter(met, entropies, c=typical.mean(axis=0), s=14, cmap="viridis")
    axes[0].set(xlabel="how often the token was met", ylabel="entropy of what follows, bits")
    figure.colorbar(dots, ax=axes[0], label="mean of the frame (quiet to loud)")
    for ax, (name, rows) in zip(axes[1:], ends.items(), strict=True):
        ax.imshow(typical[:, rows], origin="lower", aspect="auto", cmap="magma", vmin=typical.min(), vmax=typical.max())
        ax.set(title=name, xlabel="token", ylabel="mel band", xticks=range(len(rows)), xticklabels=rows)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
