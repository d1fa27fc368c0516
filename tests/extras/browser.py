"""A real Chromium without a window, spoken to through a pipe with no library between."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
TIMEOUT_S = 60.0


class Browser:
    """A page in Chromium.

    Attributes:
        complaints: what the browser itself has said of the page: errors of scripts, refused styles and files.
    """

    def __init__(self, profile: Path) -> None:
        program = shutil.which("chromium")
        if program is None:
            raise RuntimeError("no chromium on PATH: apt-get install chromium")
        to_read, ours_to_write = os.pipe()
        ours_to_read, to_write = os.pipe()
        # it reads commands from file 3 and answers in file 4; bash, since dash takes one digit only
        begin = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash"]
        self._process = subprocess.Popen(
            [*begin, program, f"--user-data-dir={profile}", *FLAGS],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._out, self._in = ours_to_write, ours_to_read
        self._waiting, self._number, self._events = b"", 0, []
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: object) -> dict:
        """A command of the protocol to the page; https://chromedevtools.github.io/devtools-protocol/."""
        return self._call(method, self._session, **arguments)

    def _call(self, method: str, session: str | None = None, **arguments: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._heard(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self._waiting:
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("chromium has ended")
            self._waiting += part
        line, self._waiting = self._waiting.split(b"\0", 1)
        return json.loads(line)

    def _heard(self, event: dict) -> None:
        self._events.append(event.get("method"))
        if event.get("method") == "Log.entryAdded":
            self.complaints.append(event["params"]["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))

    def show(self, url: str, width: int, height: int = 900, is_dark: bool = False) -> None:
        """Opens a page at a width, in light or dark colours, and waits until it is loaded."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._events.clear()
        self.complaints.clear()
        self.call("Page.navigate", url=url)
        end = time.monotonic() + TIMEOUT_S
        while "Page.loadEventFired" not in self._events:
            self._heard(self._next())
            if time.monotonic() > end:
                raise TimeoutError(url)

    def value(self, expression: str) -> object:
        """What an expression of JavaScript gives, awaited; an exception in it is raised here."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description"))
        return answer["result"].get("value")

    def picture(self, file: Path) -> Path:
        """Writes the whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16_000), "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))
        return file

    def close(self) -> None:
        """Ends the browser."""
        os.close(self._out)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
