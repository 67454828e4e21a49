"""An app that asks for results, and a second one that stores them, as a worker would."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minicelery import Celery, record
from minicelery.message import Record, new_id
from minicelery.result import AsyncResult


class Site:
    """The app of one test, and who answers it."""

    def __init__(self, app: Celery, answers: Celery) -> None:
        self.app = app
        self._answers = answers

    def result(self, id: str | None = None, **options: Any) -> AsyncResult[Any]:
        """The result of a call that was sent."""
        found = self.app.AsyncResult(id or new_id(), **options)
        if hasattr(self.app.backend, "expect"):
            self.app.backend.expect([found.id])
        return found

    def answer(self, result: AsyncResult[Any], value: object = 4, *sent: Any, state: str = "SUCCESS") -> None:
        """Store the end of a call, whose task has sent what `sent` are the results of."""
        self.store([self.record(result, value, *sent, state=state)])

    def fail(self, result: AsyncResult[Any], error: Exception) -> None:
        """Store that the call has failed."""
        self.answer(result, error, state="FAILURE")

    def record(
        self, result: AsyncResult[Any], value: object = 4, *sent: Any, state: str = "SUCCESS"
    ) -> Record:
        """What a worker stores."""
        if isinstance(value, Exception):
            value = record.exception_document(value)
        children = [json.loads(json.dumps(one.as_tuple())) for one in sent]
        found = record.encode(result.id, state, value, children=children)
        found.reply_to = getattr(self.app.backend, "queue", "")
        return found

    def store(self, records: list[Record]) -> None:
        self._answers.backend.store(records)


def opened(request: pytest.FixtureRequest, kind: str) -> Iterator[Site]:
    """A site on that kind of server: memory, sqlite, redis or rpc."""
    if kind == "rpc":
        broker, backend = request.getfixturevalue("rabbit_url"), "rpc://"
    else:
        broker = f"memory://{new_id()}" if kind == "memory" else request.getfixturevalue(f"{kind}_url")
        backend = broker
    with (
        Celery("asks", broker=broker, backend=backend, set_as_current=False) as app,
        Celery("answers", broker=broker, backend=backend, set_as_current=False) as answers,
    ):
        yield Site(app, answers)


def soon(act: Callable[[], object], delay: float = 0.1) -> threading.Timer:
    """Do it while the test waits."""
    timer = threading.Timer(delay, act)
    timer.daemon = True
    timer.start()
    return timer
