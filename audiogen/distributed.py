"""Processes that train one model together, and end with the bytes that a single process would end with.

An optimizer step is a number of batches. Each process, called a rank, computes a contiguous share of them. Sums over
batches are made in one fixed binary tree, so the result does not depend on which rank computed which batch:

    batch       0   1   2   3   4   5   6   7
                 \\ /     \\ /     \\ /     \\ /
    4 ranks:      0       1       2       3       each sums two batches by itself
                   \\     /         \\     /
    2 ranks:          0               1           each sums four batches by itself
                        \\           /
                            total
"""

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from .errors import AudiogenError, ConfigError, RankError, ReportedElsewhere
from .utils.devices import choose_device
from .utils.terminal import Terminated

T = TypeVar("T")

dist: Any = torch.distributed  # whose names are not all declared as public

#: Seconds in which the ranks that are left find out which others are left.
ROLL_CALL_SECONDS = 3.0
#: Longest pause between two questions to the store.
LONGEST_PAUSE = 0.5
#: How often each rank tells the others that it lives, and longest silence of one that others wait for, in seconds.
BEAT_SECONDS, LONGEST_SILENCE = 1.0, 300.0

ADVICE = "what was saved stays: continue with the same command and --resume"

_joined = count()  # how often this process has joined others


class TreeSum:
    """Sums lists of tensors in the order of the tree, with at most log2(number) sums in memory.

    Example:
        >>> total = TreeSum()
        >>> for number in range(4):  # (0 + 1) + (2 + 3)
        ...     total.add([torch.tensor([float(number)])])
        >>> total.result()
        [tensor([6.])]
    """

    def __init__(self):
        self._sums: list[tuple[int, list[Tensor]]] = []  # (number of summands, sum), of decreasing numbers

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add a list of tensors, which may be overwritten."""
        number, right = 1, list(tensors)
        while self._sums and self._sums[-1][0] == number:
            _, left = self._sums.pop()
            torch._foreach_add_(left, right)  # pyright: ignore
            number, right = 2 * number, left
        self._sums.append((number, right))

    def result(self) -> list[Tensor]:
        """Return the sum of all lists, and start anew.

        Raises:
            IndexError: there were none.
        """
        _, right = self._sums.pop()
        while self._sums:
            _, left = self._sums.pop()
            torch._foreach_add_(left, right)  # pyright: ignore
            right = left
        return right


class World:
    """The processes that train together, seen from one of them. `World()` is a single process.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine.

    Example:
        >>> World().share(4)
        range(0, 4)
        >>> World(rank=1, size=2).share(4)
        range(2, 4)
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: Any = None):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store = store
        self._calls = count()
        self._timeout = float("inf")  # seconds

    @classmethod
    @contextmanager
    def join(cls) -> Iterator["World"]:
        """Join the processes that were started together with this one; yield a single process if there are none.

        Started by torchrun, by srun, or with a process group that exists already (Ray Train). An error that leaves the
        block is marked with the rank, so that it is reported once.
        """
        world = _world(os.environ)
        if world.size == 1:
            yield world
            return
        if not world.first:
            logging.getLogger("audiogen").setLevel(logging.WARNING)
        try:
            world._store.set(f"host/{world.rank}", socket.gethostname())
            with world._beating():
                yield world
        except (ReportedElsewhere, RankError) as error:
            error.rank = world.rank
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | Terminated) and not world.first:
                raise ReportedElsewhere(130 if isinstance(error, KeyboardInterrupt) else 143) from error
            with suppress(RuntimeError):
                world._store.set("told", "")
            if isinstance(error, AudiogenError):
                error.rank = world.rank
                error.args = (str(error) if world.first else f"rank {world.rank}: {error}",)
            raise

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and reports."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device of a name as in `choose_device`: with several processes, a GPU for each.

        Raises:
            ConfigError: the name is unknown, or there are not enough GPUs.
        """
        device = choose_device(name)
        if device.type != "cuda" or self.size == 1:
            return device
        if device.index is not None or self.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"--device: each process needs a GPU of its own, and this machine has {torch.cuda.device_count()}; "
                "start as many processes, or choose --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def connected(self, device: torch.device, timeout: float) -> Iterator[None]:
        """Connect the ranks for the block, in which they can exchange tensors.

        Args:
            device: device of this rank.
            timeout: seconds after which a rank that does not answer counts as hung.
        """
        self._timeout = timeout
        if self.size == 1 or dist.is_initialized():
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self.meet()
        with self._exchange():
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=timeout),
            )
        try:
            yield
        finally:
            if dist.is_initialized():  # not after a rank was lost
                dist.destroy_process_group()

    # Shares.

    def share(self, batches: int, exact: bool = True, in_turn: bool = False) -> range:
        """Return the numbers of this rank's batches among the batches of a step.

        Args:
            batches: batches per step.
            exact: whether sums must be made in the tree: over a rank's own batches first, or, in turn, over the ranks
                first.
            in_turn: the ranks take a batch each in turn, instead of neighbouring ones.

        Raises:
            ConfigError: they can't be shared out equally.
        """
        own, rest = divmod(batches, self.size)
        whole = own == 1 or not self.size & (self.size - 1) if in_turn else not own & (own - 1)
        if not rest and (whole or not exact or self.size == 1):
            return range(self.rank, batches, self.size) if in_turn else range(self.rank * own, (self.rank + 1) * own)
        problem = f"training.accumulation: {batches} can't be shared out among {self.size} processes"
        if in_turn and not rest:
            raise ConfigError(
                f"{problem} with shards of the weights and exact sums; set it to {self.size}, start a power of two of "
                "processes, or set distributed.exact=false"
            )
        power = 1 << (max(own, 1) - 1).bit_length()
        raise ConfigError(
            f"{problem}; set it to {self.size} times a power of two, such as {self.size * power}, or start another "
            "number of processes"
        )

    @property
    def ranks_per_machine(self) -> int:
        """The ranks of each machine, if all have equally many, in order; otherwise the number of all ranks."""
        if self.size == 1:
            return 1
        self.meet()
        with self._exchange():
            hosts = [self._store.get(f"host/{rank}") for rank in range(self.size)]
        each = hosts.count(hosts[0])
        blocks = [set(hosts[start : start + each]) for start in range(0, self.size, each)]
        return each if self.size % each == 0 and {len(block) for block in blocks} == {1} else self.size

    def check_groups(self, size: int, exact: bool) -> None:
        """Check that the ranks can be divided into groups of `size` consecutive ones.

        Args:
            size: ranks of a group.
            exact: whether sums over a group, and then over the groups, must be made in the tree.

        Raises:
            ConfigError: they can't.
        """
        if self.size % size:
            raise ConfigError(
                f"distributed.shards: {self.size} processes can't be divided into groups of {size}; set it to a "
                "divisor of their number, or to null"
            )
        if exact and size < self.size and size & (size - 1):
            raise ConfigError(
                f"distributed.shards: exact sums need groups of a power of two processes, not of {size}; set it to "
                "one, or set distributed.exact=false"
            )

    def groups(self, size: int) -> tuple[Any, Any]:
        """Connect blocks of `size` consecutive ranks, and the ranks at the same place of each block.

        Returns:
            torch's group of this rank's block, and that of its place; None if there is only one block.
        """
        if size == self.size:
            return dist.group.WORLD, None
        num_blocks = self.size // size
        blocks = [list(range(start, start + size)) for start in range(0, self.size, size)]
        places = [list(range(place, self.size, size)) for place in range(size)]
        with self._exchange():
            # All ranks make all groups, in the same order.
            made = [dist.new_group(ranks, timedelta(seconds=self._timeout)) for ranks in (*blocks, *places)]
        return made[self.rank // size], made[num_blocks + self.rank % size]

    # Exchange.

    def gather(self, x: Tensor) -> Tensor:
        """Join the tensors (n, ...) of all ranks, in their order: (size * n, ...)."""
        if self.size == 1:
            return x
        joined = x.new_empty(self.size * len(x), *x.shape[1:])
        with self._exchange():
            dist.all_gather_into_tensor(joined, x.contiguous())
        return joined

    def add_up(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum each tensor over the ranks, in the order of the tree. All have one dtype, and each rank the same shapes.

        Each rank adds up one piece of what all have, and passes it on.
        """
        if self.size == 1:
            return list(tensors)
        length = sum(x.numel() for x in tensors)
        padding = tensors[0].new_zeros(-length % self.size)
        flat = torch.cat([*(x.detach().flatten() for x in tensors), padding])
        with self._exchange():
            add_up_in(dist.group.WORLD, flat)
        sums = flat[:length].split([x.numel() for x in tensors])
        return [y.view_as(x) for y, x in zip(sums, tensors, strict=True)]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first rank."""
        for x in tensors if self.size > 1 else ():
            with self._exchange():
                dist.broadcast(x, src=0)

    # Waiting, without a time limit.

    def first_does(self, work: Callable[[], T]) -> T | None:
        """Call `work` on the first rank while the others wait.

        Returns:
            What it returns; None on the other ranks.

        Raises:
            ReportedElsewhere: on the other ranks, if it raises an error.
        """
        if self.size == 1:
            return work()
        key = f"done/{next(self._calls)}"
        if not self.first:
            self._wait(key, 0)
            with self._exchange():
                outcome = self._store.get(key)
            if outcome != b"done":
                raise ReportedElsewhere()
            return None
        outcome = "failed"
        try:
            result = work()
            outcome = "done"
            return result
        finally:
            with suppress(RuntimeError):
                self._store.set(key, outcome)

    def after_first(self, work: Callable[[], T]) -> T:
        """Call `work` on the first rank, then on the others: an error that all would raise is raised once.

        Raises:
            ReportedElsewhere: on the other ranks, if it raises an error on the first.
        """
        result: Any = self.first_does(work)
        return result if self.first else work()

    def meet(self) -> None:
        """Wait until all ranks are here."""
        if self.size == 1:
            return
        call = next(self._calls)
        with self._exchange():
            self._store.set(f"here/{call}/{self.rank}", "")
        for rank in range(self.size):
            self._wait(f"here/{call}/{rank}", rank)

    def _wait(self, key: str, rank: int) -> None:
        """Wait for a key that a rank sets in the store, in Python, where signals are handled.

        The rank may take as long as it likes, but must live: the store of torchrun outlives it.
        """
        pause, beat, heard = 0.002, b"", time.monotonic()
        with self._exchange():
            while not self._store.check([key]):
                if self._store.check(["told"]):
                    raise ReportedElsewhere()
                if self._store.check([f"beat/{rank}"]) and (newest := self._store.get(f"beat/{rank}")) != beat:
                    beat, heard = newest, time.monotonic()
                longest = min(self._timeout, LONGEST_SILENCE)
                if time.monotonic() - heard > longest:
                    raise self._lost(longest, RuntimeError(f"rank {rank} is silent"))
                time.sleep(pause)
                pause = min(1.5 * pause, LONGEST_PAUSE)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Tell the others that this rank lives, from a thread, during the block."""
        store, ended = self._store.clone(), threading.Event()

        def beat() -> None:
            with suppress(RuntimeError):  # the store ends with the process that holds it
                for number in count():
                    store.set(f"beat/{self.rank}", str(number))
                    if ended.wait(BEAT_SECONDS):
                        return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(BEAT_SECONDS)

    # What goes wrong.

    def shared(self, error: AudiogenError) -> AudiogenError:
        """Return an error that all ranks raise together, as each of them is to raise it: the first one reports it."""
        return error if self.first else ReportedElsewhere(error.exit_code)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Report lost ranks if an exchange in the block fails, such as one that torch makes in a backward pass."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise self._lost(self._timeout if time.monotonic() - began >= self._timeout else None, error) from error

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except torch.OutOfMemoryError:  # a RuntimeError of this rank alone
            raise
        except RuntimeError as error:
            raise self._lost(self._timeout if time.monotonic() - began >= self._timeout else None, error) from error

    def _lost(self, silent: float | None, error: RuntimeError) -> AudiogenError:
        """Find out which ranks are lost. The first rank that is left reports them, unless they did so themselves.

        Args:
            silent: seconds in which one did not answer; None if an exchange failed before its time was over.
            error: what torch says.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all ranks as soon as one has ended
        left, told = {self.rank}, False
        try:
            self._store.set(f"left/{self.rank}", "")
            self._store.check(["told"])  # to set does not wait for an answer
        except RuntimeError:
            return self._lost_store()
        with suppress(RuntimeError):  # the store ends with the process that holds it
            if dist.is_initialized():
                dist.destroy_process_group()  # so that all others notice
            end = time.monotonic() + ROLL_CALL_SECONDS
            while not told and len(left) < self.size and time.monotonic() < end:
                time.sleep(0.02)
                left |= {rank for rank in range(self.size) if self._store.check([f"left/{rank}"])}
                told = self._store.check(["told"])
            if not told and self.rank == min(left):  # a rank that answers too late must not report as well
                told = self._store.add("lost", 1) > 1
        lost = sorted(set(range(self.size)) - left)
        if told or self.rank != min(left):
            return ReportedElsewhere()
        if not lost:
            return RankError(f"the processes can't exchange data ({' '.join(str(error).split())[:200]}); {ADVICE}")
        what = "ended" if silent is None else f"did not answer for {silent:g} s"
        named = ", ".join(f"rank {rank}{self._host(rank)}" for rank in lost)
        return RankError(f"{named} of {self.size} processes {what}; {ADVICE}")

    def _lost_store(self) -> AudiogenError:
        """Say that the process that holds the store has ended: torchrun on the first machine, or else the first rank.

        Without the store, ranks can't agree on who says so: the first one of each machine does, and rank 1.
        """
        with suppress(RuntimeError):
            if dist.is_initialized():
                dist.destroy_process_group()
        if self.local_rank and self.rank != 1:
            return ReportedElsewhere()
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return RankError(
                f"torchrun, which connects the {self.size} processes, ended on the first machine; {ADVICE}"
            )
        return RankError(f"rank 0 of {self.size} processes ended; {ADVICE}")

    def _host(self, rank: int) -> str:
        with suppress(RuntimeError):
            if self._store.check([f"host/{rank}"]):
                return f" ({self._store.get(f'host/{rank}').decode()})"
        return ""


def piece_of_sum(group: Any, x: Tensor) -> Tensor:
    """Sum a tensor (n,) over the ranks of a group, in the order of the tree; return this rank's piece of the sum.

    Args:
        group: torch's process group.
        x: n must be a multiple of the number of its ranks.
    """
    pieces, total = torch.empty_like(x), TreeSum()
    dist.all_to_all_single(pieces, x, group=group)
    for piece in pieces.chunk(dist.get_world_size(group)):
        total.add([piece])
    return total.result()[0]


def add_up_in(group: Any, x: Tensor) -> None:
    """Replace a tensor (n,) by its sum over the ranks of a group, as `piece_of_sum`."""
    dist.all_gather_into_tensor(x, piece_of_sum(group, x).contiguous(), group=group)


def _world(environment: MutableMapping[str, str]) -> World:
    """Find the processes that were started together with this one."""
    local_rank = int(environment.get("LOCAL_RANK", 0))
    if dist.is_available() and dist.is_initialized():
        rank, size, store = dist.get_rank(), dist.get_world_size(), dist.distributed_c10d._get_default_store()
    else:
        environment.update(of_slurm(environment))
        if int(environment.get("WORLD_SIZE", 1)) == 1:
            return World()
        local_rank = int(environment.get("LOCAL_RANK", 0))
        store, rank, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it starts the processes again, with the keys of those that have ended.
    attempt = f"audiogen/{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_joined)}"
    return World(rank, size, local_rank, dist.PrefixStore(attempt, store)) if size > 1 else World()


def of_slurm(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Describe a step of Slurm's srun in torchrun's variables; return {} if there is none, or torchrun is used.

    A batch script that is no step of srun has the same SLURM_NTASKS, but is a single process.

    Example:
        >>> step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "70",
        ...         "SLURM_STEP_NODELIST": "gpu[03-04,9]"}
        >>> of_slurm(step)["MASTER_ADDR"], of_slurm(step)["RANK"]
        ('gpu03', '5')
    """
    if "RANK" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return {}
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", environment["SLURM_STEP_NODELIST"])
    place = {
        "MASTER_ADDR": "".join(part or "" for part in first.groups()) if first else "localhost",
        "MASTER_PORT": str(20_000 + int(environment["SLURM_JOB_ID"]) % 40_000),
    }
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        **{name: environment.get(name, value) for name, value in place.items()},
    }
