"""Lesson 8: tokenization. What is a word of sound?

    python recipes/08_tokenization.py FOLDER [--out runs/08_tokenization]

What it teaches. A language model reads neither letters nor words but tokens, which byte-pair encoding creates before
any training: take the bytes of a text, find the most frequent pair of neighbours, replace it by a new token, and
repeat. After some hundred merges there are tokens for syllables, for words with the space before them, and for whatever
else is frequent. It is a compressor trained by counting, and many oddities of language models (with spelling,
arithmetic, or a space at the end of a prompt) come from their tokens. Here the algorithm is built from scratch
(audiogen/course/bpe.py) and trained on the docstrings of these lessons: what it learns, what goes wrong without a
pattern that first splits the text into pieces, and what a special token is.

How it carries over to audio. Codes are integers like bytes, so the same merges create tokens of sound with different
durations: long ones for silence or a held vowel, short ones for each moment of a word. The front-end `bpe` wraps any
front-end with one code per frame; its frame rate then varies. The lesson compares two ways to fewer tokens per second.
Merging is lossless: it only renames codes. A neural codec is lossy: it tries to discard what the ear does not miss;
here it gets few training steps, and you can hear how far it comes. Samples show the limits of merging: sound that is
partly noise hardly ever repeats exactly.

What to try. --codes 64: coarser frames repeat more often; do the longer tokens make up for it in bits per second? Use a
folder of music: which tokens last longest? --merges 4096: when does the vocabulary become a list of the training files?
"""

import argparse
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from audiogen.audio.io import read_audio, write_audio
from audiogen.course import bpe
from audiogen.course.lesson_page import write_lesson
from audiogen.course.lesson_parser import LessonParser
from audiogen.data import Encoded, EncodedCache, encode_folder, label_names, label_of
from audiogen.evaluation.report import originals, round_trip
from audiogen.evaluation.scores import baselines, held_out_score
from audiogen.frontends import BPE
from audiogen.frontends.bpe.merges import apply_merges, learn_merges, rank_table
from audiogen.generation.generate import generate
from audiogen.generation.request import Request, Until
from audiogen.listen import Clip, clip_cards, grid, picture, section, table, text
from audiogen.listen.html import code
from audiogen.models.backbones import GPT
from audiogen.models.patterns import Parallel
from audiogen.models.sequence_model import SequenceModel
from audiogen.utils.scripts import run_script

END = "<|end|>"  # special token at the end of a document
LONGEST = 64  # maximum frames per token
WINDOW = 64  # tokens that each layer of the GPT attends to
SENTENCE = "The tokens of text, the tokens of sound: tokens! In 2024 a token's 16 ms."

Trained = tuple[SequenceModel, list[tuple[int, float]]]  # a model, and (step, held-out bits per second)


def main() -> None:
    """Run the lesson."""
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, the number of codes before merging")
    parser.add_argument("--merges", type=int, default=1024, help="number of codes that merging adds")
    parser.add_argument("--steps", type=int, default=500, help="training steps of each model")
    args = parser.parse_args()
    if args.short:
        args.codes, args.merges, args.steps = 16, 24, 8
    codec = {
        "weights": "fit",
        "num_codebooks": 1,
        "codebook_size": args.codes,
        **({"fit_steps": 4, "dim": 8, "latent_dim": 4} if args.short else {"fit_steps": 400}),
    }

    # 1. Encode the folder in six ways: as samples, typical frames and codec frames, plain and merged.
    encoded: dict[str, Encoded] = {}
    for name, kind, settings in (
        ("samples", "mulaw", {}),
        ("frames", "melvq", {"num_codebooks": 1, "codebook_size": args.codes}),
        ("codec", "codec", codec),
    ):
        encoded[name] = plain = encode_folder(args.folder, args.out / name, kind, **settings)
        front = BPE.over(plain.frontend, num_merges=args.merges, longest=LONGEST, fit_frames=1_000_000)
        front.learn(plain.training)  # from the training files alone
        index = dataclasses.replace(plain.cache.index, folder=args.folder)
        cache = EncodedCache.open_or_build(index, front, args.out / f"{name}-merged" / "cache")
        encoded[f"{name}, merged"] = Encoded(front, cache, plain.sides)
    print(encoded["frames"].sides.summary)

    # 2. Train: the same model on each kind of frames.
    models = {name: train(way, args.steps) for name, way in encoded.items() if not name.startswith("samples")}
    page = write_lesson(
        __file__,
        args,
        text(f"{encoded['frames'].sides.summary}."),
        letters(30 if args.short else 300),
        ratios(encoded, 2 * args.merges),
        words(encoded["frames, merged"], args),
        rates(encoded, models, args),
        samples(encoded, models, args),
    )
    print(f"open {page}")


# 3. Text: the merges, then the pattern that separates words, then special tokens.


def letters(num_merges: int) -> str:
    """Train tokenizers on the docstrings of the lessons, with and without splitting into pieces, and compare them."""
    notes = [path.read_text(encoding="utf-8").split('"""')[1] for path in sorted(Path(__file__).parent.glob("0*.py"))]
    whole = "".join(notes)
    training, held_out = whole[: len(whole) * 9 // 10], whole[len(whole) * 9 // 10 :]
    tokenizers = {"whole text": bpe.BasicTokenizer(), "in pieces": bpe.SplitTokenizer(specials=[END])}

    def spelt(tokenizer: bpe.BasicTokenizer, tokens: list[int]) -> list[str]:
        return [tokenizer.token_bytes(t).decode(errors="replace").replace("\n", "⏎").replace(" ", "·") for t in tokens]

    rows = []
    for name, tokenizer in tokenizers.items():
        tokenizer.train(training, num_merges)
        new = spelt(tokenizer, list(range(256, 256 + len(tokenizer.merges))))
        across = [token for token in new if re.search(r"\w[·⏎]+\w", token)]
        rows.append(
            [
                name,
                *(len(side.encode()) / len(tokenizer.encode(side)) for side in (training, held_out)),
                len(across),
                max(across, key=len, default=None),
            ]
        )
        print(f"{name}: {rows[-1][2]:.2f} bytes per token on unseen text, {len(across)} tokens cross word boundaries")
    basic, split = tokenizers.values()
    first = [
        [256 + i, " ".join(spelt(basic, list(pair))), *spelt(basic, [256 + i])]
        for i, pair in enumerate(basic.merges[:12])
    ]
    print("the first merges: " + ", ".join(made for _, _, made in first))
    imitated = f"tokens{END}sound"
    return section(
        "Text",
        text(
            f"The first of {num_merges} merges, learned from {len(training.encode()):,} bytes of the lessons' "
            "docstrings. A dot is a space: for the algorithm it is a character like any other."
        ),
        table(["new token", "merges", "stands for"], first),
        text(
            f"If the text is merged as a whole, {rows[0][3]} tokens start in one word and end in another. "
            + (
                "Because of them the same word gets different tokens in different places, and a model has to learn "
                "each version separately. "
                if rows[0][3]
                else ""
            )
            + "If the text is first split into pieces (GPT-4's pattern: words with the space before them, "
            "up to three digits, punctuation), no merge crosses from one piece into the next."
        ),
        table(["merged", "bytes per token", "on unseen text", "tokens across words", "the longest of these"], rows),
        code(
            "\n".join(
                f"{name:10}  " + " ".join(spelt(tokenizer, tokenizer.encode(SENTENCE)))
                for name, tokenizer in tokenizers.items()
            )
        ),
        code(
            "\n".join(
                f"{how:22}  " + " ".join(spelt(split, tokens))
                for how, tokens in (
                    ("as ordinary text", split.encode(imitated)),
                    ("special tokens allowed", split.encode(imitated, True)),
                )
            )
        ),
        text(
            f"{END} separates documents. It is a single token, which ordinary text can't produce unless special "
            "tokens are allowed. Sound files need none: merges never cross from one file into the next."
        ),
    )


# 4. How much shorter? The first n merges of a longer list are the list of n merges, so one list per kind is enough.


def ratios(encoded: dict[str, Encoded], most: int) -> str:
    """Plot the reduction in tokens by number of merges, up to `most`, for bytes and for three kinds of codes."""
    script = np.frombuffer(Path(__file__).read_bytes(), np.uint8)
    kinds = {"this script's bytes": ([script[: len(script) * 9 // 10]], [script[len(script) * 9 // 10 :]], 256)}
    for name in ("frames", "codec", "samples"):
        way, files = encoded[name], 200 if name == "samples" else None
        kinds[name] = (
            *([codes[0].numpy() for codes in islice(side, files)] for side in (way.training, way.held_out)),
            way.spec.codebook_size,
        )
    few, size = kinds["frames"][0][:50], kinds["frames"][2]  # the library's fast version finds the same merges
    assert learn_merges(few, size, 8, LONGEST).tolist() == [list(pair) for pair in bpe.learn_merges(few, 8, size)]

    figure, counts = Figure(figsize=(8, 3.6), layout="constrained"), 2 ** np.arange(1, int(math.log2(most)) + 1)
    axis = figure.subplots()
    for colour, (name, (training, held_out, V)) in zip("kbrg", kinds.items(), strict=True):
        merges = learn_merges(training, V, most, LONGEST)
        tables = [rank_table(merges[:count]) for count in counts]
        for side, style in ((training, "-"), (held_out, "--")):
            merged = [sum(len(apply_merges(codes, made, V)) for codes in side) for made in tables]
            shorter = sum(map(len, side)) / np.array(merged)
            axis.plot(counts, shorter, colour + style, label=name if style == "-" else None)
        print(f"{name}: {shorter[-1]:.2f} times fewer tokens on held-out data after {len(merges)} merges")
    axis.set(xscale="log", xlabel="merges", ylabel="times fewer tokens")
    axis.legend()
    training, held_out, V = kinds["frames"]
    strip = draw_strip(held_out[0][:48], learn_merges(training, V, most, LONGEST), V, [0, 1, *counts[1::3]])
    return section(
        "How much shorter",
        picture(
            strip,
            "A strip of tokens before and after merges: neighbours become one longer token",
            "The beginning of a held-out file. Each row has its tokens after so many merges, each as wide as the mel "
            "frames that it stands for; equal tokens have equal colours. Merges join neighbours.",
        ),
        picture(
            figure,
            "Compression by number of merges",
            "Number of tokens before merging over the number after. Solid: the data that the merges were learned from; "
            "dashed: held-out data. Where the solid line rises above the dashed one, new tokens describe the training "
            "files rather than sound or text in general. A dashed line above its solid one means that the held-out "
            "files happen to be more repetitive.",
        ),
    )


def draw_strip(codes: np.ndarray, merges: np.ndarray, V: int, counts: Sequence[int]) -> Figure:
    """Plot codes (T,) as a strip of tokens, one row for each number of merges."""
    lengths = np.ones(V + len(merges), int)
    for i, (one, other) in enumerate(merges):
        lengths[V + i] = lengths[one] + lengths[other]
    figure = Figure(figsize=(10, 0.6 + 0.45 * len(counts)), layout="constrained")
    axis = figure.subplots()
    for row, count in enumerate(counts):
        tokens, left = apply_merges(codes, rank_table(merges[:count]), V), 0
        for token in tokens:
            width = lengths[token]
            colour = matplotlib.colormaps["tab20"]((37 * int(token)) % 20)
            axis.barh(row, width, left=left, height=0.8, color=colour, edgecolor="white", linewidth=1)
            if width > 1 or len(codes) <= 32:
                axis.text(left + width / 2, row, str(token), ha="center", va="center", fontsize=7)
            left += width
        axis.text(len(codes) + 0.5, row, f"{len(tokens)} tokens", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="mel frames", yticks=range(len(counts)), yticklabels=[f"{count} merges" for count in counts])
    axis.set_xlim(0, len(codes) * 1.12)
    return figure


# 5. Tokens of sound: where they start and end, and what they sound like.


def words(merged: Encoded, args: argparse.Namespace) -> str:
    """Show the boundaries of merged tokens in held-out files, and play some tokens."""
    front, rate, hop = merged.frontend, merged.spec.sample_rate, merged.frontend.base.spec.hop_length
    shown = min(2, len(merged.held_out))
    figure = Figure(figsize=(9, 2.4 * shown), layout="constrained")
    for axis, name, codes in zip(
        figure.subplots(shown, 1, squeeze=False)[:, 0], merged.held_out.names, merged.held_out, strict=False
    ):
        power = front.base.mel.power(read_audio(args.folder / name, rate)[None])[0]
        ends = front.frame_lengths(codes[None])[0].cumsum(0) / hop
        axis.imshow(power.clamp_min(1e-6).log10().numpy(), origin="lower", aspect="auto", cmap="magma")
        axis.vlines(ends[:-1].numpy() - 0.5, -0.5, len(power) - 0.5, color="white", lw=0.8)
        axis.set(title=f"{name}: {power.shape[1]} frames, {codes.shape[1]} tokens", xlabel="frames", yticks=[])

    places: dict[int, list[tuple[str, int]]] = {}  # token -> (file, first sample of the token)
    for name, codes in zip(merged.training.names, merged.training, strict=True):
        lengths = front.frame_lengths(codes[None])[0]
        for token, begin in zip(codes[0].tolist(), (lengths.cumsum(0) - lengths).tolist(), strict=True):
            places.setdefault(token, []).append((name, begin))
    new = sorted(token for token in places if token >= args.codes)
    length_of = {token: int(front.code_lengths[token]) * hop for token in new}
    often = sorted(new, key=lambda token: -len(places[token]) * length_of[token])[:4]
    long = sorted(set(new) - set(often), key=lambda token: (-length_of[token], token))[:4]
    labelled = label_names(merged.training.names)
    rows, sounds = [], []
    for token in [*often, *long]:
        samples, why = length_of[token], "covers the most time" if token in often else "longest"
        label, times = Counter(label_of(name) for name, _ in places[token]).most_common(1)[0]
        rows.append(
            [
                str(token),
                why,
                1000 * samples / rate,
                len(places[token]),
                f"{label}: {100 * times / len(places[token]):.0f} %" if labelled else None,
            ]
        )
        fade = (torch.arange(samples) / (0.004 * rate)).clamp(max=1)
        with torch.inference_mode():
            pieces = [front.decode(torch.tensor([[[token]]]))[0], torch.zeros(1, rate // 2)]
        for name, begin in islice(dict(places[token]).items(), 8):
            wav = read_audio(args.folder / name, rate)[:, begin : begin + samples]
            pieces += [wav * (fade * fade.flip(0))[: wav.shape[1]], torch.zeros(1, rate // 5)]
        path = args.out / f"token-{token}.wav"
        write_audio(path, torch.cat(pieces, dim=1), rate)
        sounds.append(Clip(path, f"Token {token}", f"{why}, {1000 * samples / rate:.0f} ms"))
        print(f"token {token} ({why}): {1000 * samples / rate:.0f} ms, occurs {len(places[token])} times")
    return section(
        "Tokens of sound",
        picture(
            figure,
            "Spectrograms with lines where tokens end",
            "Mel spectrograms of held-out files; a line marks the end of a token. Look for long tokens where the "
            "sound is steady, and short ones where it changes.",
        ),
        text(
            "Some of the new tokens: those that cover the most time of the training files (occurrences times "
            "duration), and the longest. Each sound below starts with what the token decodes to; then come the "
            "recordings that it stands for, each from another file."
        ),
        table(["token", "selected because", "ms", "occurrences", "most frequent label"], rows),
        grid(clip_cards(sounds)),
    )


# 6. What is a token worth to a model? Train one for each kind of token, for as many steps of as many tokens.


def train(encoded: Encoded, steps: int) -> Trained:
    """Train a GPT, and return the weights with the lowest held-out loss, and the loss by step."""
    torch.manual_seed(0)
    backbone = GPT(GPT.Config(dim=128, num_layers=4, num_heads=4, dropout=0.1, window=WINDOW))
    model = SequenceModel(encoded.spec, backbone, Parallel(1))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    crops, seconds = encoded.crops(num_frames=128, batch_size=8), encoded.frontend.seconds(encoded.held_out)
    curve, best = [], {}
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        nats, entries = model.nll(crops.batch(step)[0])  # of (8, 1, 128)
        optimizer.zero_grad()
        (nats / entries).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, steps // 10) == 0:
            curve.append((step + 1, held_out_score(model, encoded.held_out, seconds).per_second))
            if curve[-1][1] == min(bits for _, bits in curve):
                best = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    return model, curve


def rates(encoded: dict[str, Encoded], models: dict[str, Trained], args: argparse.Namespace) -> str:
    """Compare all kinds of tokens: rate, bits per second by model, and mel distance of the round trip."""
    rows, heard, figure = [], [], Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, way in encoded.items():
        rate = float(way.held_out.num_frames.sum()) / way.frontend.seconds(way.held_out)
        bits = [loss * rate for loss in baselines(way.spec, way.training, way.held_out).values()]
        bits += [None] * (3 - len(bits))  # with more than 4,096 codes there is no bigram
        bits.append(min(bits for _, bits in models[name][1]) if name in models else None)
        if name in models:
            axis.plot(
                *zip(*models[name][1], strict=True),
                "--" if "merged" in name else "-",
                label=name,
                color="b" if "frames" in name else "r",
            )
        sound = originals(args.folder, way.sides.held_out, way.spec.sample_rate)
        trip = round_trip(way.frontend, sound)
        if "merged" not in name:  # merged codes sound the same
            (title, wav), path = sound[0], args.out / f"heard-{name}.wav"
            with torch.inference_mode():
                back = way.frontend.decode(way.frontend.encode(wav[None]))[0, :, : wav.shape[1]]
            write_audio(path, back, way.spec.sample_rate)
            heard.append(Clip(path, title, f"round trip, {name}"))
        rows.append([name, way.spec.codebook_size, rate, *bits, trip["mel_distance"]])
        print(
            f"{name}: {rate:.1f} tokens per second; bits per second of uniform, unigram, bigram, GPT: "
            + ", ".join("-" if x is None else f"{x:.0f}" for x in bits)
            + f"; mel distance {rows[-1][-1]:.3f}"
        )
    axis.set(xlabel="steps", ylabel="held-out bits per second")
    axis.legend()
    saved = [
        [
            plain[0],
            plain[2] / merged[2],
            *(
                None if None in (before, after) else round(100 * (1 - after / before))
                for before, after in zip(plain[3:7], merged[3:7], strict=True)
            ),
        ]
        for plain, merged in zip(rows[::2], rows[1::2], strict=True)
    ]
    orderless = min(value for row in saved for value in row[2:4] if value is not None) > 0
    lost = [row[0] for row in saved[1:] if row[-1] is not None and row[-1] < 0]
    overfit = [name for name, (_, curve) in models.items() if min(bits for _, bits in curve) < curve[-1][1]]
    return section(
        "Two ways to fewer tokens",
        text(
            f"Discarding: there are {rows[0][2] / rows[2][2]:.0f} times fewer frames than samples, and the mel "
            "distance is the price. Merging is lossless: within a pair of rows the mel distance stays the same. "
            "Typical frames and codec frames differ in mel distance, so their bits are for different sounds and do "
            "not rank them. (There is no GPT on samples: the context of one of its layers would last "
            f"{1000 * WINDOW / rows[0][2]:.0f} ms.)"
        ),
        table(
            ["", "vocabulary", "tokens per second", "uniform", "unigram", "bigram", "GPT", "mel distance"],
            rows,
            "Bits per second of sound on held-out files, and the mel distance between round trip and original.",
        ),
        text("One held-out file, encoded and decoded in each way:"),
        grid(clip_cards(heard)),
        text(
            "The uniform and the unigram model ignore the order of tokens. "
            + ("Both need fewer bits for merged tokens, since these contain some of the order. " if orderless else "")
            + "The bigram and the GPT already use the order. They pay for the larger vocabulary, in which each token "
            "occurs less often, and can gain only if longer tokens let them see further. "
            + (
                f"Here merging raises the GPT's bits ({' and '.join(lost)}). Models of text are always trained on "
                "merged tokens, but on far more data. "
                if lost
                else ""
            )
            + "In any case merging saves steps: less computation, and a context that covers more time."
        ),
        table(
            ["", "times fewer tokens", "uniform", "unigram", "bigram", "GPT"],
            saved,
            "% of the bits that merging saves; negative if it needs more.",
        ),
        picture(
            figure,
            "Held-out bits per second by training step",
            "The same model, trained on the same number of tokens per step; the table has the minima. Lines of one "
            "colour stand for the same sound. A step of merged tokens covers more sound. "
            + (
                f"Lowest before the end of training, so overfitting: {'; '.join(overfit)}."
                if overfit
                else "Each model is best at the end of training, so none overfits yet."
            ),
        ),
    )


# 7. Samples: how they sound, and how many tokens they took.


def samples(encoded: dict[str, Encoded], models: dict[str, Trained], args: argparse.Namespace) -> str:
    """Generate sounds from plain and merged frames, with the number of tokens that each took."""
    sounds, seconds = [], 0.3 if args.short else 3.0
    for name in ("frames", "frames, merged"):
        front, model = encoded[name].frontend, models[name][0]
        length = round(seconds * front.spec.sample_rate)
        request = Request(seeds=[0, 1], until=Until(length, front.frame_lengths))
        codes = generate(model, front.num_frames(length), request).x
        with torch.inference_mode():
            wavs = front.decode(codes)[:, :, :length]
        for seed, wav in enumerate(wavs):
            drawn, path = int((codes[seed] != model.hole).sum()), args.out / f"{name.replace(', ', '-')}-{seed}.wav"
            write_audio(path, wav, front.spec.sample_rate)
            sounds.append(Clip(path, f"Seed {seed}", f"{name}: {drawn} tokens"))
            print(f"{name}, seed {seed}: {seconds:g} s took {drawn} tokens")
    return section(
        "How it sounds",
        text("The model draws tokens until the sound is long enough; how many it needs depends on the tokens."),
        grid(clip_cards(sounds)),
    )


if __name__ == "__main__":
    raise SystemExit(run_script(main))
