"""Fixtures of the compatibility tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minicelery import Celery, _state
from minicelery.message import new_id
from tests.compat.shop import Shop
from tests.compat.stage import Stage


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """An app of this test's own, with its broker and results in memory."""
    for name in ("shared", "finalized"):  # tasks and apps that other tests have declared
        monkeypatch.setattr(_state, name, [])
    url = f"memory://{new_id()}"
    with Celery("compat", broker=url, backend=url) as app:
        yield Stage(app)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    found = Shop(tmp_path)
    yield found
    found.stop()
    found.app.close()
