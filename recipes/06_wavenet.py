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

What to try. More layers or fewer (--set backbone.num_layers=10, or backbone.dilation_cycle=5): how many bits does a
shorter receptive field cost, and what is lost from the sound first? Longer training (--minutes 60): the far past pays
late. Draw with less chance: audiogen generate runs/06_wavenet/run --out drawn --temperature 0.9
"""

import argparse
import math
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from audiogen.audio import read_audio, write_audio
from audiogen.backbones.wavenet import WaveNet
from audiogen.data import encode_folder
from audiogen.evaluation.yardstick import held_out_score
from audiogen.generate import generate
from audiogen.layers import CausalConv
from audiogen.listen import Clip, clip_cards, grid, note, picture, section, table, text, write_document
from audiogen.model import SequenceModel
from audiogen.patterns import Parallel
from audiogen.scripts import run_script
from audiogen.training.metrics import read_metrics
from audiogen.training.session import train

#: Ten layers whose gaps begin again after 2, 7 or 10 of them: equal in parameters and time, unlike in what they see.
#: The first has one layer only, as wide as makes its parameters as many.
RUNGS = (WaveNet.Config(dim=64, residual_dim=118, num_layers=1, dilation_cycle=1),
         *(WaveNet.Config(dim=64, residual_dim=32, num_layers=10, dilation_cycle=cycle) for cycle in (2, 7, 10)))


def tree(x: Tensor, levels: list[CausalConv]) -> Tensor:
    """Fuses pairs of neighbours, then pairs of these: (B, 2 ** len(levels), D) -> (B, D). (makemore, part 5)"""
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


def work(compute, x: Tensor, levels: list[CausalConv]) -> tuple[Tensor, int, float]:
    """-> the result, how many pairs were fused for it, and seconds."""
    fused = []
    hooks = [level.linear.register_forward_hook(lambda _, __, y: fused.append(y[..., 0].numel())) for level in levels]
    began = time.perf_counter()
    y = compute(x, levels)
    seconds = time.perf_counter() - began
    for hook in hooks:
        hook.remove()
    return y, sum(fused), seconds


def periodicity(wav: Tensor, rate: int) -> float:
    """How much of a sound (N,) comes again after one period of a voice (60 to 400 Hz): near 0 noise, 1 a held note.

    The highest autocorrelation in windows of 40 ms, each counting by its energy.
    """
    size = round(0.04 * rate)
    x = wav.unfold(0, size, size // 2)
    x = x - x.mean(dim=1, keepdim=True)
    r = torch.fft.irfft(torch.fft.rfft(x, 2 * size).abs().square())     # (windows, lags)
    lags = torch.arange(rate // 400, rate // 60)
    r, energy = r[:, lags] / (1 - lags / size), r[:, 0]
    return float(r.amax(dim=1).sum() / energy.sum().clamp(min=1e-9))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of sound files")
    parser.add_argument("--out", type=Path, default=Path("runs/06_wavenet"))
    parser.add_argument("--short", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of the large model")
    parser.add_argument("--steps", type=int, default=1000, help="of training each small one")
    parser.add_argument("--resume", action="store_true", help="go on with the large model where it was stopped")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=1",
                        help="any setting of the large model")
    args = parser.parse_args()
    seconds, steps, crop = (0.05, 3, 256) if args.short else (1.0, args.steps, 2048)

    # 1. The tree over eight samples, and the same weights as three convolutions: one function, computed in two orders.
    torch.manual_seed(0)
    levels = [CausalConv(16, 16, kernel_size=2, dilation=2 ** level).double() for level in range(3)]
    x = torch.randn(1, 100, 16, dtype=torch.float64)
    last = float((tree(x[:, -8:], levels) - stack(x, levels)[:, -1]).abs().max())
    every = float((trees(x, levels) - stack(x, levels)[:, 7:]).abs().max())
    assert max(last, every) < 1e-12
    print(f"a tree over 8 samples and convolutions with gaps 1, 2, 4: at the last step they differ by {last:.1e}, at any "
          f"of {x.shape[1] - 7} steps by {every:.1e}")
    levels = [CausalConv(16, 16, kernel_size=2, dilation=2 ** level) for level in range(10)]
    x = torch.randn(1, 1023 + 512, 16)
    by_trees, by_stack = work(trees, x, levels), work(stack, x, levels)
    assert torch.allclose(by_trees[0], by_stack[0][:, 1023:], atol=1e-5)
    print(f"512 predictions from 1,024 samples each: {by_trees[1]:,} pairs fused by trees in {by_trees[2]:.3f} s, "
          f"{by_stack[1]:,} by convolutions in {by_stack[2]:.3f} s")
    work_rows = [["a tree for each prediction", *by_trees[1:]], ["convolutions for all steps", *by_stack[1:]]]

    # 2. WaveNet adds gates, residuals and skips to it. The library trains one; its page is in OUT/run.
    place = args.out / "run"
    small = ["backbone.dim=16", "backbone.residual_dim=8", "training.crop_frames=256"] if args.short else []
    with torch.enable_grad():
        run = train(args.folder, place, frontend="mulaw", backbone="wavenet", resume=args.resume,
                    minutes=None if args.short else args.minutes, steps=steps if args.short else None,
                    overrides=["training.evaluations=8", f"training.sample_seconds={seconds}", *small, *args.overrides])
    rate = run.sample_rate
    final = [event for event in read_metrics(place) if event["event"] == "final"][-1]
    bits = {name: counted["loss"] for name, counted in final["baselines"].items()}
    print("\nbits per held-out sample by counting: " + ", ".join(f"{name} {loss:.3f}" for name, loss in bits.items()))

    # 3. Small ones under one budget, which see ever more of the past.
    encoded = encode_folder(args.folder, place, place)                  # what the run has encoded, with its front-end
    frontend, held_out = encoded.frontend, encoded.held_out
    crops = encoded.crops(num_frames=crop, batch_size=1)
    rows, wavs = [], {}
    for config in RUNGS:
        torch.manual_seed(0)
        model = SequenceModel(encoded.spec, WaveNet(config), Parallel(1))
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
        began = time.perf_counter()
        for step in range(steps):
            x, _ = crops.batch(step)                                    # (1, 1, 2048)
            with torch.enable_grad():
                nats, entries = model.nll(x)
                (nats / entries).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * min((step + 1) / 20, 1 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
        spent = time.perf_counter() - began
        codes = generate(model, round(seconds * rate), batch_size=2, seeds=[0, 1])
        name = label(model, rate)
        wavs[name] = frontend.decode(codes)[:, 0]                       # (2, N)
        rows.append([name, model.backbone.receptive_field, held_out_score(model, held_out).loss,
                     sum(p.numel() for p in model.parameters()), spent])
        print(f"{name}: {rows[-1][2]:.3f} bits per sample after {steps} steps, {spent:.0f} s, "
              f"{rows[-1][3]:,} parameters")
    name = f"{label(run.model, rate)}, {sum(p.numel() for p in run.model.parameters()):,} parameters"
    generated = sorted((place / "samples").glob("generated-*.wav"))
    wavs[name] = torch.cat([read_audio(path) for path in generated])
    rows.append([name, run.model.backbone.receptive_field, final["loss"],
                 sum(p.numel() for p in run.model.parameters()), None])
    print(f"{name}: {final['loss']:.3f} bits per sample")

    # 4. How much of the sound has a pitch? A number, and the loudest 40 ms of each as a picture.
    originals = [frontend.decode(x[None])[0, 0] for x in list(held_out)[:40]]
    periodic = {"held-out files": sum(map(lambda wav: periodicity(wav, rate), originals)) / len(originals)} | {
        name: sum(periodicity(wav, rate) for wav in wavs[name]) / len(wavs[name]) for name in wavs}
    for name, value in periodic.items():
        print(f"periodicity {value:.2f}: {name}")
    print(periodic, rows, work_rows, Clip, clip_cards, grid, note, picture, section, table, text, write_document, Figure, math, write_audio)


def label(model: SequenceModel, rate: int) -> str:
    samples = model.backbone.receptive_field
    return f"{samples:,} samples, {1000 * samples / rate:.3g} ms"


if __name__ == "__main__":
    raise SystemExit(run_script(main))
