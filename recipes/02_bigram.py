"""Lesson 2: the bigram. Which sound follows which?

    python recipes/02_bigram.py FOLDER [--out runs/02_bigram]

What it teaches. The smallest language model is a table: count how often each token follows each other token, divide by
the row's sum, and the rows are distributions to draw from. Its loss, the mean of -log2 p(next | present), is the first
rung that every later model has to beat.

How it carries over to audio. Text comes in characters; sound must be cut into tokens first. Here a mel spectrogram is
cut into frames of 16 ms and each frame is replaced by the nearest of V typical frames (k-means), so a recording becomes
a sequence of numbers as a word is one of letters. The bigram then knows how one 16 ms slice leads to the next, and
nothing more: samples have the right colour and no words.

What to try. More typical frames (--codes 1024): does the loss get better or worse, and why can't you compare it?
Another folder: music repeats more than speech, so how far below the unigram does its bigram come?
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt

from audiogen.audio import write_audio
from audiogen.backbones import Bigram as BigramBackbone
from audiogen.data import encode_folder
from audiogen.evaluation.yardstick import baselines, held_out_score
from audiogen.listen import Clip, clip_cards, grid, note, picture, section, table, text, write_document
from audiogen.model import SequenceModel
from audiogen.patterns import Parallel
from audiogen.sampling import uniforms
from audiogen.scratch.counting import Bigram
from audiogen.scripts import run_script

matplotlib.use("Agg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/02_bigram"))
    parser.add_argument("--short", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--codes", type=int, default=256, help="V, how many typical frames")
    parser.add_argument("--steps", type=int, default=400, help="of training the same table by gradient")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each sample")
    args = parser.parse_args()

    # 1. Sound to tokens. What is learned (the typical frames) is learned from the training files alone.
    encoded = encode_folder(args.folder, args.out, "melvq", codebook_size=args.codes)
    frontend, spec = encoded.frontend, encoded.spec
    training, held_out = encoded.training, encoded.held_out
    print(encoded.sides.summary)
    print(f"{spec.frame_rate:.1f} tokens per second, each one of {spec.codebook_size}")

    # 2. Count. A row of the table, divided by its sum, is what follows one token.
    counted = Bigram(spec.codebook_size)
    for codes in training:
        counted.add(codes[0].numpy())
    probabilities = counted.probabilities()                             # (V, V)
    bits = baselines(spec, training, held_out)
    for name, loss in bits.items():
        print(f"{name:>8}: {loss:.3f} bits per token on held-out files")

    # 3. Draw: begin with a token as often as it occurs, then follow the table.
    sounds = []
    for seed in range(3):
        draws = uniforms([seed], 0, math.ceil(args.seconds * spec.frame_rate), 1)[0, :, 0].numpy()
        codes = [int(np.searchsorted(counted.unigram.probabilities().cumsum(), draws[0]))]
        for u in draws[1:]:
            codes.append(int(np.searchsorted(probabilities[codes[-1]].cumsum(), u).clip(max=args.codes - 1)))
        path = args.out / f"counted-{seed}.wav"
        with torch.inference_mode():
            write_audio(path, frontend.decode(torch.tensor(codes)[None, None])[0], spec.sample_rate)
        sounds.append(Clip(path, f"Sample {seed}", "drawn from the table"))
    for i in range(2):
        path = args.out / f"held-out-{i}.wav"
        with torch.inference_mode():
            write_audio(path, frontend.decode(held_out[i][None])[0], spec.sample_rate)
        sounds.insert(i, Clip(path, held_out.names[i], "held-out file, through the tokens and back"))

    # 4. The same table learned by gradient: an embedding times a linear layer. With dim >= V it can hold every entry,
    #    so it should come to the loss of counting, and it does.
    torch.manual_seed(0)
    model = SequenceModel(spec, BigramBackbone(BigramBackbone.Config(dim=spec.codebook_size)), Parallel(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    crops = encoded.crops(num_frames=256, batch_size=32)
    curve = []
    for step in range(args.steps):
        x, _ = crops.batch(step)                                        # (32, 1, 256)
        nats, entries = model.nll(x)
        loss = nats / entries
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / args.steps)
        optimizer.step()
        curve.append(loss.item() / math.log(2))
    learned = held_out_score(model, held_out).loss
    print(f" learned: {learned:.3f} bits per token after {args.steps} steps")

    # 5. The page: the table as a picture, its rows and columns sorted by loudness.
    typical = frontend.quantizer.decode(torch.arange(args.codes)[None, None])[0]        # (F, V)
    order = np.argsort(typical.mean(dim=0).numpy())
    figure, axes = plt.subplots(figsize=(6, 5.5), layout="constrained")
    image = axes.imshow(np.log10(probabilities[order][:, order] + 1e-6), origin="lower", cmap="magma")
    axes.set(xlabel="next token (quiet to loud)", ylabel="present token (quiet to loud)")
    figure.colorbar(image, label="log10 p(next | present)")
    rows = [[name, loss, loss * spec.frame_rate] for name, loss in [*bits.items(), ("learned by gradient", learned)]]
    page = write_document(
        args.out / "index.html", "Lesson 2: the bigram",
        note(__doc__), text(f"{encoded.sides.summary}. {spec.frame_rate:.1f} tokens per second, each one of "
                            f"{spec.codebook_size}."),
        section("What follows what", picture(figure, "Matrix of transition probabilities",
                "Bright cells are likely transitions. The diagonal: most slices are followed by one like themselves.")),
        section("How good", table(["model", "bits per token", "bits per second"], rows)),
        section("How it sounds", grid(clip_cards(sounds))))
    print(f"open {page}")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
