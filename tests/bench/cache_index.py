"""How long a cache of a million files takes to open and split, how much memory, and where the crops of a batch lie.

    python tests/bench/cache_index.py [--files 1000000] [--place FOLDER]

The files are made up: rows of random hashes and lengths, and a data.bin full of zeros. It fails beyond the limits of
one second of the processor's time, 200 MiB and one millisecond.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

#: For all.py.
SHORT = "--files 50000"

FRAMES = (50, 400)


def make(folder: Path, num_files: int) -> None:
    """Write a cache of so many made-up files."""
    from audiogen.data import cache_index
    from audiogen.data.cache_index import CachedFiles, Columns, Record
    from audiogen.data.columns import ROW, write_columns
    from audiogen.frontends import load_frontend, save_frontend

    rng, frontend = np.random.default_rng(0), load_frontend("mulaw", sample_rate=8000)
    rows = np.zeros(num_files, ROW)
    for name in ("sha256", "sound"):
        rows[name] = rng.integers(256, size=(num_files, 32), dtype=np.uint8)
    for name in ("samples", "num_samples", "num_frames"):
        rows[name] = rng.integers(*FRAMES, size=num_files) if name == "samples" else rows["samples"]
    rows["sample_rate"], rows["num_channels"], rows["rms"], rows["peak"] = 8000, 1, 0.1, 0.5
    names = [b"speaker-%04d/recording-%08d.wav" % (i % 4096, i) for i in range(num_files)]
    rows["path_end"] = rows["note_end"] = np.cumsum([len(name) for name in names])
    texts, total = b"".join(names), int(rows["num_frames"].sum())
    folder.mkdir(parents=True)
    with open(folder / "data.bin", "wb") as data:
        data.truncate(total)
    save_frontend(frontend, folder)
    write_columns(folder, rows, texts)
    files = CachedFiles(Columns(folder))
    cache_index._pack = lambda files: (rows, texts)
    Record(frontend.fingerprint(), frontend.spec.storage_dtype, [total, 1], "", files, [], 0).write(folder)


def resident() -> float:
    """Memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(folder: Path) -> dict[str, float]:
    """Open the cache, split it, and locate the crops of a hundred batches."""
    from audiogen.data import Crops, EncodedCache, split

    EncodedCache.open  # noqa: B018
    before = resident()
    start, started = time.perf_counter(), time.process_time()
    cache = EncodedCache.open(folder)
    opened, computed = time.perf_counter() - start, time.process_time() - started
    memory = resident() - before
    sides = split(cache.index)
    crops = Crops(cache, sides.train, 200, 64)
    ready = time.perf_counter() - start
    times = []
    for step in range(100):
        rng = np.random.default_rng(step)
        start = time.perf_counter()
        pieces = [crops._pieces(corpus, frame, rng) for corpus, frame in crops._draw(rng)]
        times.append(time.perf_counter() - start)
        assert len(pieces) == 64
    return {
        "open_seconds": opened,
        "open_cpu_seconds": computed,
        "open_mib": memory,
        "crops_ready_seconds": ready,
        "crops_ready_mib": resident() - before,
        "locate_batch_ms": 1000 * float(np.median(times)),
        "held_out": len(sides.held_out),
    }


def main() -> None:
    """Make the cache and measure it, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--place", help="folder for the cache (default: a temporary one)")
    parser.add_argument("--step", choices=["make", "measure"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.place) as temporary:
        folder = Path(args.place if args.step else temporary, "cache")
        if args.step == "make":
            make(folder, args.files)
            return
        if args.step == "measure":
            print(json.dumps(measure(folder)))
            return
        command = [sys.executable, __file__, "--files", str(args.files), "--place", temporary, "--step"]
        subprocess.run([*command, "make"], check=True)
        done = subprocess.run([*command, "measure"], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        for name, value in found.items():
            print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value:,}")
        for name, limit in {"open_cpu_seconds": 1.0, "open_mib": 200.0, "locate_batch_ms": 1.0}.items():
            assert found[name] < limit, f"{name}: {found[name]:.3g}, at most {limit:g}"


if __name__ == "__main__":
    main()
