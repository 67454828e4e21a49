"""An example that is a Django site: its README's commands, and its pages for a browser or an HTTP client."""

from __future__ import annotations

import contextlib
import http.cookiejar
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.docs.blocks import code_blocks
from tests.examples.project import ROOT, Project
from tests.rabbit import RabbitServer

ANN = {"username": "ana", "password": "of-a-test"}


class Site(Project):
    """The example's project; its commands are lines of its README."""

    url = ""
    """Of the development server, once it runs."""

    def __init__(self, folder: Path, broker_url: str, example: str) -> None:
        super().__init__(folder, broker_url, example)
        self.example = example
        for left in ("sent_emails", "correos"):
            shutil.rmtree(self.folder / left, ignore_errors=True)
        self.environment["PYTHONDONTWRITEBYTECODE"] = ""  # or each process would compile all of minicelery
        text = (self.folder / "README.md").read_text(encoding="utf-8")
        self._commands = {
            line for block in code_blocks(text) if block.language == "bash" for line in block.text.splitlines()
        }

    def replace(self, file: str, old: str, new: str) -> None:
        """Have the copy name this test's server: `old` stands in the example as the tutorial prints it."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} of the example does not say {old}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def prints(self, file: str, listing: str) -> bool:
        """Whether the example's file has the tutorial's listing, but for the import of minicelery."""
        listing = listing.replace("from celery import", "from minicelery import")
        return listing in (ROOT / "examples" / self.example / file).read_text(encoding="utf-8")

    def documented(self, command: str, more: str = "") -> str:
        """What `run` and `start` take, for a command of the README and, behind it, what a test needs."""
        assert command in self._commands, f"the README says nothing of {command!r}"
        words = command.split()
        if words[0] == "python":
            del words[: 2 if words[1] == "-m" else 1]
        return " ".join([*words, more]).strip()

    def serve(self) -> None:
        """Start the development server on a free port."""
        log = self.log.with_name("web.log")
        self.start(self.documented("python manage.py runserver", "--noreload 127.0.0.1:0"), log, "Quit the")
        found = re.search(r"development server at (http://[\d.:]+)/", log.read_text())
        assert found is not None, log.read_text()
        self.url = found[1]

    def add_administrator(self) -> None:
        """`ANN`, by the documented command, which would ask for her password."""
        self.environment |= {f"DJANGO_SUPERUSER_{name.upper()}": value for name, value in ANN.items()}
        command = self.documented("python manage.py createsuperuser", "--noinput --email ana@example.com")
        assert "created" in self.run(command)


class Visitor:
    """An HTTP client with cookies, that follows no redirects."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self._cookies), _NoRedirect
        )

    def get(self, path: str) -> tuple[str, float]:
        """The page, and the seconds that it took."""
        return self._ask(path, None)

    def submit(self, path: str, **fields: str) -> float:
        """Fill in the form of a page; the seconds until its answer, which leads to another page."""
        page, _ = self.get(path)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert token is not None, page
        fields["csrfmiddlewaretoken"] = token[1]
        page, seconds = self._ask(path, urllib.parse.urlencode(fields).encode())
        assert page.startswith("302 "), page
        return seconds

    def _ask(self, path: str, data: bytes | None) -> tuple[str, float]:
        began = time.monotonic()
        try:
            with self._opener.open(self._url + path, data, timeout=30) as answer:
                page = answer.read().decode()
        except urllib.error.HTTPError as error:
            page = f"{error.code} {error.headers['Location']}"
        return page, time.monotonic() - began


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def least(rounds: Iterator[float], limit: float) -> float:
    """The least of some times, and no more rounds than it takes to come below `limit`."""
    found = float("inf")
    for seconds in rounds:
        found = min(found, seconds)
        if found < limit:
            break
    return found


@contextlib.contextmanager
def on_rabbit(server: RabbitServer, folders: pytest.TempPathFactory, example: str) -> Iterator[Site]:
    """The example, on a virtual host of its own."""
    vhost = f"example-{uuid4().hex[:8]}"
    server.add_vhost(vhost)
    site = Site(folders.mktemp("example"), server.url(vhost), example)
    try:
        yield site
    finally:
        site.close()
        server.delete_vhost(vhost)
