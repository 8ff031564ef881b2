"""One long file is encoded in memory that does not grow with it: what `audiogen tokenize` does with hours of sound.

    python tests/bench/long_file.py [--hours 2] [--limit 150] [--frontends mulaw mel codec encodec] [--json FILE]

For each front-end a process of its own encodes one WAV of noise, scanning included, and watches its anonymous memory as
memory_of_a_folder.py does (Linux only): the imports, the front-end's weights and the work. The work takes at most
`--limit` MiB. EnCodec's weights are random ones: they do not change what memory is needed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory_of_a_folder import Watch, anonymous, make_folder

#: For all.py.
SHORT = "--hours 0.05"


def measure(kind: str, hours: float, place: str | None) -> dict[str, float]:
    import torch

    from audiogen.data import EncodedCache, scan
    from audiogen.frontends import FRONTENDS, load_frontend

    torch.set_num_threads(1)
    settings = {"weights": "random"} if kind == "encodec" else {}
    frontend = load_frontend(kind, **FRONTENDS[kind].at_rate(settings, 16_000))
    rate = frontend.spec.sample_rate
    if not frontend.fitted:
        frontend.fit([0.1 * torch.randn(1, 2 * rate) for _ in range(2)])
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder = Path(temporary) / "sound"
        make_folder(folder, hours, rate, hours * 3600)
        before, watch, began = anonymous(), Watch(), time.perf_counter()
        cache = EncodedCache.build(scan(folder, progress=False), frontend, Path(temporary) / "cache", progress=False)
        return {
            "frontend": kind,
            "hours": hours,
            "before_mib": before,
            "highest_mib": watch.highest,
            "seconds": time.perf_counter() - began,
            "frames": cache.files[0].num_frames,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=2)
    parser.add_argument("--limit", type=float, default=150, help="MiB that the work may take")
    parser.add_argument("--frontends", nargs="+", default=["mulaw", "mel", "codec", "encodec"])
    parser.add_argument("--place", help="where the file is made (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.hours, args.place)))
        return
    rows = []
    for kind in args.frontends:
        command = [sys.executable, __file__, "--measure", kind, "--hours", str(args.hours)]
        done = subprocess.run(
            command + (["--place", args.place] if args.place else []), check=True, stdout=subprocess.PIPE
        )
        row = json.loads(done.stdout)
        rows.append(row)
        print(
            f"{kind:8} {args.hours:g} h: {row['before_mib']:.0f} MiB before, {row['highest_mib']:.0f} MiB at most, "
            f"{row['seconds']:.0f} s, {row['frames']} frames",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    sys.exit(any(row["highest_mib"] - row["before_mib"] > args.limit for row in rows))


if __name__ == "__main__":
    main()
