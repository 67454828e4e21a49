"""A headless Chromium of a test's own, driven through a pair of pipes (its DevTools protocol)."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

PROGRAM = "chromium"
END = b"\0"  # of each message
LAUNCH = """
import fcntl, os, sys
out_of_the_way = [fcntl.fcntl(int(given), fcntl.F_DUPFD, 10) for given in sys.argv[1:3]]
for wanted, given in zip((3, 4), out_of_the_way):
    os.dup2(given, wanted)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def opened() -> Iterator[Browser]:
    """What a fixture yields from: a browser; without Chromium its tests are skipped, and fail in CI."""
    if not Browser.available():
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"{PROGRAM} is not installed")
    with Browser() as found:
        yield found


class Browser:
    """One Chromium with one page; use it in a ``with`` statement."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="chromium-"))
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # It reads from descriptor 3 and writes to 4.
        words = [
            PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe",
            f"--user-data-dir={self._folder}", "--window-size=1200,800", "about:blank",
        ]  # fmt: skip
        launch = [sys.executable, "-SEc", LAUNCH, str(commands), str(answers), *words]
        with open(self._folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                launch, pass_fds=(commands, answers), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._received = b""
        self._count = 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    @staticmethod
    def available() -> bool:
        return shutil.which(PROGRAM) is not None

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it with all its processes, and remove its files."""
        os.close(self._commands)
        os.close(self._answers)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, url: str, timeout: float = 30.0) -> None:
        """Go there, or where it leads; returns when the page and its scripts are loaded."""
        self.run("window.left = true")
        self._call("Page.navigate", url=url)
        self.wait_for(
            f"!window.left && location.origin == new URL({json.dumps(url)}).origin"
            " && document.readyState == 'complete'",
            timeout,
        )

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of it."""
        x, y = self.run(
            "(element => {"
            "element.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const {x, y, width, height} = element.getBoundingClientRect();"
            "return [x + width / 2, y + height / 2];"
            f"}})(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def follow(self, selector: str, timeout: float = 30.0) -> None:
        """Click what leads to a page: a link, a form's button; returns when that is loaded."""
        self.run("window.left = true")
        self.click(selector)
        end = time.monotonic() + timeout
        while not self._asked("!window.left && document.readyState == 'complete'"):
            assert time.monotonic() < end, f"not within {timeout} s: another page after {selector}"
            time.sleep(0.02)

    def _asked(self, script: str) -> Any:
        try:
            return self.run(script)
        except RuntimeError:  # asked of a page that was just left, unless the browser itself has ended
            if self._process.poll() is not None:
                raise
            return None

    def type(self, selector: str, text: str) -> None:
        """Type into a field, in place of what it holds."""
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self._call("Input.insertText", text=text)

    def choose(self, selector: str, label: str) -> None:
        """Choose what a list shows as `label`."""
        chosen = self.run(
            f"((list, label) => {{"
            "const found = [...list.options].find(option => option.text == label);"
            "if (!found) return [...list.options].map(option => option.text);"
            "list.value = found.value;"
            "list.dispatchEvent(new Event('change', {bubbles: true}));"
            "return null;"
            f"}})(document.querySelector({json.dumps(selector)}), {json.dumps(label)})"
        )
        assert chosen is None, f"{selector} has no {label!r}: {chosen}"

    def run(self, script: str) -> Any:
        """What the JavaScript expression gives, as JSON has it."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, script: str, timeout: float = 30.0) -> Any:
        """The first truthy value of the expression; AssertionError with the page's text after `timeout`."""
        end = time.monotonic() + timeout
        while not (value := self._asked(script)):
            if time.monotonic() > end:
                raise AssertionError(
                    f"not within {timeout} s: {script}, last value {value!r}; the page {self.run('location.href')} "
                    f"says:\n{self.text()[:3000]}"
                )
            time.sleep(0.05)
        return value

    def text(self, selector: str = "body") -> str:
        """The text that a reader sees there."""
        return str(self.run(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''"))

    def rows(self, selector: str) -> list[list[str]]:
        """The cells of a table's rows."""
        found: list[list[str]] = self.run(
            f"[...document.querySelectorAll({json.dumps(selector + ' tr')})]"
            ".map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent.trim()))"
            ".filter(row => row.length)"
        )
        return found

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, timeout: float = 45.0, **arguments: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + END)
        end = time.monotonic() + timeout
        while True:
            answer = json.loads(self._next(end))
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, end: float) -> bytes:
        while END not in self._received:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError(
                    f"{PROGRAM} does not answer:\n{(self._folder / 'log').read_text()[-2000:]}"
                )
            chunk = os.read(self._answers, 1 << 20)
            if not chunk:
                raise RuntimeError(f"{PROGRAM} has ended:\n{(self._folder / 'log').read_text()[-2000:]}")
            self._received += chunk
        message, _, self._received = self._received.partition(END)
        return message
