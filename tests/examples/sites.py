"""An example that is a Django site: its README's commands, and its pages for a browser or an HTTP client."""

from __future__ import annotations

import http.cookiejar
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.examples.project import Example

ANN = {"username": "ana", "password": "of-a-test"}


class Site(Example):
    """The running example."""

    def __init__(self, folder: Path, broker_url: str, example: str) -> None:
        super().__init__(folder, broker_url, example)
        for left in ("sent_emails", "correos"):
            shutil.rmtree(self.folder / left, ignore_errors=True)
        self.environment["PYTHONDONTWRITEBYTECODE"] = ""  # or each process would compile all of minicelery

    def prints(self, file: str, listing: str) -> bool:
        """Whether the example's file has the tutorial's listing, but for the import of minicelery."""
        listing = listing.replace("from celery import", "from minicelery import")
        return listing in (self.original / file).read_text(encoding="utf-8")

    def serve(self) -> None:
        """Start the development server on a free port."""
        self.start_server(self.documented("python manage.py runserver", "--noreload 127.0.0.1:0"), "Quit the")

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
