"""Commands in processes of their own, which can be killed; each is forked from one that has imported everything."""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

#: Imported once by the server that all are forked from, which makes a start a matter of milliseconds.
PRELOAD = ["audiogen.cli", "audiogen.commands.train", "torch.utils.tensorboard", "torch._dynamo"]


@dataclass(frozen=True)
class Result:
    """How a process ended: its exit code (minus the signal that killed it), and what it printed."""

    code: int
    out: str
    err: str


class Command:
    """`audiogen ARGUMENTS...` in a process of its own, with its output in files below `folder`.

    Without privileges, root can read no more than others can: what is closed to its owner is closed.
    """

    def __init__(self, folder: Path, *arguments: str | Path, privileged: bool = True):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"process-{time.monotonic_ns()}"
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        self.process: ForkServerProcess = context.Process(
            target=_main, args=([str(argument) for argument in arguments], self.out, self.err, privileged)
        )
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120) -> Result:
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s; it printed {self.err.read_text()!r}")
        return Result(self.process.exitcode, self.out.read_text(), self.err.read_text())

    def wait_until(self, happened: Callable[[], bool], seconds: float = 120) -> bool:
        """Looks every half millisecond; whether it happened before the process ended."""
        end = time.monotonic() + seconds
        while not happened():
            if self.process.exitcode is not None:
                return happened()
            time.sleep(0.0005)
            if time.monotonic() > end:
                self.process.kill()
                raise AssertionError(f"nothing happened in {seconds} s; it printed {self.err.read_text()!r}")
        return True


def audiogen(folder: Path, *arguments: str | Path) -> Result:
    """Runs a command to its end."""
    return Command(folder, *arguments).wait()


def redirect(out: Path, err: Path) -> None:
    """Lets this process print to files."""
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, stream.fileno())
        os.close(handle)


def _main(arguments: list[str], out: Path, err: Path, privileged: bool) -> None:
    redirect(out, err)
    import torch

    from audiogen.cli import main

    if not privileged:
        ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)())  # of version 3: none
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, wherever the tests are run
    sys.argv = ["audiogen", *arguments]
    main()
