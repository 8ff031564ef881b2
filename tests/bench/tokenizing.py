"""What encoding in processes costs: seconds, and the processor's seconds of all processes together.

    python tests/bench/tokenizing.py FOLDER [--frontend mulaw] [--workers 1 2] [--ray] [--shard-seconds 30]

Each number of processes encodes the folder into a cache of its own, after it has been scanned. It fails unless all
caches have the same bytes. The processor's time does not depend on what else the machine does; that of Ray's processes
is not counted.
"""

import argparse
import hashlib
import resource
import tempfile
import time
from pathlib import Path

from audiogen.data import EncodedCache, frontend_for, long_enough, scan, shards, split
from audiogen.data.pipeline import fit_to

#: For all.py.
SHORT = "{sounds}"


def processor() -> float:
    """Seconds of the processor that this process and those that it has waited for have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Encode the folder in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--frontend", default="mulaw")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ray", action="store_true", help="also on a Ray cluster that is started here")
    parser.add_argument("--shard-seconds", type=float, default=30.0)
    args = parser.parse_args()
    shards.SHORTEST = args.shard_seconds
    index = scan(args.folder)
    frontend = frontend_for(index, args.frontend, {})
    fit_to(frontend, index, split(long_enough(index, frontend.spec)))
    minutes = index.seconds / 60
    print(f"{len(index.files)} files, {minutes:.1f} min, {len(shards.plan_shards(index, frontend))} shards")
    sums = set()
    ways = [(f"{workers} processes" if workers > 1 else "1 process", {"workers": workers}) for workers in args.workers]
    for name, options in [*ways, *([("Ray", {"ray": "auto"})] if args.ray else [])]:
        with tempfile.TemporaryDirectory() as temporary:
            start, used = time.perf_counter(), processor()
            cache = EncodedCache.build(index, frontend, Path(temporary, "cache"), progress=False, **options)
            seconds, used = time.perf_counter() - start, processor() - used
            sums.add(hashlib.sha256((cache.folder / "data.bin").read_bytes()).hexdigest())
        print(f"{name}: {seconds:.1f} s, processor {used:.1f} s")
    assert len(sums) == 1, "the caches differ"


if __name__ == "__main__":
    main()
