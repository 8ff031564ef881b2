"""Lesson 7: GPT on audio tokens.

    python recipes/07_gpt.py FOLDER [--out runs/07_gpt] [--frontend codec] [--minutes 6]

What it teaches. Attention lets each step choose which earlier steps matter to it, instead of a fixed set of taps. On
samples that is wasteful, a second is thousands of steps; on the tokens of a codec a second is some fifty frames, and a
few hundred steps of attention reach over whole words and bars.

How it carries over to audio. A neural codec gives several codes a frame, each refining the one before it (residual
vector quantization). Which order does a GPT read them in? The pattern says it: "parallel" draws the K codes of a frame
at once, "flatten" one after the other at K times the steps, and "delay" shifts row k by k steps, so that a code sees
the coarser codes of its own frame at no cost in steps (MusicGen):

    parallel  0 1 2      delay  0 1 2 . .      flatten  0 . 1 . 2 .
              0 1 2             . 0 1 2 .               . 0 . 1 . 2

What to try. --set pattern.kind=parallel: what happens to the bits, and to the sound? --frontend melvq for tokens that
are counted from mel frames, or --frontend encodec (weights are downloaded, CC-BY-NC).
"""

import argparse
from pathlib import Path

from audiogen.scripts import run_script
from audiogen.training.metrics import read_metrics
from audiogen.training.session import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/07_gpt"))
    parser.add_argument("--frontend", default="codec", help="codec, melvq, encodec, or a folder that holds one")
    parser.add_argument("--minutes", type=float, default=6.0, help="training time of the GPT")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=1")
    args = parser.parse_args()

    run = train(args.folder, args.out, frontend=args.frontend, backbone="gpt", minutes=args.minutes, resume=args.resume,
                overrides=args.overrides)

    spec, model = run.frontend.spec, run.model
    print(f"\n{spec.frame_rate:.1f} frames a second of {spec.num_codebooks} codes of {spec.codebook_size}: "
          f"{spec.bitrate / 1000:.2f} kbit/s before the model predicts any of it")
    steps = model.pattern.num_steps(round(spec.frame_rate))
    print(f"pattern {run.config.pattern}: {steps} steps for a second of sound")
    print(f"each layer sees {model.backbone.config.window} steps, all of them together {model.receptive_seconds:.1f} s")
    print(f"parameters: {sum(p.numel() for p in model.parameters()):,}")
    final = [event for event in read_metrics(args.out) if event["event"] == "final"][-1]
    print(f"held-out bits per second: {final['bits_per_second']:.0f}; by counting: "
          + ", ".join(f"{name} {counted['bits_per_second']:.0f}" for name, counted in final["baselines"].items()))
    print(f"listen: {args.out / 'index.html'}")


if __name__ == "__main__":
    raise SystemExit(run_script(main))
