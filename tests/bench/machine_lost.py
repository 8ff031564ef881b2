"""A machine of a Ray cluster is switched off while it encodes, at random moments: what is lost, and what it costs.

    python tests/bench/machine_lost.py [--files 2000] [--seconds 0.5] [--losses 5] [--seed 0] [--frontend mulaw]

Made-up files are encoded by one process, by two, by a cluster of two machines of one CPU each on this machine, and then
by the cluster once per loss, of which one machine is replaced after each. It fails unless all caches have the same
bytes. The seconds include what starts the processes.
"""

import argparse
import hashlib
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])

import ray  # noqa: E402
from folders import noise, write_wav  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from audiogen.data import EncodedCache, frontend_for, long_enough, scan, shards, split  # noqa: E402
from audiogen.data.pipeline import fit_to  # noqa: E402

#: For all.py.
SHORT = "--files 300 --losses 1"
NEEDS = ("ray",)

SMALL = {"object_store_memory": 80 * 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each file")
    parser.add_argument("--losses", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frontend", default="mulaw")
    parser.add_argument("--shard-seconds", type=float, default=10.0)
    args = parser.parse_args()
    shards.SHORTEST, rng = args.shard_seconds, random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "sounds")
        for number in range(args.files):
            length = round(8000 * args.seconds * rng.uniform(0.5, 1.5))
            write_wav(folder / f"{number:05d}.wav", np.float32(noise(number, length)))
        index = scan(folder, progress=False)
        frontend = frontend_for(index, args.frontend, {})
        fit_to(frontend, index, split(long_enough(index, frontend.spec)))
        planned = shards.plan_shards(index, frontend)
        print(f"{len(index.files)} files, {index.seconds / 60:.1f} min, {len(planned)} shards", flush=True)

        def encode(name: str, **options: Any) -> tuple[float, str]:
            out = Path(temporary, name)
            began = time.perf_counter()
            cache = EncodedCache.build(index, frontend, out, progress=False, **options)
            seconds = time.perf_counter() - began
            assert len(cache) == len(index.files), "files were lost"
            digest = hashlib.sha256()
            for path in sorted(out.rglob("*")):
                if path.is_file():
                    digest.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
            return seconds, digest.hexdigest()

        alone, expected = encode("one", workers=1)
        print(f"1 process: {alone:.1f} s", flush=True)
        seconds, found = encode("two", workers=2)
        assert found == expected
        print(f"2 processes: {seconds:.1f} s", flush=True)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
        machines = [cluster.add_node(num_cpus=1, **SMALL) for _ in range(2)]
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        seconds, found = encode("cluster", ray="auto")
        assert found == expected
        print(f"Ray, two machines: {seconds:.1f} s", flush=True)
        for loss in range(args.losses):
            out, when, lost = Path(temporary, f"loss-{loss}"), rng.randrange(len(planned) - 2), []

            def switch_off(out: Path = out, when: int = when, lost: list = lost) -> None:
                while (done := len(list(out.glob(".shards/*.json")))) <= when:
                    time.sleep(0.001)
                cluster.remove_node(machines.pop(rng.randrange(2)), allow_graceful=False)
                lost.append(done)

            killer = threading.Thread(target=switch_off, daemon=True)
            killer.start()
            seconds, found = encode(out.name, ray="auto")
            killer.join(60)
            assert lost, "the job was over before the machine was lost"
            assert found == expected, "the caches differ"
            print(f"lost after {lost[0]} of {len(planned)} shards: {seconds:.1f} s, the same bytes", flush=True)
            machines.append(cluster.add_node(num_cpus=1, **SMALL))
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
