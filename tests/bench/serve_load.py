"""`audiogen serve` under load: 200 requests from 8 clients, half of them malformed or hostile.

    pip install gradio
    python tests/bench/serve_load.py RUN [--seconds 1]

Starts the command on a free port, asks it for sounds with random seeds between requests that are wrong in many ways,
and prints how long each kind took, how often the server was busy, its processor time and its memory. It ends with an
error if a good request was not answered with a whole WAV, a bad one was answered with anything but a refusal, an answer
holds what it should not, or the server does not answer afterwards.
"""

import argparse
import itertools
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import soundfile

#: For all.py.
SHORT = "{run} --seconds 0.5 --requests 20"
NEEDS = ("gradio",)

CLIENTS = 8
#: What no answer may hold: the beginning of /etc/passwd, tracebacks, names of folders.
SECRETS = re.compile(rb"root:x:|Traceback|site-packages|/tmp/audiogen")


def bad_requests(folder: Path) -> list[tuple[str, str, str, dict]]:
    """(kind, method, path, arguments of httpx) of requests that must be refused."""
    bomb, text = folder / "bomb.flac", b"#!/bin/sh\n" * 1000
    soundfile.write(bomb, np.zeros((20_000_000, 1), np.int16), 8000)  # 40 minutes of silence
    event = {"fn_index": 0, "session_hash": "load", "data": [[], {"path": "/etc/passwd"}]}
    address = {"fn_index": 0, "session_hash": "load", "data": [[], {"path": "http://127.0.0.1:1/x"}]}
    sounds = "/api/sounds"
    return [
        ("too long", "POST", sounds, {"data": {"seconds": "1e9"}}),
        ("not a number", "POST", sounds, {"data": {"seconds": "nan", "seed": "x"}}),
        ("too many", "POST", sounds, {"data": {"num": "1000000"}}),
        ("unknown label", "POST", sounds, {"data": {"labels": '{"nothing": "x"}'}}),
        ("label as a path", "POST", sounds, {"data": {"labels": '{"melody": "/etc/passwd"}'}}),
        ("deep JSON", "POST", sounds, {"data": {"labels": "[" * 100_000}}),
        ("long text", "POST", sounds, {"data": {"labels": json.dumps({"text": "x" * 150_000})}}),
        ("text as a file", "POST", "/api/generate", {"data": {"seconds": "1"}, "files": {"prompt": text}}),
        ("40 minutes in a file", "POST", "/api/generate", {"files": {"prompt": bomb.read_bytes()}}),
        ("too large a body", "POST", sounds, {"files": {"prompt": bytes(30_000_000)}}),
        ("no length", "POST", sounds, {"content": b"", "chunks": 500}),
        ("broken multipart", "POST", sounds, {"content": b"\0", "headers": {"Content-Type": "multipart/form-data"}}),
        ("file of the server", "GET", "/gradio_api/file=/etc/passwd", {}),
        ("address", "GET", "/gradio_api/file=http://127.0.0.1:1/x", {}),
        ("proxy", "GET", "/gradio_api/proxy=http://127.0.0.1:1/x", {}),
        ("up the folders", "GET", "/static/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", {}),
        ("event with a path", "POST", "/gradio_api/queue/join", {"json": event}),
        ("event with an address", "POST", "/gradio_api/queue/join", {"json": address}),
        ("other host", "GET", "/api/run", {"headers": {"Host": "evil.example"}}),
        ("other origin", "POST", sounds, {"headers": {"Origin": "http://evil.example"}}),
        ("no such sound", "GET", "/api/sounds/../../etc/passwd.wav", {}),
        ("other method", "PUT", sounds, {"content": b"x"}),
    ]


def memory_mb(pid: int) -> float:
    """Resident memory of a process on Linux; NaN elsewhere."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return float("nan")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, on Linux; NaN elsewhere."""
    try:
        used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of each sound")
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "audiogen", "serve", str(arguments.run), "--port", str(port)])
    try:
        wait_until_ready(url, server)
        with tempfile.TemporaryDirectory() as folder:
            load(url, server.pid, arguments.seconds, arguments.requests, Path(folder))
    finally:
        server.terminate()
        server.wait(30)


def wait_until_ready(url: str, server: subprocess.Popen) -> None:
    while True:
        if server.poll() is not None:
            sys.exit("the server did not start")
        try:
            httpx.get(f"{url}/api/run")
            return
        except httpx.TransportError:
            time.sleep(0.5)


def load(url: str, pid: int, seconds: float, requests: int, folder: Path) -> None:
    before, used = memory_mb(pid), cpu_seconds(pid)
    wrong_ones = bad_requests(folder)
    bad = itertools.islice(itertools.cycle(range(len(wrong_ones))), requests // 2)
    kinds: list[int | None] = [*bad, *[None] * (requests // 2)]
    random.Random(0).shuffle(kinds)
    took: dict[str, list[float]] = {"first sound": [], "whole sound": [], "refusal": []}
    slowest, busy, wrong, lock = ("", 0.0), 0, [], threading.Lock()
    rate = httpx.get(f"{url}/api/run").json()["sample_rate"]

    def good(client: httpx.Client) -> None:
        nonlocal busy
        began = time.monotonic()
        while True:
            with client.stream("POST", "/api/generate", data={"seconds": seconds}) as answer:
                if answer.status_code == 503:
                    with lock:
                        busy += 1
                    time.sleep(1)
                    continue
                parts = answer.iter_bytes()
                data = next(parts, b"")
                first = time.monotonic() - began
                data += b"".join(parts)
            break
        with lock:
            took["first sound"].append(first)
            took["whole sound"].append(time.monotonic() - began)
            if answer.status_code != 200 or (len(data) - 44) % round(2 * seconds * rate):
                wrong.append(f"a good request: {answer.status_code}, {len(data)} bytes")

    def refused(client: httpx.Client, kind: int) -> None:
        nonlocal slowest
        name, method, path, rest = wrong_ones[kind]
        if "chunks" in rest:  # a body without a length
            form = {"Content-Type": "multipart/form-data; boundary=x"}
            rest = {"headers": form, "content": (bytes(2**16) for _ in range(rest["chunks"]))}
        began = time.monotonic()
        try:
            answer = client.request(method, path, **rest)
        except httpx.TransportError as error:  # cut off while it was still sending
            answer = None
            if name not in ("too large a body", "no length"):
                with lock:
                    wrong.append(f"{name}: {error!r}")
        spent = time.monotonic() - began
        with lock:
            took["refusal"].append(spent)
            slowest = max(slowest, (name, spent), key=lambda one: one[1])
            if answer is not None and not 400 <= answer.status_code < 500 and answer.status_code != 503:
                wrong.append(f"{name}: {answer.status_code}")
            if answer is not None and SECRETS.search(answer.content):
                wrong.append(f"{name}: {answer.content[:100]!r}")

    def one(kind: int | None) -> None:
        with httpx.Client(base_url=url, timeout=600) as client:
            good(client) if kind is None else refused(client, kind)

    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(one, kinds))
    spent = time.monotonic() - began
    after, used = memory_mb(pid), cpu_seconds(pid) - used
    print(f"{requests} requests from {CLIENTS} clients in {spent:.0f} s; sounds of {seconds:g} s; busy {busy} times")
    print(f"processor time of the server: {used:.0f} s")
    print("| s | median | 90 % | longest |\n| --- | --- | --- | --- |")
    for name, times in took.items():
        nine = statistics.quantiles(times, n=10)[8]
        print(f"| {name} ({len(times)}) | {statistics.median(times):.2f} | {nine:.2f} | {max(times):.2f} |")
    print(f"slowest refusal: {slowest[0]}; memory {before:.0f} MB before, {after:.0f} MB after")
    assert httpx.get(f"{url}/api/run").status_code == 200
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
