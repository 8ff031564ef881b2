"""Let through only what the page and the API need, with bodies of bounded size: ASGI middleware.

Gradio has many more routes than this page uses, among them ones that fetch addresses for the client. A list of those
that are needed stays right when a new version adds others. Mounted on another app, Gradio 6.31 also does not check
which files an event names: it copies any file that this process may read into its cache, and passes it on.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..utils.json_files import parse_json

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: What may be read, and what may be posted, of Gradio; the API of audiogen lies under /api/.
GET = re.compile(
    r"/(|config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\d+)?|(assets|static|svelte)/.+"
    r"|gradio_api/(info/?|config|theme\.css|app_id/?|startup-events|queue/data|upload_progress|heartbeat/\w+|file=.+))"
)
#: The route that names uploaded files in its body.
JOIN = "/gradio_api/queue/join"
POST = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset/?)")
API = re.compile(r"/api/[\w./-]*")
#: The only routes that take files.
UPLOADS = re.compile(r"/gradio_api/upload|/api/(sounds|generate)")
#: Maximum bytes of any other body, of bodies that arrive at the same time, and seconds until one has arrived.
SMALL, AT_ONCE, BODY_SECONDS = 200_000, 8, 60.0
#: Sent with every answer. Nothing is loaded from elsewhere, and no other page may embed this one.
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
}


class Refused(Exception):
    """A request that is not let through, with its HTTP status, and whether more of its body may follow."""

    def __init__(self, status: int, reason: str, more: bool = False):
        super().__init__(reason)
        self.status, self.reason, self.more = status, reason, more


class Guard:
    """Wrap an app.

    Args:
        app: the ASGI app.
        upload_bytes: maximum size of a body with files.
        folder: where Gradio keeps uploaded files, the only ones that it may serve.
        folder_bytes: uploads are refused while the folder holds more.
    """

    def __init__(self, app: App, upload_bytes: int, folder: Path, folder_bytes: int = 1_000_000_000):
        self._app, self._upload_bytes = app, upload_bytes
        self._folder, self._folder_bytes = folder.resolve(), folder_bytes
        self._arriving = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Check a request, then pass it on; answer in one line of JSON if it is refused."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is no use for a WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() != b"server"]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        posts, counted = scope["method"] == "POST", False
        try:
            self._check(scope)
            if posts:
                if self._arriving >= AT_ONCE:
                    raise Refused(503, "too many requests arrive at the same time; try again in a moment")
                self._arriving, counted = self._arriving + 1, True

            def arrived() -> None:
                nonlocal counted
                if counted:
                    self._arriving, counted = self._arriving - 1, False

            limited = self._limited(scope, receive, arrived)
            if posts and scope["path"] == JOIN:
                limited = await self._checked(limited, receive)
            await self._app(scope, limited, answer)
        except Refused as error:
            if not started:
                if error.more:
                    await _drain(receive, 4 * self._upload_bytes)
                body = json.dumps({"detail": error.reason}).encode()
                headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                headers += [(b"connection", b"close"), *[(b"retry-after", b"2")] * (error.status == 503)]
                await answer({"type": "http.response.start", "status": error.status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
        finally:
            if counted:
                self._arriving -= 1

    def _check(self, scope: MutableMapping[str, Any]) -> None:
        """Check everything but the body."""
        method, path = scope["method"], scope["path"]
        headers = {name.lower(): value for name, value in scope["headers"]}
        api = bool(API.fullmatch(path)) and ".." not in path
        allowed = {
            "GET": api or bool(GET.fullmatch(path)),
            "HEAD": api or bool(GET.fullmatch(path)),
            "POST": api or bool(POST.fullmatch(path)),
            "DELETE": api,
        }
        if not allowed.get(method, False):
            raise Refused(404, "there is nothing here")
        if path.startswith("/gradio_api/file="):
            self._check_file(path.removeprefix("/gradio_api/file="))
        origin = headers.get(b"origin")
        if method in ("POST", "DELETE") and origin is not None:
            host = headers.get(b"host", b"").decode("latin-1")
            if urlsplit(origin.decode("latin-1")).netloc != host:
                raise Refused(403, "requests from the pages of others are not answered")
        if method == "POST":
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self._most(path):
                raise Refused(413, f"the request is larger than {self._most(path):,} bytes", more=True)
            if UPLOADS.fullmatch(path) and _size(self._folder) > self._folder_bytes:
                raise Refused(503, "there are too many uploaded files; try again in a few minutes")

    def _check_file(self, name: str) -> None:
        """Allow only files in the folder of uploads."""
        try:
            inside = Path(name).is_absolute() and Path(name).resolve().is_relative_to(self._folder)
        except (OSError, ValueError, RuntimeError):
            inside = False
        if not inside:
            raise Refused(404, "there is nothing here")

    async def _checked(self, limited: Receive, receive: Receive) -> Receive:
        """Read the body of an event; allow it to name no files but uploaded ones, and no addresses."""
        parts, more = [], True
        while more:
            message = await limited()
            if message["type"] != "http.request":
                raise Refused(400, "the request was cut")
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        try:
            event = parse_json(b"".join(parts))
        except ValueError as error:
            raise Refused(400, f"the request is no JSON ({str(error)[:100]})") from None
        waiting = [event]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                if isinstance(path := value.get("path", None), str):
                    self._check_file(path)
                elif path is not None:
                    raise Refused(400, "a path must be a text")
            if isinstance(value, dict | list):
                waiting += value.values() if isinstance(value, dict) else value
        # As it was checked: of a key that is given twice, another parser might take the other value.
        body, given = json.dumps(event).encode(), False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _most(self, path: str) -> int:
        return self._upload_bytes if UPLOADS.fullmatch(path) else SMALL

    def _limited(self, scope: MutableMapping[str, Any], receive: Receive, arrived: Callable[[], None]) -> Receive:
        """Return a `receive` that stops at the size and the time that a body may take."""
        most, end, size, complete = self._most(scope["path"]), time.monotonic() + BODY_SECONDS, 0, False

        async def limited() -> Message:
            nonlocal size, complete
            if complete:  # what follows is only that the client hangs up
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, end - time.monotonic()))
            except TimeoutError:
                raise Refused(408, f"the request did not arrive within {BODY_SECONDS:g} s") from None
            size += len(message.get("body", b""))
            if size > most:
                raise Refused(413, f"the request is larger than {most:,} bytes", message.get("more_body", False))
            if message["type"] != "http.request" or not message.get("more_body", False):
                complete = True
                arrived()
            return message

        return limited


async def _drain(receive: Receive, most: int) -> None:
    """Read and drop the rest of a body, up to a size, so that its sender gets to read the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS / 4):
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except OSError:  # just removed
                pass
    return total
