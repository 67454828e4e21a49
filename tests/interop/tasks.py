"""The same tasks, served by whichever library `INTEROP_LIBRARY` names; for workers and for clients."""

from __future__ import annotations

import importlib
import os
import time
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import redis

TYPES = {
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc),
    "date": date(2026, 1, 2),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "bytes": b"\xff\x00",
    "text": "hé☃",
    "nested": {"a": [1, None, True, 2.5]},
}


class OrderError(Exception):
    """An exception both sides know."""

    def __init__(self, number: int, details: Any) -> None:
        super().__init__(number, details)
        self.number = number


def make_app(library: str, url: str) -> Any:
    """The app with its tasks, in `library`: ``celery`` or ``minicelery``."""
    module = importlib.import_module(library)
    app = module.Celery("interop", broker=url, backend=url, set_as_current=False)
    app.conf.update(accept_content=["json", "msgpack"], worker_prefetch_multiplier=1)
    if library == "celery":
        app.conf.broker_connection_retry_on_startup = True  # else it warns
    store = redis.Redis.from_url(url)

    def task(name: str, **options: Any) -> Any:
        return app.task(name=f"interop.{name}", shared=False, **options)

    @task("add")
    def add(x: int, y: int) -> int:
        return x + y

    @task("echo")
    def echo(*args: Any, **kwargs: Any) -> Any:
        return {"args": list(args), "kwargs": kwargs}

    @task("check_types")
    def check_types(**kwargs: Any) -> Any:
        assert kwargs == TYPES, kwargs
        return kwargs

    @task("fail")
    def fail(kind: str) -> None:
        if kind == "own":
            raise OrderError(7, {"why": "x"})
        raise ValueError("bad value", 42)

    @task("flaky", bind=True, max_retries=3)
    def flaky(self: Any, succeed_after: int) -> Any:
        note.run(self.request.id, self.request.retries)
        if self.request.retries < succeed_after:
            raise self.retry(exc=OrderError(self.request.retries, None), countdown=0.05)
        return [self.request.retries, self.request.id, self.request.parent_id]

    @task("swallow", bind=True, max_retries=1)
    def swallow(self: Any) -> str:
        note.run(self.request.id, self.request.retries)
        try:
            self.retry(countdown=0.05)
        except Exception:
            return "swallowed"
        return ""

    @task("about", bind=True)
    def about(self: Any) -> Any:
        request = self.request
        return {
            "headers": request.headers,
            "retries": request.retries,
            "timelimit": list(request.timelimit or (None, None)),
            "root_id": request.root_id,
            "parent_id": request.parent_id,
            "shadow": request.shadow,
            "correlation_id": request.correlation_id,
            "priority": request.delivery_info["priority"],
            "routing_key": request.delivery_info["routing_key"],
        }

    @task("note")
    def note(key: str, value: Any) -> None:
        store.rpush(f"note.{key}", str(value))

    @task("note_result")
    def note_result(value: Any, key: str) -> None:
        store.rpush(f"note.{key}", str(value))

    @task("errback")
    def errback(task_id: str) -> None:
        store.rpush(f"note.{task_id}", f"errback {task_id}")

    @task("errback_of_three")
    def errback_of_three(request: Any, exc: BaseException, traceback: str) -> None:
        store.rpush(f"note.{request.id}", f"{type(exc).__name__} {exc.args} {traceback.splitlines()[-1]}")

    @task("nap")
    def nap(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @task("progress", bind=True)
    def progress(self: Any, key: str) -> str:
        self.update_state(state="PROGRESS", meta={"done": 1, "total": 2})
        store.blpop([f"note.{key}"], timeout=10)
        return "finished"

    @task("spawn", bind=True)
    def spawn(self: Any) -> str:
        queue = self.request.delivery_info["routing_key"]
        return str(add.apply_async((1, 2), queue=queue).id)

    @task("ignored", ignore_result=True)
    def ignored(key: str) -> str:
        note.run(key, "ran")
        return "nobody asks"

    return app


if "INTEROP_LIBRARY" in os.environ:
    app = make_app(os.environ["INTEROP_LIBRARY"], os.environ["INTEROP_URL"])
