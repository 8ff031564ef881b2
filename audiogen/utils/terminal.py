"""Print safely to a terminal: file names may contain anything."""

import io
import logging
import os
import signal
import sys
import warnings
from typing import Any

from rich.console import Console
from rich.text import Text

from ..errors import printable


class Formatter(logging.Formatter):
    """Format each message as one printable line; a traceback may follow it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class Terminal(Console):
    """A console that prints each text as one line and escapes control characters, in tables too."""

    def print(self, *objects: Any, **settings: Any) -> None:
        super().print(*(self._escaped(item) if isinstance(item, Text) else item for item in objects), **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)

    def _escaped(self, text: Text) -> Text:
        return Text.assemble(*((printable(piece.text), piece.style or "") for piece in text.render(self)))

    def on_broken_pipe(self) -> None:
        """Exit silently when the reader has closed the pipe, as `head` does."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13)  # SIGPIPE, which Windows does not have


class Terminated(BaseException):
    """SIGTERM as an exception, so that half-written files are removed on the way out."""


def set_up() -> None:
    """Set up this process: output takes any text, logs are printable lines, SIGTERM raises `Terminated`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file opened would get its number, and the output would go there
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "r+" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("audiogen").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *rest, **more: print(printable(f"warning: {message}"), file=sys.stderr)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated
