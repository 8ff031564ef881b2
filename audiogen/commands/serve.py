"""The command `audiogen serve`."""

from dataclasses import replace
from pathlib import Path

from ..runs.run import load_run
from ..serve.app import serve as serve_run
from ..serve.service import Limits
from ..utils.devices import choose_device


def serve(run: Path, host: str, port: int, max_seconds: float, device: str, precision: str) -> None:
    """Load a run, and serve it until the process is stopped.

    Raises:
        ConfigError: the run's front-end only encodes.
        AudiogenError: the extra `serve` is not installed, or the port is taken.
    """
    loaded = load_run(run, choose_device(device), precision)
    loaded.frontend.check_decodes()
    serve_run(loaded, host, port, replace(Limits(), seconds=max_seconds))
