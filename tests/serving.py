"""A tiny run in memory, and a server of it, for the tests and measurements of `audiogen serve`."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corpus import tiny_frontend

from audiogen.models.backbones import BACKBONES
from audiogen.models.conditioning import CONDITIONS
from audiogen.runs.build import build_model
from audiogen.runs.config import RunConfig
from audiogen.runs.run import Run
from audiogen.runs.training_config import DataConfig, TrainingConfig
from audiogen.serve.service import Limits
from audiogen.testing import lively


def tiny_run(folder: Path) -> Run:
    """A run that was never trained, with a label, a number and a melody."""
    frontend = tiny_frontend("melvq")
    conditions = {
        "register": CONDITIONS["label"].Config(values=("low", "<b>high</b>")),
        "tempo": CONDITIONS["number"].Config(low=60.0, high=180.0),
        "melody": CONDITIONS["melody"].Config(),
    }
    backbone = BACKBONES["gpt"].Config(dim=8, num_layers=1, num_heads=2)
    config = RunConfig(frontend.config, backbone, "delay", DataConfig(), TrainingConfig(), conditions)
    model = lively(build_model(config, frontend.spec)).eval()
    return Run(folder, config, frontend, model, step=1)


@contextmanager
def running(run: Run, limits: Limits) -> Iterator[str]:
    """Serve a run on a free port of 127.0.0.1; yields its address."""
    import uvicorn

    from audiogen.serve.app import make_app

    with make_app(run, limits) as app, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
