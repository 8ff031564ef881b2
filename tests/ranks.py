"""Processes that train together, forked from one that has imported everything, with a store that outlives them as
torchrun's does."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loops import Walks, settings, trainer
from processes import PRELOAD, Result, redirect
from torch.distributed import TCPStore

from audiogen import cli
from audiogen.distributed import World
from audiogen.evaluation.scores import held_out_score
from audiogen.models.batch import Batch
from audiogen.runs.event_log import Discarded, Metrics
from audiogen.runs.training_config import DistributedConfig
from audiogen.spec import FrameSpec
from audiogen.training.checkpoint import list_checkpoints


class Ranks:
    """Runs `work(*arguments)` on every rank, as the command line would; ranks that share a `store` are attempts of one
    torchrun. Without torchrun, as in a step of srun, the first rank holds the store."""

    def __init__(
        self,
        folder: Path,
        size: int,
        work: Callable,
        *arguments: Any,
        store: Any = None,
        attempt: int = 0,
        torchrun: bool = True,
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        folder.mkdir(parents=True, exist_ok=True)
        self.store = store or TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        self.files, self.processes, port = [], [], free_port()
        for rank in range(size):
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": self.store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True,
                "TORCHELASTIC_RESTART_COUNT": attempt,
            }
            if not torchrun:
                environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
                environment["MASTER_PORT"] = port
            files = [folder / f"attempt-{attempt}-rank-{rank}-of-{size}.{name}" for name in ("out", "err")]
            values = {name: str(value) for name, value in environment.items()}
            process = context.Process(target=_rank, args=(values, files, work, arguments))
            process.start()
            self.files.append(files)
            self.processes.append(process)

    def send(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.processes[rank].pid, number)

    def wait(self, seconds: float = 240) -> list[Result]:
        """The results of all ranks, in their order."""
        try:
            for rank, process in enumerate(self.processes):
                process.join(seconds)
                if process.exitcode is None:
                    said = [err.read_text() for _, err in self.files]
                    raise AssertionError(f"rank {rank} still runs after {seconds} s; they printed {said!r}")
        finally:
            for process in self.processes:
                process.kill()
        return [
            Result(process.exitcode, out.read_text(), err.read_text())
            for process, (out, err) in zip(self.processes, self.files, strict=True)
        ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def together(folder: Path, size: int, work: Callable, *arguments: Any) -> list[Result]:
    """Runs ranks that are to succeed."""
    results = Ranks(folder, size, work, *arguments).wait()
    assert [result.code for result in results] == [0] * size, [result.err for result in results]
    return results


def command(*arguments: str) -> None:
    """The command `audiogen ARGUMENTS...`, as the work of a rank."""
    sys.argv = ["audiogen", *arguments]
    APP()


APP = cli.app


def reports(results):
    """What all ranks printed to say what went wrong."""
    return [line for result in results for line in result.err.splitlines() if line.startswith("audiogen: ")]


def fault(path, kind):
    """Happens to the process once, however often it is started."""
    if kind is None or path.exists():
        return
    path.touch()
    if kind == "error":
        raise ValueError("made up")
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "term": signal.SIGTERM}[kind])


class Faulty(Walks):
    """Walks, at one of which something happens to the rank that draws it."""

    def __init__(self, folder, kind, at, size=8):
        super().__init__(size, batch_size=2)
        self.dim = max(16, size)
        self.folder, self.kind, self.at = folder, kind, at

    def batch(self, step):
        if step == self.at:
            fault(self.folder / f"faulted-{self.at}", self.kind)
        return super().batch(step)


class Poisoned(Walks):
    """Frames, of which one batch is so large that its loss is not a number, when it is first drawn."""

    def __init__(self, folder, at):
        super().__init__(batch_size=2)
        self.folder, self.at, self.spec = folder, at, FrameSpec(8000, 80, 2)

    def batch(self, step):
        x = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(step))
        fault = self.folder / f"faulted-{self.at}"
        if step == self.at and not fault.exists():
            fault.touch()
            x = x * 1e30
        return Batch(x), [[f"take-{step}.wav"]] * 2


TOGETHER = DistributedConfig(timeout=120)


def train_walks(folder, walks, steps, accumulation, distributed=TOGETHER):
    """What `audiogen train` does, on made-up batches; continues what is in the folder."""
    with World.join() as world, world.connected(torch.device("cpu"), distributed.timeout):
        torch.manual_seed(0)
        it = trainer(
            folder,
            settings(steps=steps, evaluations=steps, accumulation=accumulation, average=0.8, learning_rate=0.02),
            walks,
            walks.model("gpt", dropout=0.2),
            lambda model: held_out_score(
                model, [x[:, :n] for x, n in zip(held_out(walks), (3, 9, 9, 5), strict=True)], world=world
            ),
            world=world,
            distributed=distributed,
        )
        begun = bool(list_checkpoints(folder / "checkpoints"))
        if begun:
            it.resume()
        outcome = it.run(Metrics(folder, it.progress.step if begun else None) if world.first else Discarded())
        print(outcome.stopped, outcome.progress.step)


def held_out(walks):
    return [x for number in (10**6, 10**6 + 1) for x in walks.batch(number)[0].x]


def _rank(environment: dict[str, str], files: list[Path], work: Callable, arguments: tuple) -> None:
    redirect(*files)
    os.environ.update(environment)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.app = partial(work, *arguments)
    cli.main()
