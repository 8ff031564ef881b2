"""Lesson 8: tokenization. What is a word of sound?

    python recipes/08_tokenization.py FOLDER [--out runs/08_tokenization]

What it teaches. A language model reads neither letters nor words but tokens, which were made before it by byte-pair
encoding: take the bytes of a text, find the two neighbours that stand together most often, give the pair a new token,
and begin again. Some hundred merges later there are tokens for syllables, for words with the space before them, and for
whatever else the text is full of. It is a compressor that was trained by counting, and much that is odd about language
models (spelling, arithmetic, a space at the end of a prompt) is odd about their tokens. Here it is built from nothing
(audiogen/course/bpe.py), on the notes of these lessons: what it learns, what goes wrong without a pattern that cuts
the text into pieces first, and what a special token is.

How it carries over to audio. Codes are integers like bytes, so the same merges make tokens of sound that last as long
as they need: one for a stretch of silence or a held vowel, one for each moment of a word. The front-end `bpe` wraps any
front-end of one code a frame; its rate then varies. There are two ways to fewer tokens per second, and they are
measured side by side. Merging loses nothing and only renames what is there. A neural codec tries to throw away what the
ear does not miss; here it has few steps to learn what that is, and you hear how far it comes. Samples show where
renaming ends: what is noise in part hardly ever repeats itself to the last bit.

What to try. --codes 64: coarser frames repeat more often; do longer words make up for it in bits per second? A folder
of music: which words last longest? --merges 4096: when does a vocabulary become a list of the training files?
"""

import argparse
import dataclasses
import math
import re
from collections import Counter
from itertools import islice
from pathlib import Path

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

END, LONGEST = "<|end|>", 64  # of a document; frames of one token at most
WINDOW = 64  # tokens that the GPT looks back on
SENTENCE = "The tokens of text, the tokens of sound: tokens! In 2024 a token's 16 ms."

Trained = tuple[SequenceModel, list[tuple[int, float]]]  # a model, and (step, held-out bits per second)


def main() -> None:
    parser = LessonParser(__file__, __doc__)
    parser.add_argument("--codes", type=int, default=256, help="V, codes before merging")
    parser.add_argument("--merges", type=int, default=1024, help="codes that merging adds")
    parser.add_argument("--steps", type=int, default=500, help="of training each model")
    args = parser.parse_args()
    if args.short:
        args.codes, args.merges, args.steps = 16, 24, 8
    codec = {
        "weights": "fit",
        "num_codebooks": 1,
        "codebook_size": args.codes,
        **({"fit_steps": 4, "dim": 8, "latent_dim": 4} if args.short else {"fit_steps": 400}),
    }

    # 1. Text first. Then one folder of sound in six ways: samples, typical frames, a codec's frames, plain and merged.
    sections = [letters(30 if args.short else 300)]
    encoded: dict[str, Encoded] = {}
    for name, kind, settings in (
        ("samples", "mulaw", {}),
        ("frames", "melvq", {"num_codebooks": 1, "codebook_size": args.codes}),
        ("codec", "codec", codec),
    ):
        encoded[name] = plain = encode_folder(args.folder, args.out / name, kind, **settings)
        front = BPE.over(plain.frontend, num_merges=args.merges, longest=LONGEST, fit_frames=1_000_000)
        front.learn(plain.training)  # from the codes of the training files alone
        index = dataclasses.replace(plain.cache.index, folder=args.folder)
        cache = EncodedCache.open_or_build(index, front, args.out / f"{name}-merged" / "cache")
        encoded[f"{name}, merged"] = Encoded(front, cache, plain.sides)
    print(encoded["frames"].sides.summary)

    # 2. What merging saves, what its words are, what they are worth to a model, and what that one makes up.
    sections += [ratios(encoded, 2 * args.merges), words(encoded["frames, merged"], args)]
    models = {name: train(way, args.steps) for name, way in encoded.items() if not name.startswith("samples")}
    sections += [rates(encoded, models, args), samples(encoded, models, args)]
    page = write_lesson(__file__, args.out / "index.html", text(f"{encoded['frames'].sides.summary}."), *sections)
    print(f"open {page}")


# 3. Text: the merges, then the pattern that keeps words apart, then special tokens.


def letters(num_merges: int) -> str:
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
        print(f"{name}: {rows[-1][2]:.2f} bytes a token on unseen text, {len(across)} tokens reach across words")
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
            f"The first of {num_merges} merges of {len(training.encode()):,} bytes, the lessons' notes. A dot "
            "is a space: to one who counts pairs it is a letter like any other."
        ),
        table(["new token", "made of", "stands for"], first),
        text(
            f"Merged as one whole, the text gets {rows[0][3]} tokens that begin in one word and end in another: by "
            "these a word is spelt now this way, now that, and a model has to learn each by itself. Cut into pieces "
            "first (GPT-4's pattern: words with the space before them, up to three digits, signs), no merge reaches "
            "across."
        ),
        table(["merged", "bytes per token", "on unseen text", "tokens across words", "the longest of them"], rows),
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
                    ("as anyone's text", split.encode(imitated)),
                    ("special tokens allowed", split.encode(imitated, True)),
                )
            )
        ),
        text(
            f"{END} tells documents apart: one token, which no text can imitate unless it is allowed to. Files of "
            "sound do without: merges never reach from one file into the next."
        ),
    )


# 4. How much shorter? The first n merges of a long list are the list of n merges, so each kind is learned from once.


def ratios(encoded: dict[str, Encoded], most: int) -> str:
    script = np.frombuffer(Path(__file__).read_bytes(), np.uint8)
    kinds = {"this script's bytes": ([script[: len(script) * 9 // 10]], [script[len(script) * 9 // 10 :]], 256)}
    for name in ("frames", "codec", "samples"):
        way, files = encoded[name], 200 if name == "samples" else None
        kinds[name] = (
            *([codes[0].numpy() for codes in islice(side, files)] for side in (way.training, way.held_out)),
            way.spec.codebook_size,
        )
    few, size = kinds["frames"][0][:50], kinds["frames"][2]  # the fast one finds what the readable one finds
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
        print(f"{name}: {shorter[-1]:.2f} times fewer tokens on unseen files after {len(merges)} merges")
    axis.set(xscale="log", xlabel="merges", ylabel="times fewer tokens")
    axis.legend()
    return section(
        "How much shorter",
        picture(
            figure,
            "Compression by number of merges",
            "Tokens before merging over tokens after it; dashed: where the merges were not learned from. Where the two "
            "part, tokens begin to stand for the training files rather than for the language. A dashed line above its "
            "solid one: these held-out files happen to hold more of what repeats.",
        ),
    )


# 5. Where words of sound begin and end, and which they are.


def words(merged: Encoded, args: argparse.Namespace) -> str:
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

    places: dict[int, list[tuple[str, int]]] = {}  # token -> (file, its first sample there)
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
        print(f"token {token}: {1000 * samples / rate:.0f} ms, {len(places[token])} times, chosen for: {why}")
    return section(
        "Words of sound",
        picture(
            figure,
            "Spectrograms with lines where tokens end",
            "Mel spectrograms of held-out files, a line where a token ends. Counting alone makes "
            "long tokens of what holds still and short ones of what moves.",
        ),
        text(
            "Some of the new tokens: those that cover the most time of the training files, times and length together, "
            "and the longest. Each sound below is what a token decodes to, and then recordings of it, each from "
            "another file."
        ),
        table(["token", "chosen for", "ms", "times", "label it occurs in most often"], rows),
        grid(clip_cards(sounds)),
    )


# 6. What is a token worth to a model? The same model, the same number of steps and of tokens a step, in plain sight.


def train(encoded: Encoded, steps: int) -> Trained:
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
    rows, heard, figure = [], [], Figure(figsize=(8, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, way in encoded.items():
        rate = float(way.held_out.num_frames.sum()) / way.frontend.seconds(way.held_out)
        bits = [loss * rate for loss in baselines(way.spec, way.training, way.held_out).values()]
        bits += [None] * (3 - len(bits))  # beyond 4,096 codes no bigram is counted
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
        if "merged" not in name:  # which sounds the same
            (title, wav), path = sound[0], args.out / f"heard-{name}.wav"
            with torch.inference_mode():
                back = way.frontend.decode(way.frontend.encode(wav[None]))[0, :, : wav.shape[1]]
            write_audio(path, back, way.spec.sample_rate)
            heard.append(Clip(path, title, f"through {name}"))
        rows.append([name, way.spec.codebook_size, rate, *bits, trip["mel_distance"]])
        print(
            f"{name}: {rate:.1f} tokens a second; bits per second, uniform, unigram, bigram, GPT: "
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
    lost = min(row[-1] or 0.0 for row in saved[1:]) < 0
    turned = [name for name, (_, curve) in models.items() if min(bits for _, bits in curve) < curve[-1][1]]
    return section(
        "Two answers to one question",
        text(
            f"Throwing away: frames are {rows[0][2] / rows[2][2]:.0f} times fewer than samples, and the distance is "
            "the price. Merging costs no sound: within a pair of rows the distance stays. Frames and a codec's frames "
            "differ in it, so their bits are for different sounds, and do not rank them. (Samples are only counted: "
            f"the {WINDOW} tokens that the GPT looks back on would be {1000 * WINDOW / rows[0][2]:.0f} ms of them.)"
        ),
        table(
            ["", "vocabulary", "tokens per second", "uniform", "unigram", "bigram", "GPT", "mel distance"],
            rows,
            "Bits per second of sound on held-out files, and how far the round trip lies from the original",
        ),
        text("One held-out file, through each of them and back:"),
        grid(clip_cards(heard)),
        text(
            "Who knows nothing of order gains, since order moves into the tokens. Who knows it already pays for a "
            "larger vocabulary, whose entries are met less often each, and gains only where longer tokens let it see "
            "further. "
            + (
                "Models of text are always fed merged tokens; with so few minutes of sound the plain ones "
                "need fewer bits. "
                if lost
                else ""
            )
            + "What merging saves for certain is steps: work, and the reach of a window."
        ),
        table(
            ["", "times fewer tokens", "uniform", "unigram", "bigram", "GPT"],
            saved,
            "% of the bits that merging saves; below 0 it costs some",
        ),
        picture(
            figure,
            "Held-out bits per second by training step",
            "The same model, and steps of as many tokens; the table has the lowest points. Lines of one colour "
            "stand for the same sound. A step of merged tokens is more of the sound. "
            + (
                f"Turned before the end, by learning the files by heart: {'; '.join(turned)}."
                if turned
                else "None has turned: each was best at its last point."
            ),
        ),
    )


# 7. How it sounds, and how many tokens had to be drawn for it.


def samples(encoded: dict[str, Encoded], models: dict[str, Trained], args: argparse.Namespace) -> str:
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
        text("A model draws tokens until the sound is long enough, however many it takes."),
        grid(clip_cards(sounds)),
    )


if __name__ == "__main__":
    raise SystemExit(run_script(main))
