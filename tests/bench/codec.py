"""The shipped codec beside the `encodec` package at 6 kbit/s: speed of encoding and decoding, and of a live stream.

    python tests/bench/codec.py [--seconds 10] [--rounds 5] [--threads 1] [--json FILE]

Both encode and decode as many seconds of noise, in turn, each at its own rate (16 and 24 kHz). The package has random
weights, which its speed does not depend on, and is used as its README has it. Times are of the processor, so that other
work on the machine counts less. The live stream takes chunks of 20 ms one by one, encodes each as soon as it is there
and decodes it at once.
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

from encodec_oracle import package_model  # noqa: E402

from audiogen.frontends import load_frontend  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, package = load_frontend("codec", num_codebooks=12), package_model()
    package.set_target_bandwidth(6.0)
    draws = torch.Generator().manual_seed(0)
    wav, theirs = (0.1 * torch.randn(1, 1, round(rate * args.seconds), generator=draws) for rate in (16000, 24000))
    with torch.inference_mode():
        codes, their_codes = ours.encode(wav), package.encode(theirs)
        ways = {"encode": (lambda: ours.encode(wav), lambda: package.encode(theirs)),
                "decode": (lambda: ours.decode(codes), lambda: package.decode(their_codes))}
        row = {"seconds": args.seconds}
        for way, sides in ways.items():
            times = [[processor_seconds(side) for side in sides] for _ in range(args.rounds + 1)][1:]
            mine, other = (statistics.median(side) for side in zip(*times, strict=True))
            ratio = statistics.median(b / a for a, b in times)
            row |= {way: mine, f"package_{way}": other, f"{way}_ratio": ratio}
            print(f"{way}: {mine:.3f} s, the package {other:.3f} s: {ratio:.1f} times as fast; "
                  f"{args.seconds / mine:.0f} times real time", flush=True)
        chunks = list(wav.split(ours.spec.hop_length, dim=2))
        live = statistics.median(processor_seconds(lambda: stream(ours, chunks)) for _ in range(args.rounds))
    row["live"] = 1000 * live / len(chunks)
    print(f"live: {row['live']:.2f} ms for each chunk of {1000 / ours.spec.frame_rate:g} ms, both ways")
    if args.json:
        args.json.write_text(json.dumps(row, indent=2))


def stream(codec, chunks: list[torch.Tensor]) -> None:
    for _ in codec.decode_stream(codec.encode_stream(chunks, block_frames=1), block_frames=1):
        pass


def processor_seconds(call: Callable) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


if __name__ == "__main__":
    main()
