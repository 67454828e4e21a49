"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minicelery import Celery, _state


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Celery]:
    """An app on a memory broker of this test's own."""
    for name in ("shared", "finalized"):  # tasks and apps that other tests have declared
        monkeypatch.setattr(_state, name, [])
    url = f"memory://{request.node.name[:40].replace('[', '-').replace(']', '')}"
    with Celery("app", broker=url, backend=url) as app:
        yield app
