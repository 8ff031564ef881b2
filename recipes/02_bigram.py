"""Lesson 2: the bigram. Which sound follows which?

    python recipes/02_bigram.py FOLDER [--out runs/02_bigram]

What it teaches. The smallest language model is a table: count how often each token follows each other token, and divide
each row by its sum; the rows are then distributions to sample from. Its loss, the mean of -log2 p(next | current), is
the baseline that every later model has to beat. The same table is one linear layer over one-hot inputs, and gradient
descent on that layer converges to the counted table. Counting alone gives probability 0 to every pair that it has not
seen, so a constant is added to every count (smoothing). In the layer, weight decay does the same job, since weights of
zero give every next token the same probability.

How it carries over to audio. Text comes in characters; sound must be cut into tokens first. Every 16 ms we compute a
spectrum in bands spaced as ears hear pitch (a mel spectrogram), and replace it by the nearest of V typical spectra
(k-means, audiogen/course/kmeans.py): a recording becomes a sequence of numbers, as a word is a sequence of letters. The
first section of the page shows each step, and the way back. The bigram then knows which 16 ms slice follows which, and
nothing more: its samples have the timbre of the recordings but no words.

What to try. Use more typical frames (--codes 1024): does the loss go up or down, and why can't the two be compared?
Does the larger table need more smoothing, or less? Use another folder: music repeats more than speech, so how far below
the unigram is its bigram?
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
from audiogen.listen import Clip, clip_cards, clip_slider, grid, picture, section, table, text
from audiogen.listen.html import code
from audiogen.models.backbones import Bigram as BigramBackbone
from audiogen.models.batch import Batch
from audiogen.models.patterns import Parallel
from audiogen.models.sampling import uniforms
from audiogen.models.sequence_model import SequenceModel
from audiogen.utils.scripts import run_script

TEMPERATURES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)


def train_table(counts: torch.Tensor, decay: float, steps: int) -> tuple[np.ndarray, list[float]]:
    """Train one linear layer from V inputs to V logits on all pairs at once.

    The input is one-hot, so the layer's output for token a is row a of W, and all pairs of the same two tokens have the
    same loss. Instead of going through the pairs, weight the loss of each cell by the number of times its pair occurs.

    Args:
        counts: (V, V), how often each pair occurs.
        decay: weight decay, the factor of the sum of squared weights.
        steps: training steps.

    Returns:
        The table of p(next | current) (V, V), and the loss in bits per pair at each step.
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
    """Sample tokens: the first from `start`, each later one from the row of the token before it.

    Args:
        start: (V,), distribution of the first token.
        transitions: (V, V), p(next | current), one row per current token.
        chances: (T,), uniform random numbers in (0, 1).
    """
    codes: list[int] = []
    for u in chances:
        cumulative = (transitions[codes[-1]] if codes else start).cumsum()
        codes.append(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")))
    return codes


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, the number of typical frames")
    parser.add_argument("--steps", type=int, default=400, help="training steps of a table learned by gradient descent")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each sample")
    parser.add_argument("--seed", type=int, default=5, help="seed of the samples")
    args = parser.parse_args()
    V, steps, seconds = (16, 100, 0.5) if args.short else (args.codes, args.steps, args.seconds)
    powers = range(-6, 5, 5) if args.short else range(-12, 13)  # smoothing strengths to try, as powers of two

    # 1. Sound to tokens. The typical frames are learned from the training files alone.
    encoded = encode_folder(args.folder, args.out, "melvq", num_codebooks=1, codebook_size=V)
    frontend, spec = encoded.frontend, encoded.spec
    training, held_out = encoded.training, encoded.held_out
    print(encoded.sides.summary)
    print(f"{spec.frame_rate:.1f} tokens per second, each one of {V}")

    # 2. Count. A row of the table, divided by its sum, is the distribution of what follows one token.
    counted, held = Bigram(V), Bigram(V)
    for model, sequences in ((counted, training), (held, held_out)):
        for codes in sequences:
            model.add(codes[0].numpy())
    alone = counted.with_added(0)  # (V, V)
    least = cross_entropy(counted.counts, alone)
    filled, unseen = (counted.counts > 0).mean(), held.counts[counted.counts == 0].sum() / held.counts.sum()
    print(
        f"{counted.counts.sum():,} pairs fill {filled:.1%} of {V * V:,} cells; the counted table needs {least:.4f} "
        f"bits per training pair\nand gives probability 0 to {unseen:.1%} of the held-out pairs"
    )

    # 3. Smooth: add the same constant to every count, and choose the best constant on held-out files. The first token
    #    of a file has no predecessor, so the unigram predicts it, here and in the library's baselines.
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
        f"smoothed: {by_adding[added]:.3f} with {added:g} added to every count (the bigram above is smoothed with the "
        f"unigram\n          instead; its strength of {counted.strength():g} is chosen on the training files alone)"
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
        f"no probability\n          differs by more than {apart:.5f}"
    )

    # 5. Weight decay is smoothing: it pulls W towards zero, the uniform table, as added counts pull the counted table.
    decayed = {2.0**p: train_table(counts, 2.0**p, steps)[0] for p in powers[::2]}
    by_decay = {decay: held_out_bits(transitions) for decay, transitions in decayed.items()}
    decay = min(by_decay, key=by_decay.get)
    print(
        f" decayed: {by_decay[decay]:.3f} bits per held-out token with a weight decay of {decay:g}, "
        f"{by_decay[max(by_decay)]:.3f} with {max(by_decay):g}"
    )

    # 6. Which sounds can be followed by anything, and which by one thing only? Consider only tokens that occur often
    #    enough to tell.
    entropies, occurrences = row_entropies(alone), counted.counts.sum(axis=1)
    often = np.flatnonzero(occurrences >= np.median(occurrences))
    ranked = often[np.argsort(entropies[often])]
    ends = {"most predictable": ranked[:5], "least predictable": ranked[-5:][::-1]}
    for name, rows in ends.items():
        listed = ", ".join(f"{row} (perplexity {2 ** entropies[row]:.1f})" for row in rows)
        print(f"{name} tokens by what follows them: {listed}")

    # 7. Sample, always with the same random numbers: all differences come from the tables.
    def sound(name: str, codes: torch.Tensor | list[int], about: str) -> Clip:
        path = args.out / f"{name.replace(' ', '-')}.wav"
        with torch.inference_mode():
            write_audio(path, frontend.decode(torch.as_tensor(codes).view(1, 1, -1))[0], spec.sample_rate)
        return Clip(path, name.capitalize(), notes=[about])

    chances = uniforms([args.seed], 0, math.ceil(seconds * spec.frame_rate), 1)[0, :, 0].numpy()
    start = counted.unigram.probabilities()
    tables = {
        "unigram": (np.tile(start, (V, 1)), "Each slice is drawn independently: the right sounds in random order."),
        "counted": (alone, "Only pairs that occur in the training files."),
        "learned": (learned, "The linear layer without weight decay."),
        "smoothed": (counted.with_added(added), f"{added:g} added to every count: unseen pairs can occur."),
        "strongest decay": (
            decayed[max(decayed)],
            f"A weight decay of {max(decayed):g}: {by_decay[max(decayed)]:.2f} bits per held-out token; the uniform "
            f"table needs {math.log2(V):.2f}.",
        ),
    }
    drawn = {name: follow(start, transitions, chances) for name, (transitions, _) in tables.items()}
    same = [a == b for a, b in zip(drawn["counted"], drawn["learned"], strict=True)]
    together = (
        f"the same {len(same)} tokens"
        if all(same)
        else f"{same.index(False)} identical tokens of {len(same)} before the first difference"
    )
    print(f"the counted and the learned table, sampled with the same random numbers, give {together}")
    sounds = [sound(name, drawn[name], about) for name, (_, about) in tables.items()]
    #    The temperature T raises each probability to the power 1 / T before the draw.
    sharpness = {
        f"{t:g}": [
            sound(
                f"temperature {t:g}",
                follow(start ** (1 / t), counted.with_added(added) ** (1 / t), chances),
                "The smoothed table, with the same random numbers.",
            )
        ]
        for t in TEMPERATURES
    }
    slices = [
        sound(name, np.repeat(rows, math.ceil(0.3 * spec.frame_rate)), "Five typical frames, 0.3 s each.")
        for name, rows in ends.items()
    ]

    # 8. The library's bigram is the same table again: an embedding times a linear layer, trained on crops. With
    #    dim >= V it can represent any table. Later lessons change only what lies between the embedding and the layer.
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
        f"for the first token of a file (unigram {firsts / len(held_out):.2f})"
    )

    # 9. The page.
    typical = frontend.quantizer.decode(torch.arange(V)[None, None])[0].numpy()  # (F, V)
    order = np.argsort(typical.mean(axis=0))
    losses = bits | {
        f"counted, {added:g} added": by_adding[added],
        f"linear layer, weight decay {decay:g}": by_decay[decay],
        "the library's bigram, trained on crops": library,
    }
    best_inside = all(min(losses) < best < max(losses) for losses, best in ((by_adding, added), (by_decay, decay)))
    page = write_lesson(
        __file__,
        args,
        text(f"{encoded.sides.summary}. {spec.frame_rate:.1f} tokens per second, each one of {V}."),
        tokens_section(encoded, args.folder, args.out),
        section(
            "What follows what",
            picture(
                draw_tables(alone[order][:, order], learned[order][:, order], np.array(curve) - least),
                "Transition probabilities as counted and as learned, and the loss of the learned table by step",
                "Tokens are sorted from quiet to loud. Bright cells are likely transitions; black cells are pairs that "
                "were never seen, or almost never. Cells on the diagonal are slices followed by the same token.",
            ),
            text(
                f"On the training pairs the counted table needs {least:.4f} bits, the minimum for any table. The layer "
                f"starts with all weights zero, which is the uniform table, and needs {reached:.4f} bits after "
                f"{steps} steps, {reached - least:.5f} more than the counted table. No probability differs by more "
                f"than {apart:.5f}." + (" Counting and gradient descent give the same model." if apart < 0.01 else "")
            ),
        ),
        section(
            "Pairs that were never seen",
            text(
                f"{counted.counts.sum():,} training pairs fill {filled:.1%} of {V * V:,} cells, and {unseen:.1%} "
                "of the held-out pairs fall into an empty cell. "
                + (
                    "The counted table gives these probability 0, so its held-out loss is infinite."
                    if unseen
                    else "So the held-out loss of the counted table is finite here, but one unseen pair would make it "
                    "infinite."
                )
            ),
            picture(
                draw_sweeps(by_adding, by_decay, bits),
                "Held-out bits over added counts and over weight decay",
                "Left: the same constant is added to every count. Right: the layer is trained to the end with "
                "a penalty on the square of its weights. Top: the whole range; bottom: the same curves near the best.",
            ),
            text(
                "Both curves start at the memorised training pairs and lead towards the uniform table. "
                + ("The best value lies in between: " if best_inside else "The best values tried: ")
                + f"{by_adding[added]:.3f} bits with {added:g} added to every count, {by_decay[decay]:.3f} with a "
                f"weight decay of {decay:g}. Adding s to every count is a penalty of -s log p on every cell; weight "
                "decay is a penalty of W squared. Both are smallest where a row is uniform, and both change a row "
                "less the more often its token was seen. (Both strengths are chosen on the same held-out files that "
                "score them.)",
                "The bigram in the table below, the baseline of later lessons, is smoothed with the unigram instead. "
                f"Its strength s, here {counted.strength():g}, is chosen on the training files alone; p(b) is the "
                "unigram's probability of b:",
            ),
            code("p(b | a) = (count(a, b) + s p(b)) / (count(a) + s)"),
            table(
                ["model", "bits per held-out token", "bits per second"],
                [[name, loss, loss * spec.frame_rate] for name, loss in losses.items()],
            ),
            text(
                "The last row is the library's bigram: the same table as an embedding times a linear layer. It also "
                f"models how files begin: after {steps} steps it needs {begin / len(held_out):.2f} bits for the first "
                "token of a file. The other rows leave that token to the unigram, which needs "
                f"{firsts / len(held_out):.2f} bits."
            ),
        ),
        section(
            "How predictable the next token is",
            picture(
                draw_rows(entropies, occurrences, typical, ends),
                "Entropy of each row, and the spectra of the most and the least predictable tokens",
                "Left: each dot is a token. Right: the typical frames of the tokens in the table below, low bands at "
                "the bottom.",
            ),
            table(
                ["token", "", "perplexity of what follows", "followed by itself", "occurrences"],
                [
                    [f"{row}", name, float(2 ** entropies[row]), f"{alone[row, row]:.0%}", int(occurrences[row])]
                    for name, rows in ends.items()
                    for row in rows
                ],
            ),
            text(
                "Only tokens that occur at least as often as the median token are ranked. The perplexity is the "
                "number of equally likely tokens with the same entropy. It can't exceed the number of occurrences, so "
                "rare tokens would look predictable whatever they sound like."
            ),
            grid(clip_cards(slices)),
        ),
        section(
            "How it sounds",
            text(
                "All samples are drawn with the same random numbers. The counted and the learned table give "
                f"{together}."
            ),
            grid(clip_cards(sounds)),
        ),
        section(
            "Temperature",
            text(
                "Before a draw, each probability can be raised to the power 1 / T and the row divided by its new sum. "
                "At T = 1 the model is unchanged. Below, likely tokens become likelier still, until each is followed "
                "by its most frequent successor; above, all become equally likely. Move the slider while it plays."
            ),
            clip_slider("temperature", sharpness, TEMPERATURES.index(1.0)),
        ),
        before_after=[sounds[0], sounds[list(tables).index("smoothed")]],
    )
    print(f"open {page}")


def tokens_section(encoded: Encoded, folder: Path, out: Path) -> str:
    """Show how a held-out file becomes tokens, and sound again.

    Args:
        encoded: the folder as tokens, with their front-end.
        folder: folder of the sound files.
        out: folder to write sounds to.
    """
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
        for who, rows in (("kmeans.py", typical_frames(some, V)), ("library", typical))
    }
    print(
        "error of the nearest typical frame on a held-out file, relative to its power: "
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
            "A held-out file as a waveform, as mel frames, as tokens, and as the typical frames of these tokens",
        ),
        text(
            f"From the top: the waveform of {name}. Its mel frames: the spectrum of a window of {4 * ms:.0f} ms, every "
            f"{ms:.0f} ms, in {frames.shape[1]} bands that are narrow at low frequencies and wide at high ones, as "
            "ears hear them. The value of a band is the logarithm of its power, normalised to mean 0 and deviation 1 "
            f"over the training files. Its tokens: the index of the nearest of {V} typical frames. At the bottom: the "
            "typical frames that these tokens stand for.",
            "The typical frames are fitted to training files. In essence, the library does this:",
        ),
        code(inspect.getsource(typical_frames)),
        text(
            f"Fitted to {len(some):,} training frames, these lines leave a squared error of {left['kmeans.py']:.1%} of "
            "the squared held-out frames above; the library's typical frames, fitted to up to "
            f"{frontend.config.fit_frames:,}, leave {left['library']:.1%}.",
            "The way back: typical frames say how loud each band is at each moment, but not the phase of each wave, "
            "without which there is no waveform. Griffin-Lim estimates it: it starts from random phases and repeats "
            f"{frontend.config.griffin_lim_iterations} times: synthesise a waveform, compute its spectrum, keep the "
            "phases, and restore the loudness of each band. No model of these tokens can sound better than the round "
            "trip below.",
        ),
        grid(clip_cards(clips)),
    )


def draw_tables(alone: np.ndarray, learned: np.ndarray, excess: np.ndarray) -> Figure:
    """Plot the counted and the learned table (V, V), and the learned one's excess loss in bits by step."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, values, title in zip(axes, (alone, learned), ("counted", "learned"), strict=False):
        image = ax.imshow(np.log10(values.clip(1e-12)), origin="lower", cmap="magma", vmin=-4, vmax=0)
        ax.set(
            title=f"{title}: log10 p(next | current)",
            xlabel="next token (quiet to loud)",
            ylabel="current token (quiet to loud)",
        )
        figure.colorbar(image, ax=ax, shrink=0.8)
    axes[2].semilogy(excess)
    axes[2].set(title="learned: bits per pair above the counted table", xlabel="step")
    return figure


def draw_sweeps(by_adding: dict[float, float], by_decay: dict[float, float], bits: dict[str, float]) -> Figure:
    """Plot the held-out loss over both kinds of smoothing, with the baselines in `bits` for comparison."""
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


def draw_rows(
    entropies: np.ndarray, occurrences: np.ndarray, typical: np.ndarray, ends: dict[str, np.ndarray]
) -> Figure:
    """Plot the entropy of each token's successors over its occurrences, and the typical frames of some tokens.

    Args:
        entropies: (V,), in bits.
        occurrences: (V,), occurrences of each token.
        typical: (F, V), typical frames.
        ends: name of a group -> its tokens.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(3, 1.2, 1.2))
    dots = axes[0].scatter(occurrences, entropies, c=typical.mean(axis=0), s=14, cmap="viridis")
    axes[0].set(xlabel="occurrences of the token", ylabel="entropy of what follows, bits")
    figure.colorbar(dots, ax=axes[0], label="mean of the frame (quiet to loud)")
    for ax, (name, rows) in zip(axes[1:], ends.items(), strict=True):
        ax.imshow(typical[:, rows], origin="lower", aspect="auto", cmap="magma", vmin=typical.min(), vmax=typical.max())
        ax.set(title=name, xlabel="token", ylabel="mel band", xticks=range(len(rows)), xticklabels=rows)
    return figure


if __name__ == "__main__":
    raise SystemExit(run_script(main))
