"""A web server on 127.0.0.1 that misbehaves as it is told, for the tests of downloads."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answers:
    """What the server has and how it behaves; `requests` holds (path, Range, If-Range, status) of each request."""

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"1"'
    ranges: bool = True
    status: int | None = None  # answered to everything
    cuts: list[int] = field(default_factory=list)  # the next bodies end after so many bytes
    chunked: bool = False  # no Content-Length
    wrong_range: bool = False
    url: str = ""
    requests: list[tuple[str, str | None, str | None, int]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        answers = self.server.answers
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        body, status = answers.files.get(self.path, b""), 200
        start, size = 0, len(body)
        if answers.status or self.path not in answers.files:
            status, body = answers.status or 404, b""
        elif asked and answers.ranges and condition in (None, answers.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + answers.wrong_range
            status, body = (206, body[start:]) if start < size else (416, b"")
        answers.requests.append((self.path, asked, condition, status))
        self.send_response(status)
        if status in (206, 416):
            self.send_header("Content-Range", f"bytes {f'{start}-{size - 1}' if status == 206 else '*'}/{size}")
        if answers.etag:
            self.send_header("ETag", answers.etag)
        if answers.chunked:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status in (200, 206):
            cut = answers.cuts.pop(0) if answers.cuts else len(body)
            self.wfile.write(body[:cut])
            self.close_connection = cut < len(body) or answers.chunked

    def log_message(self, *arguments):
        pass


@contextmanager
def local_server(**settings) -> Iterator[Answers]:
    answers = Answers(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers = answers
    answers.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
