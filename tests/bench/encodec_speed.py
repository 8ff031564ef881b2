"""EnCodec here beside the `encodec` package: speed, and how many codes differ.

    pip install encodec
    python tests/bench/encodec_speed.py [--seconds 10 60] [--rounds 5] [--json FILE]

Both have the same random weights (an untrained codec's, with codebooks filled from sounds) and encode and decode the
same made-up sounds at 6 kbit/s, whole, in turn. The package is used as its README has it, weight norm and all. Printed
are the medians, and the median of the rounds' ratios, of the processor time of one thread, which other work on the
machine disturbs less than it does the clock. Codes are compared in float32; where they differ, the distances in float64
to the two codewords that were chosen say how near to a tie they were.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from encodec_oracle import package_layout, package_model, sounds  # noqa: E402

from audiogen.frontends import load_frontend  # noqa: E402
from audiogen.frontends.encodec.frontend import EnCodec  # noqa: E402

#: For all.py.
SHORT = "--seconds 4 --rounds 1"
NEEDS = ("encodec",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = package_layout(load_frontend("encodec", bandwidth=24.0, weights="random"))
    package = package_model()
    package.load_state_dict(state)
    package.set_target_bandwidth(6.0)
    ours = EnCodec(EnCodec.Config(bandwidth=6.0))
    ours.load_package_state(state)
    with torch.inference_mode():
        rows = [race(ours, package, seconds, args.rounds) for seconds in args.seconds]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


def race(ours: EnCodec, package: torch.nn.Module, seconds: float, rounds: int) -> dict[str, float]:
    """Encodes and decodes in turn; prints a line for each way."""
    wav = sounds(round(24000 * seconds))
    codes = ours.encode(wav)
    [(others, _)] = package.encode(wav)  # both have run once before anything is timed
    package.decode([(others, None)])
    ours.decode(codes)
    times: dict[str, list[float]] = {name: [] for name in ("encode", "decode", "their encode", "their decode")}
    for _ in range(rounds):
        timed(times["encode"], lambda: ours.encode(wav))
        timed(times["their encode"], lambda: package.encode(wav))
        timed(times["decode"], lambda: ours.decode(codes))
        timed(times["their decode"], lambda: package.decode([(codes, None)]))
    differing, margin = ties(ours, wav, codes, others)
    row = {"seconds": seconds, "frames": codes.shape[2], "frames_that_differ": differing, "largest_margin": margin}
    for way in ("encode", "decode"):
        mine, theirs = times[way], times[f"their {way}"]
        row[way] = statistics.median(mine)
        row[f"package_{way}"] = statistics.median(theirs)
        row[f"{way}_ratio"] = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
        print(
            f"{seconds:4.0f} s  {way}: {row[way]:6.2f} s, the package {row[f'package_{way}']:6.2f} s: "
            f"{row[f'{way}_ratio']:.2f} times as fast; {seconds / row[way]:.1f} times real time",
            flush=True,
        )
    print(
        f"{seconds:4.0f} s  {differing} of {codes.shape[2]} frames differ, their two codewords equally near but for "
        f"{margin:.1e} of the squared distance",
        flush=True,
    )
    return row


def ties(ours: EnCodec, wav: torch.Tensor, codes: torch.Tensor, others: torch.Tensor) -> tuple[int, float]:
    """Frames that differ, and the largest relative difference of the two squared distances where they first do."""
    frames = (codes != others).any(1)[0].nonzero()[:, 0].tolist()
    if not frames:
        return 0, 0.0
    exact = EnCodec(ours.config).double()
    exact.load_state_dict(ours.state_dict())
    latent = torch.cat(list(latents(exact, wav.double())), dim=2)[0].T  # (T, D)
    margins = []
    for t in frames:
        row = int((codes[0, :, t] != others[0, :, t]).nonzero()[0])
        left = latent[t] - sum(exact.codebooks[k, codes[0, k, t]] for k in range(row))
        near, other = ((left - exact.codebooks[row, x[0, row, t]]).square().sum() for x in (codes, others))
        margins.append(float((near - other).abs() / near))
    return len(frames), max(margins)


def latents(exact: EnCodec, wav: torch.Tensor):
    state = None
    blocks = wav.split(320 * exact.block_frames, dim=2)
    for i, block in enumerate(blocks):
        z, state = exact.encoder(block, state, i == len(blocks) - 1)
        yield z


def timed(times: list[float], call: Callable) -> None:
    began = time.process_time()
    call()
    times.append(time.process_time() - began)


if __name__ == "__main__":
    main()
