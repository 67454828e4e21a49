"""The browser that looks at the examples' pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import Browser, opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium of a module's own."""
    yield from opened()
