"""Encode the shards of a folder in this process or in several, whatever becomes of these."""

import logging
import multiprocessing
import pickle
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from ..errors import AudiogenError
from ..utils.devices import usable_cores
from .shards import EncodedShard, Job, Shard, encode_shard, read_shard

log = logging.getLogger("audiogen")

#: A file during which the process ended so often is left out: the first time, something else may have been the cause.
MOST_DEATHS = 3
#: Give up after so many deaths in a row during which no shard was finished and no file left out.
MOST_IN_VAIN = 12
#: Processes are started by themselves if they save at least this many seconds; each takes a few to start.
WORTHWHILE = 30.0
#: Maximum number of processes that are started by themselves; each needs about 400 MB.
MOST_WORKERS = 16
#: A shard that takes this many times as long as the slowest one so far is also done by a process that is idle.
STRAGGLER = 2.0


class Schedule:
    """Which shard is to be done next, and what has become of the others.

    Attributes:
        done: the finished shards, by name.
        waiting: shards that nobody does.
        skip: files to leave out, by the name of their shard, as {place: reason}.
    """

    def __init__(self, job: Job, shards: Sequence[Shard]):
        self.shards = {shard.name: shard for shard in shards}
        found = [read_shard(job.out, shard) for shard in shards]
        self.done = {encoded.shard.name: encoded for encoded in found if encoded is not None}
        self.skip: dict[str, dict[int, str]] = {}
        self.waiting = deque(shard for shard in shards if shard.name not in self.done)
        self._running: dict[str, list[float]] = {}  # when each attempt began
        self._deaths: Counter[tuple[str, int]] = Counter()
        self._in_vain, self._slowest = 0, 0.0

    @property
    def num_left(self) -> int:
        """Number of shards that are not done."""
        return len(self.shards) - len(self.done)

    @property
    def num_files(self) -> int:
        """Number of files in the shards that are done."""
        return sum(len(self.shards[name].files) for name in self.done)

    def results(self) -> list[EncodedShard]:
        """Return all shards, in order, after they are done."""
        return [self.done[name] for name in self.shards]

    def next(self) -> Shard | None:
        """Return a shard to do now: one that nobody does; or a straggler, since its process may hang."""
        now = time.monotonic()
        if self.waiting:
            shard = self.waiting.popleft()
            self._running.setdefault(shard.name, []).append(now)
            return shard
        for name, began in self._running.items():
            if len(began) == 1 and self._slowest and now - began[0] > STRAGGLER * self._slowest:
                began.append(now)
                return self.shards[name]
        return None

    def finish(self, encoded: EncodedShard) -> None:
        """Note that a shard is done."""
        name = encoded.shard.name
        if began := self._running.pop(name, None):
            self._slowest = max(self._slowest, time.monotonic() - began[0])
        self.done[name] = encoded
        self._in_vain = 0

    def fail(self, shard: Shard, place: int | None, reason: str) -> None:
        """Note that a process has ended while it did a shard.

        Args:
            shard: the shard, which will be done again.
            place: place of the file that it was about to encode; None if that is not known.
            reason: how it ended.

        Raises:
            AudiogenError: this has happened again and again.
        """
        if shard.name in self.done:
            return
        self._in_vain += 1
        if place is not None:
            self._deaths[shard.name, place] += 1
            if self._deaths[shard.name, place] == MOST_DEATHS:
                self.skip.setdefault(shard.name, {})[place] = f"ends the process that encodes it ({reason})"
                self._in_vain = 0
        if self._in_vain > MOST_IN_VAIN:
            raise AudiogenError(
                f"{shard.files[place or 0].path}: the process that encodes it and the files after it has ended "
                f"{self._in_vain} times ({reason}); check whether the memory suffices for so many workers, and run the "
                "same command again: what is done stays"
            )
        began = self._running.pop(shard.name, [])
        if len(began) > 1:
            self._running[shard.name] = began[:1]  # another process is still doing it
        else:
            self.waiting.appendleft(shard)


def encode_shards(
    job: Job, shards: Sequence[Shard], workers: int | None = None, progress: bool = True
) -> list[EncodedShard]:
    """Encode shards, apart from those that are done; the result does not depend on the number of processes.

    Args:
        job: what to encode with.
        shards: from `plan_shards`.
        workers: number of processes; None for one per core as soon as it is clear that this saves time.
        progress: show a progress bar on a terminal.

    Raises:
        AudiogenError: the disk is full, or processes end again and again.
    """
    schedule = Schedule(job, shards)
    total = sum(len(shard.files) for shard in shards)
    with tqdm(total=total, unit="file", desc="encoding", disable=None if progress else True) as bar:
        bar.update(schedule.num_files)
        most = workers or _num_workers(job.frontend.device)
        if workers is None or most == 1:
            _encode_here(job, schedule, bar, most)
        if schedule.num_left:
            try:
                _encode_elsewhere(job, schedule, bar, most)
            except _CanNotStart as error:
                log.warning("processes can't be started here (%s); one encodes alone, which takes longer", error)
                _encode_here(job, schedule, bar, 1)
    return schedule.results()


class _CanNotStart(Exception):
    """Processes end before they begin to encode."""


def _num_workers(device: torch.device) -> int:
    return torch.cuda.device_count() if device.type == "cuda" else min(usable_cores(), MOST_WORKERS)


def _encode_here(job: Job, schedule: Schedule, bar: tqdm, most: int) -> None:
    """Encode in this process: everything, or until it is clear that `most` processes save time."""
    began, seconds = time.monotonic(), 0.0
    left = sum(file.duration for shard in schedule.waiting for file in shard.files)
    while (shard := schedule.next()) is not None:
        before = schedule.num_files
        schedule.finish(encode_shard(job, shard, begin=lambda place, before=before: _show(bar, before + place)))
        _show(bar, schedule.num_files)
        seconds += sum(file.duration for file in shard.files)
        ahead = (time.monotonic() - began) / seconds * (left - seconds)
        if ahead * (1 - 1 / most) > WORTHWHILE:
            return


def _show(bar: tqdm, num_files: int) -> None:
    bar.update(max(0, num_files - bar.n))  # batches go through a shard in an order of their own


@dataclass
class _Worker:
    process: BaseProcess
    connection: Any  # a Connection, or on Windows a PipeConnection
    ready: bool = False
    shard: Shard | None = None
    place: int | None = None


def _encode_elsewhere(job: Job, schedule: Schedule, bar: tqdm, workers: int) -> None:
    """Encode in processes. One that ends is replaced, and its shard is done again."""
    try:
        packed = pickle.dumps(replace(job, frontend=deepcopy(job.frontend).cpu()))
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # a front-end of the user's own
        raise _CanNotStart(str(error)) from error
    fleet: dict[Any, _Worker] = {}
    started, failures = 0, 0
    try:
        while schedule.num_left:
            while len(fleet) < min(workers, schedule.num_left):
                worker = _start(packed, _device(job.frontend.device, started))
                fleet[worker.connection] = worker
                started += 1
            for connection in wait(list(fleet), timeout=1.0):
                worker = fleet[connection]
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    del fleet[connection]
                    reason = _ended(worker)
                    if worker.shard is not None:
                        schedule.fail(worker.shard, worker.place, reason)
                    elif not worker.ready:
                        failures += 1
                        if failures > MOST_DEATHS:
                            raise _CanNotStart(reason) from None
                    continue
                if isinstance(message, AudiogenError):
                    raise message
                if isinstance(message, int):
                    worker.place = message
                elif isinstance(message, EncodedShard):
                    schedule.finish(message)
                    worker.shard = worker.place = None
                else:
                    worker.ready, failures = True, 0
            for worker in fleet.values():
                if worker.ready and worker.shard is None and (shard := schedule.next()) is not None:
                    worker.shard = shard
                    with suppress(OSError):  # it has ended, which the next round finds
                        worker.connection.send((shard, schedule.skip.get(shard.name)))
            _show(bar, schedule.num_files + sum(worker.place or 0 for worker in fleet.values()))
    finally:
        for worker in fleet.values():
            worker.process.kill()
            worker.process.join()
            worker.connection.close()


def _device(device: torch.device, number: int) -> str:
    """Return the device of a process: GPUs are shared out, unless one other than the first was chosen."""
    return f"cuda:{number % torch.cuda.device_count()}" if device.type == "cuda" and not device.index else str(device)


def _start(packed: bytes, device: str) -> _Worker:
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=_work, args=(other, packed, device), daemon=True)
    with _no_main_module():
        process.start()
    other.close()
    return _Worker(process, connection)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the script that is running, which a new process would otherwise run again, from its beginning."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _ended(worker: _Worker) -> str:
    """Say how a process ended."""
    worker.connection.close()
    worker.process.join()
    code = worker.process.exitcode or 0
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"{signal.Signals(-code).name}"
    return f"signal {-code}"


def _work(connection: Connection, packed: bytes, device: str) -> None:
    """Encode the shards that come in, until the other end is closed. Ctrl-C is left to the process there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    job = pickle.loads(packed)
    job.frontend.to(device)
    with suppress(EOFError, ConnectionError):
        connection.send("ready")
        while True:
            shard, skip = connection.recv()
            try:
                result = encode_shard(job, shard, skip, connection.send)
            except AudiogenError as error:
                result = error
            connection.send(result)
