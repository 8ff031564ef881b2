"""How long it takes to examine many small files, and how much memory.

    python tests/bench/scan.py [--files 100000] [--place FOLDER]

The files of made-up noise, 0.1 s each, are written first. Then a process of its own examines them. It fails beyond
three minutes of the processor's time per 100,000 files, or 500 MiB.
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
SHORT = "--files 1000"

sys.path.insert(0, str(Path(__file__).parents[1]))


def make(folder: Path, num_files: int) -> None:
    """Write the files, a thousand in a folder."""
    from folders import write_wav

    rng = np.random.default_rng(0)
    for number in range(num_files):
        write_wav(folder / f"{number // 1000:04d}" / f"{number:08d}.wav", rng.uniform(-0.5, 0.5, 800))


def measure(folder: Path) -> dict[str, float]:
    """Examine the files."""
    from audiogen.data import scan

    start, used = time.perf_counter(), time.process_time()
    index = scan(folder, progress=False)
    return {
        "files": len(index.files),
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - used,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Write the files and examine them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--place", help="folder for the files (default: a temporary one)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.place))))
        return
    with tempfile.TemporaryDirectory(dir=args.place) as temporary:
        make(Path(temporary), args.files)
        command = [sys.executable, __file__, "--place", temporary, "--measure"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(", ".join(f"{name} {value:,.1f}" for name, value in found.items()), flush=True)
    assert found["files"] == args.files and found["peak_mib"] < 500, "too much memory"
    assert found["processor_seconds"] < 180 * args.files / 100_000, "too slow"


if __name__ == "__main__":
    main()
