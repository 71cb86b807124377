"""A real browser for the tests: headless Chromium over its debugging pipe, with the network off.

Nothing but the standard library: the DevTools protocol is JSON with a zero byte after each message, on file
descriptors 3 (to the browser) and 4 (from it). `python tests/browser.py PAGE FOLDER` takes screenshots to look at.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
#: Seconds that anything may take before a test gives up (chosen by us: a slow machine shared with others).
PATIENCE = 60.0


def chromium() -> str | None:
    """Return the path of a Chromium, None where the machine has none."""
    return shutil.which(os.environ.get("CHROMIUM", "chromium")) or shutil.which("chromium-browser")


class Browser:
    """One browser process; `open` gives a page at a size."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="landscape-browser-", ignore_cleanup_errors=True)
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()

        def descriptors() -> None:
            # Above 4 first, so that neither is closed by the other's move.
            a, b = os.dup(to_child), os.dup(from_child)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self._process = subprocess.Popen(
            [chromium() or "chromium", *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=descriptors,
        )
        os.close(to_child)
        os.close(from_child)
        self._number = 0
        self._buffer = bytearray()
        self.events: list[dict[str, Any]] = []
        #: Seconds that an answer may take.
        self.patience = PATIENCE

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; what the browser tells meanwhile is kept in `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        rest = memoryview(json.dumps(message).encode() + b"\0")
        while rest:
            rest = rest[os.write(self._write, rest) :]
        until = time.monotonic() + self.patience
        while True:
            answer = self._next(until - time.monotonic())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error'].get('message')}")
                return answer["result"]
            self.events.append(answer)

    def _next(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser gives no answer")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("the browser ended")
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\0")
        self._buffer = bytearray(rest)
        return json.loads(line)

    def open(self, path: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> Page:
        """Open a file, offline, and wait until it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.look(width, height, dark=dark)
        page.call("Page.navigate", url=path.resolve().as_uri())
        page.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        return page

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()


class Page:
    """One page: run script in it, press, click, drag, and look at it."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def look(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Set the size of the window in CSS pixels, and light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, motion])

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, of a promise what it comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        while not self.value(f"Boolean({expression})"):
            if time.monotonic() > until:
                raise TimeoutError(f"still not: {expression}")
            time.sleep(0.05)

    def show(self, selector: str) -> None:
        """Scroll the first match into the middle and let what appears be drawn."""
        self.value(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        self.value("new Promise((r) => requestAnimationFrame(() => setTimeout(r, 60)))")

    def middle(self, selector: str) -> tuple[float, float]:
        """Return where the first match stands in the window."""
        self.show(selector)
        found = self.value(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        return found[0], found[1]

    def click(self, selector: str) -> None:
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, selector: str, dx: float, dy: float) -> None:
        """Press in the middle of the first match, move, and let go."""
        x, y = self.middle(selector)
        at = {"button": "left", "buttons": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, clickCount=1, **at)
        for part in (0.25, 0.5, 0.75, 1.0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + part * dx, y=y + part * dy, **at)
            time.sleep(0.02)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + dx, y=y + dy, clickCount=1, button="left")

    def type(self, selector: str, text: str) -> None:
        """Put text into a field as a person does."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        if text:
            self.call("Input.insertText", text=text)
        else:
            self.press("Backspace", 8)

    def press(self, key: str, code: int = 0) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def complaints(self) -> list[str]:
        """Return every error that the page caused: exceptions, console errors, refused requests."""
        self.value("1")  # what was told before this answer has been read then
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session or "method" not in event:  # an answer that came too late
                continue
            method, told = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(told["exceptionDetails"])[:600])
            elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
                found.append(json.dumps(told["args"])[:600])
            elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
                found.append(told["entry"]["text"])
        return found

    def asked(self) -> list[str]:
        """Return every address that the page asked for."""
        urls = [
            e["params"]["request"]["url"]
            for e in self.browser.events
            if e.get("sessionId") == self.session and e["method"] == "Network.requestWillBeSent"
        ]
        return [u for u in urls if not u.startswith(("blob:", "data:"))]

    def scroll_through(self, step: int = 600) -> None:
        """Scroll from top to bottom, so that everything is drawn once."""
        height = self.value("document.documentElement.scrollHeight")
        for y in range(0, int(height), step):
            self.value(f"scrollTo(0, {y}); new Promise((r) => requestAnimationFrame(() => setTimeout(r, 30)))")

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole page, as a PNG."""
        options: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options = {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1},
            }
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Yield a browser and end it."""
    found = Browser()
    try:
        yield found
    finally:
        found.close()


if __name__ == "__main__":
    where = Path(sys.argv[2])
    where.mkdir(parents=True, exist_ok=True)
    wanted = [int(w) for w in sys.argv[3:]] or [380, 1280, 1600]
    with browser() as b:
        for width in wanted:
            for dark in (False, True):
                page = b.open(Path(sys.argv[1]), width, 1000, dark=dark)
                height, n = page.value("document.documentElement.scrollHeight"), 0
                for y in range(0, height, 950):
                    page.value(f"scrollTo(0, {y}); new Promise((r) => setTimeout(r, 700))")
                    page.picture(where / f"{width}-{'dark' if dark else 'light'}-{n:02d}.png")
                    n += 1
                print(width, dark, n, page.complaints(), page.value("document.documentElement.scrollWidth"))
                page.close()
