"""A headless Chromium for tests of pages, driven over a pipe: no packages, no ports, no network.

    with Chromium(folder) as browser:
        browser.open(path, width=360)
        assert browser.run("document.title") == "..."
        assert browser.errors == [] and browser.requests == []

It speaks the DevTools protocol (JSON with a zero byte after each message) over file descriptors 3 and 4.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "chrome"))), None)
WHY_NOT = "no chromium or google-chrome on PATH"

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]

# A trampoline puts the two pipes on the descriptors that Chromium expects, by way of high ones so that none is lost.
TRAMPOLINE = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4), os.close(ends[0]), os.close(ends[1])
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One browser with one tab; what it reports while pages are open is kept until the next `open`.

    Attributes:
        errors: console errors and warnings, uncaught exceptions, blocked loads.
        requests: addresses that a page asked for, other than its own file and what is inside of it (data:).
    """

    def __init__(self, folder: Path):
        self.folder, self.errors, self.requests = folder, [], []
        self.answers, self.page, self.count, self.unread = {}, "", 0, b""

    def __enter__(self) -> "Chromium":
        child_in, self.out = os.pipe()
        self.back, child_out = os.pipe()
        command = [PROGRAM, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAMPOLINE, str(child_in), str(child_out), *command],
            pass_fds=(child_in, child_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in), os.close(child_out)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable", tab=True)
        return self

    def __exit__(self, *_) -> None:
        try:
            self.send("Browser.close")
            self.process.wait(10)
        except (OSError, EOFError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        finally:
            os.close(self.out), os.close(self.back)

    def open(self, path: Path | str, width: int = 1200, height: int = 800, dark: bool = False) -> None:
        """Opens a file or address in a window of so many CSS pixels, as a phone would below 600, and waits for it."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            tab=True,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.send(
            "Emulation.setEmulatedMedia",
            tab=True,
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.errors, self.requests, self.loaded, self.page = (
            [],
            [],
            False,
            path if isinstance(path, str) else path.resolve().as_uri(),
        )
        self.send("Page.navigate", tab=True, url=self.page)
        self.wait(lambda: self.loaded)

    def run(self, script: str):
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.send(
            "Runtime.evaluate", tab=True, expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """The page as a PNG file, all of it or only what the window shows."""
        data = self.send("Page.captureScreenshot", tab=True, format="png", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def send(self, method: str, tab: bool = False, **params) -> dict:
        """Calls a method of the protocol and waits for its answer."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        os.write(self.out, json.dumps(message | ({"sessionId": self.session} if tab else {})).encode() + b"\0")
        number = self.count
        self.wait(lambda: number in self.answers)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait(self, done, seconds: float = 30.0) -> None:
        """Reads what the browser says until `done()`."""
        end = time.monotonic() + seconds
        while not done():
            if not select.select([self.back], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self.back, 1 << 20)
            if not data:
                raise EOFError("Chromium is gone")
            *messages, self.unread = (self.unread + data).split(b"\0")
            for message in messages:
                self.hear(json.loads(message))

    def hear(self, message: dict) -> None:
        if "id" in message:
            self.answers[message["id"]] = message
            return
        method, params = message["method"], message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith("data:") and url.split("#")[0] != self.page:
                self.requests.append(url)
