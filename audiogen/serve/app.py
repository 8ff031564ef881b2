"""Put the page and the API behind one guard, and run them."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import AudiogenError
from ..runs.run import Run
from .guard import Guard
from .service import Limits, Service

log = logging.getLogger("audiogen")

#: Maximum number of connections; a page that is open keeps one or two.
CONNECTIONS = 200
#: Visitors whose history Gradio remembers; it takes some 60 kB for each, whom anyone can make up.
SESSIONS = 500


@contextmanager
def make_app(run: Run, limits: Limits, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> Iterator[Any]:
    """Yield the ASGI app that serves a run; its uploads are removed afterwards.

    Args:
        run: the run.
        limits: what requests may take.
        hosts: names by which browsers may reach the server; ("*",) for any.

    Raises:
        AudiogenError: the extra `serve` is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="audiogen-serve-", ignore_cleanup_errors=True) as folder:
        # Read when Gradio is imported, or first used: uploads go to a folder of our own, and nothing is reported.
        ours = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        before = {name: os.environ.get(name) for name in ours}
        os.environ |= ours
        try:
            import gradio
            from fastapi import FastAPI
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            from .api import make_api
            from .page import CSS, make_page
        except ImportError as error:
            raise AudiogenError(
                f"audiogen serve: needs the extra serve ({error.name} can't be imported); pip install gradio"
            ) from error
        service = Service(run, limits)
        try:
            api = FastAPI(
                title="audiogen",
                description="Generate sound with a run.",
                docs_url=None,
                redoc_url=None,
                openapi_url="/api/openapi.json",
            )
            api.include_router(make_api(service))
            page = make_page(service)
            page.state_session_capacity = SESSIONS
            app = gradio.mount_gradio_app(
                api,
                page,
                "/",
                max_file_size=limits.upload_bytes,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                enable_monitoring=False,
                mcp_server=False,
                show_error=False,
                theme=page.theme,
                css=CSS,
            )
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
            yield Guard(app, limits.upload_bytes, Path(folder))
        finally:
            service.close()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def serve(run: Run, host: str, port: int, limits: Limits) -> None:
    """Serve a run until the process is stopped.

    Args:
        run: the run.
        host: address to listen at. At a loopback address, only requests to this machine's own names are answered, so
            that no page of the web can reach the server through a name of its own.
        port: port to listen at.
        limits: what requests may take.

    Raises:
        AudiogenError: the extra `serve` is not installed, or the port is taken.
    """
    loopback = host in ("127.0.0.1", "localhost", "::1")
    log.info("warming up")
    run.generate(0.2, seed=0)  # compiles the engine if there is one, as nobody wants to wait for it
    with make_app(run, limits, ("127.0.0.1", "localhost", "[::1]") if loopback else ("*",)) as app:
        import uvicorn

        if not loopback:
            log.warning("%s: others on the network can reach this server, and there is no password", host)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=3,
            ws="none",
            server_header=False,
        )
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # malformed bodies are answered, not logged
        log.info("serving %s at http://%s:%d; Ctrl-C stops", run.root, host, port)
        try:
            uvicorn.Server(config).run()
        except SystemExit as error:  # uvicorn's way to say that it could not start; its log says why
            raise AudiogenError(f"{host}:{port}: can't be listened at; is the port taken? --port 7861") from error
