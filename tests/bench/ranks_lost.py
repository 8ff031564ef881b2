"""A process of a training run is killed at random moments: what is lost, and how long it takes to go on.

    python tests/bench/ranks_lost.py [--kills 20] [--ranks 4] [--steps 12] [--seed 0]

A small GPT is trained with a checkpoint after each step: by one process, and once per kill by several, of which one is
killed; the others end with one line, and all are started again, as torchrun does. Half of the runs have whole weights
on each process, half share them out (FSDP2, `distributed.kind=sharded`). It fails unless all end with the weights,
averages, optimizer and reported losses of the one process, and each death was reported in a single line. Then it does
the same with a rank that hangs, one whose loss is not a number, and one that is sent SIGTERM.
"""

import argparse
import random
import signal
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from loops import events  # noqa: E402
from ranks import Faulty, Poisoned, Ranks, reports, train_walks  # noqa: E402

from audiogen.runs.training_config import DistributedConfig  # noqa: E402
from audiogen.training.checkpoint import load_checkpoint  # noqa: E402
from audiogen.utils.tensors import hash_tensors  # noqa: E402

#: For all.py.
SHORT = "--kills 1"

#: A quarter of each weight fills whole vectors, in which AdamW rounds in one way alone.
SIZE, ACCUMULATION = 64, 4


def ended_with(folder: Path) -> tuple:
    """Return the step, the hashes of all tensors of the newest checkpoint, and the reported losses."""
    newest = load_checkpoint(folder / "checkpoints")
    said = [
        {name: value for name, value in event.items() if name != "seconds"}
        for kind in ("train", "held_out")
        for event in events(folder, kind)
    ]
    return newest.step, {name: hash_tensors(some) for name, some in newest.tensors.items()}, said


def main() -> None:
    """Train alone, then with a kill in each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        kinds = {kind: DistributedConfig(kind=kind, timeout=60) for kind in ("replicas", "sharded")}

        def start(folder: Path, size: int, config: DistributedConfig, before: Ranks | None = None, attempt: int = 0):
            walks = Faulty(folder, None, 0, SIZE)
            store = before and before.store
            arguments = folder, walks, args.steps, ACCUMULATION, config
            return Ranks(folder, size, train_walks, *arguments, store=store, attempt=attempt)

        start(Path(temporary, "one"), 1, kinds["replicas"]).wait()
        expected, durations = ended_with(Path(temporary, "one")), {}
        for kind, config in kinds.items():
            began = time.perf_counter()
            start(Path(temporary, kind), args.ranks, config).wait()
            durations[kind] = time.perf_counter() - began
            assert ended_with(Path(temporary, kind)) == expected
            print(f"{kind}, {args.ranks} processes, no kill: {durations[kind]:.1f} s", flush=True)
        more: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(args.kills):
            kind = list(kinds)[number % 2]
            folder, rank = Path(temporary, f"kill-{number}"), rng.randrange(args.ranks)
            began = time.perf_counter()
            ranks = start(folder, args.ranks, kinds[kind])
            time.sleep(rng.uniform(0.2, 0.8) * durations[kind])
            with suppress(ProcessLookupError):
                ranks.send(rank, signal.SIGKILL)
            died = time.perf_counter()
            results = ranks.wait()
            ended = time.perf_counter() - died
            lines, said = reports(results), "it had ended"
            if results[rank].code == -signal.SIGKILL:
                others = [result.code for other, result in enumerate(results) if other != rank]
                assert len(lines) <= 1 and not any("Traceback" in result.err for result in results), results
                said = f"the others ended {ended:.1f} s later with {others}"
                said += ", one line" if lines else ", before they were connected"
                results = start(folder, args.ranks, kinds[kind], ranks, 1).wait()
            assert all(result.code == 0 for result in results), [result.err for result in results]
            assert ended_with(folder) == expected, "other weights"
            more[kind].append(time.perf_counter() - began - durations[kind])
            print(
                f"{number + 1}: {kind}, rank {rank} killed after {died - began:.1f} s; {said}; same bytes", flush=True
            )
        for kind, seconds in more.items():
            if seconds:
                print(f"{kind}: a kill costs {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s")
        for fault in ("hang", "not a number", "SIGTERM"):
            happens(fault, Path(temporary, fault.replace(" ", "-")), args.ranks, args.steps)


def happens(fault: str, folder: Path, size: int, steps: int) -> None:
    """Let something happen to the last rank in the middle of training, and start all again."""
    at = steps // 2 * ACCUMULATION + ACCUMULATION - 1
    config = DistributedConfig(timeout=10)

    def walks(place: Path, at: int | None) -> Faulty | Poisoned:
        kind = {"hang": "hang", "SIGTERM": "term"}.get(fault)
        return Poisoned(place, at) if kind is None else Faulty(place, kind if at is not None else None, at, SIZE)

    for place in (folder, folder / "one"):
        place.mkdir()
    Ranks(folder / "one", 1, train_walks, folder / "one", walks(folder / "one", None), steps, ACCUMULATION).wait()
    ranks = Ranks(folder, size, train_walks, folder, walks(folder, at), steps, ACCUMULATION, config)
    for process in ranks.processes[:-1]:
        process.join(240)
    ended = time.time() - (folder / f"faulted-{at}").stat().st_mtime
    if fault == "hang":
        ranks.send(size - 1, signal.SIGKILL)  # as torchrun does
    results = ranks.wait()
    lines = reports(results)
    assert len(lines) == (fault != "SIGTERM") and not any("Traceback" in result.err for result in results), results
    again = Ranks(
        folder, size, train_walks, folder, walks(folder, at), steps, ACCUMULATION, store=ranks.store, attempt=1
    )
    assert all(result.code == 0 for result in again.wait())
    assert ended_with(folder) == ended_with(folder / "one"), "other weights"
    print(f"{fault}: the others ended {ended:.1f} s later; same bytes; {lines or 'no line: all saved'}", flush=True)


if __name__ == "__main__":
    main()
