"""The own codec's speed: beside the `encodec` package at 6 kbit/s, and as a live stream.

    pip install encodec
    python tests/bench/codec_speed.py [--codec codec] [--seconds 10] [--rounds 5] [--json FILE]

Both encode and decode as many seconds of sound, each at its own rate (the package at 24 kHz), whole, in turn in one
process on one thread. Speeds do not depend on what the weights are: the package has its untrained ones. Printed are the
medians of the processor time, and the median of the rounds' ratios. Then a stream of chunks of one frame goes through
encoder and decoder; its figure is the time that a frame took beside the time that it lasts, of the slowest in a hundred
frames, too.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from audiogen.frontends import Frontend, load_frontend

#: For all.py.
SHORT = "--seconds 3 --rounds 1"
NEEDS = ("encodec",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default="codec")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec = load_frontend(args.codec)
    codec = load_frontend(args.codec, num_codebooks=round(6000 * codec.spec.num_codebooks / codec.spec.bitrate))
    with torch.inference_mode():
        figures = race(codec, args.seconds, args.rounds) | live(codec, args.seconds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


def race(codec: Frontend, seconds: float, rounds: int) -> dict[str, float]:
    """Encodes and decodes in turn with the package."""
    from encodec import EncodecModel

    with warnings.catch_warnings():  # torch has a newer weight norm
        warnings.simplefilter("ignore")
        package = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    package.set_target_bandwidth(6.0)
    wav, theirs = (0.1 * torch.randn(1, 1, round(seconds * rate)) for rate in (codec.spec.sample_rate, 24_000))
    codes, their_codes = codec.encode(wav), package.encode(theirs)
    calls: dict[str, Callable] = {
        "encode": lambda: codec.encode(wav),
        "package_encode": lambda: package.encode(theirs),
        "decode": lambda: codec.decode(codes),
        "package_decode": lambda: package.decode(their_codes),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + 1):  # the first is not counted
        for name, call in calls.items():
            began = time.process_time()
            call()
            if round_number:
                times[name].append(time.process_time() - began)
    figures = {name: statistics.median(values) for name, values in times.items()}
    for way in ("encode", "decode"):
        figures[f"{way}_ratio"] = statistics.median(
            b / a for a, b in zip(times[way], times[f"package_{way}"], strict=True)
        )
        print(
            f"{way} {seconds:g} s: {1000 * figures[way]:.0f} ms, the package "
            f"{1000 * figures[f'package_{way}']:.0f} ms: {figures[f'{way}_ratio']:.1f} times as fast; "
            f"{seconds / figures[way]:.0f} times real time",
            flush=True,
        )
    print(f"(the codec at {codec.spec.bitrate / 1000:.2f} kbit/s and {codec.spec.sample_rate} Hz)")
    return figures


def live(codec: Frontend, seconds: float) -> dict[str, float]:
    """A stream of one frame at once."""
    hop, rate = codec.spec.hop_length, codec.spec.sample_rate
    count = round(seconds * rate / hop)
    chunks = (0.1 * torch.randn(1, 1, count * hop)).split(hop, dim=2)
    list(codec.decode_stream(codec.encode_stream(iter(chunks[:20]), block_frames=1), block_frames=1))
    took, began = [], time.process_time()
    for _ in codec.decode_stream(codec.encode_stream(iter(chunks), block_frames=1), block_frames=1):
        took.append(time.process_time() - began)
        began = time.process_time()
    frame = hop / rate
    figures = {
        "latency_ms": codec.latency_ms,
        "frame_ms": 1000 * frame,
        "real_time_factor": statistics.median(took) / frame,
        "slowest_of_100": sorted(took)[round(0.99 * (len(took) - 1))] / frame,
    }
    print(
        f"live, in chunks of {1000 * frame:g} ms: {figures['real_time_factor']:.3f} of real time (the slowest in a "
        f"hundred: {figures['slowest_of_100']:.3f}); algorithmic latency {codec.latency_ms:g} ms"
    )
    return figures


if __name__ == "__main__":
    main()
