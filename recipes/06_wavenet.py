"""Lesson 6: WaveNet, sound one sample at a time.

    python recipes/06_wavenet.py FOLDER [--out runs/06_wavenet] [--minutes 8]

What it teaches. A model that reads the wave itself must look far back: at 8,000 samples a second, a tenth of a second
is 800 steps. A layer with a gap (dilation) between its two taps sees twice as far as the one below it for the same
work, so ten layers with gaps 1, 2, 4 ... 512 see 1,024 samples:

    layer 3, gap 4   o . . . o
    layer 2, gap 2       o . o
    layer 1, gap 1         o o      -> predicts the next sample

How it carries over to audio. It was made for audio. Samples are cut into 256 levels, finer near silence (mu-law), and
each is predicted as one of 256 classes, exactly like characters. Bits per sample then mean what they say: no front-end
throws anything away but the rounding to 256 levels.

What to try. Fewer layers (--set backbone.num_layers=10, or dilation_cycle=5): how many bits does the shorter receptive
field cost, and what is lost from the sound first? Draw with less chance: audiogen generate RUN --temperature 0.9
"""

import argparse
from pathlib import Path

from audiogen.scripts import run_script
from audiogen.training.metrics import read_metrics
from audiogen.training.session import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/06_wavenet"))
    parser.add_argument("--minutes", type=float, default=8.0, help="training time")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=1")
    args = parser.parse_args()

    # Two seconds of samples: each is drawn by itself, so a second of sound takes thousands of steps.
    run = train(args.folder, args.out, frontend="mulaw", backbone="wavenet", minutes=args.minutes, resume=args.resume,
                overrides=["training.sample_seconds=2", *args.overrides])

    backbone, rate = run.model.backbone, run.sample_rate
    dilations = [gate.dilation for gate in backbone.gates]
    print(f"\ndilations {dilations}\nreceptive field: 1 + {sum(dilations)} = {backbone.receptive_field} samples, "
          f"{1000 * backbone.receptive_field / rate:.0f} ms at {rate} Hz")
    print(f"parameters: {sum(p.numel() for p in run.model.parameters()):,}")
    final = [event for event in read_metrics(args.out) if event["event"] == "final"][-1]
    print(f"held-out bits per sample: {final['loss']:.3f}; by counting: "
          + ", ".join(f"{name} {counted['loss']:.3f}" for name, counted in final["baselines"].items()))
    print(f"listen: {args.out / 'index.html'}")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
