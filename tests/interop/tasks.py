"""The same tasks in either library, for workers and for clients; see `make_app`."""

from __future__ import annotations

import importlib
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any
from uuid import UUID

import redis

TYPES = {
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc),
    "naive datetime": datetime(2026, 1, 2, 3, 4, 5),
    "date": date(2026, 1, 2),
    "time": time_of_day(3, 4, 5, 6),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "bytes": b"abc",
    "bytes that are not text": b"\xff\x00",
    "text": "hé☃\U0001f40d",
    "nested": {"a": [1, None, True, 2.5], "b": [{"c": Decimal("0.1")}]},
}

QUEUES = {"celery": "original", "minicelery": "mini"}
"""The queue that each library's worker serves."""


@dataclass(frozen=True)
class Place:
    """Where the libraries meet: the servers, and the settings that come with them."""

    name: str  # "redis", "rabbitmq", or "quorum": RabbitMQ with quorum queues and rpc results
    broker: str
    backend: str
    store: str  # a Redis in which tasks note what they did

    def settings(self, queue: str) -> dict[str, Any]:
        """For the worker that serves `queue`, and for its clients."""
        found: dict[str, Any] = {
            "accept_content": ["json", "msgpack"],
            "worker_prefetch_multiplier": 1,
            "task_default_queue": queue,
        }
        if self.name == "quorum":
            # Celery delays in the server what goes to a queue of a topic exchange: the default one here.
            found["task_default_queue"] = f"{queue}.later"
            found["task_default_queue_type"] = found["task_create_missing_queue_type"] = "quorum"
            found["task_default_exchange_type"] = "topic"
            found["task_create_missing_queue_exchange_type"] = "direct"
        if self.name == "rabbitmq":
            found["result_extended"] = True
            found["task_queues"] = {
                queue: {"exchange": queue, "routing_key": queue},
                f"{queue}.urgent": {
                    "exchange": f"{queue}.urgent",
                    "routing_key": f"{queue}.urgent",
                    "queue_arguments": {"x-max-priority": 10},
                },
                **{
                    f"{queue}.{name}": {
                        "exchange": f"{queue}.topics",
                        "exchange_type": "topic",
                        "routing_key": key,
                    }
                    for name, key in TOPICS.items()
                },
            }
        return found


TOPICS = {"mail": "mail.#", "eu": "*.eu"}
"""Queues of the exchange `<queue>.topics`, and what they are bound to it by."""


class OrderError(Exception):
    """An exception both sides know."""

    def __init__(self, number: int, details: Any) -> None:
        super().__init__(number, details)
        self.number = number


def make_app(library: str, place: Place | str, queue: str = "celery") -> Any:
    """The app with its tasks in `library`, ``celery`` or ``minicelery``, and `queue` its default one.

    The URL of a Redis stands for the place that is nothing else.
    """
    if isinstance(place, str):
        place = Place("redis", place, place, place)
    module = importlib.import_module(library)
    app = module.Celery("interop", broker=place.broker, backend=place.backend, set_as_current=False)
    app.conf.update(place.settings(queue))
    if library == "celery":
        app.conf.broker_connection_retry_on_startup = True  # else it warns
    ends = importlib.import_module(f"{library}.exceptions")
    store = redis.Redis.from_url(place.store, socket_timeout=None)  # tasks wait for what is pushed

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

    @task("about", bind=True)
    def about(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        info = request.delivery_info
        return {
            **{name: getattr(request, name) for name in ABOUT},
            "args": list(request.args),
            "kwargs": dict(request.kwargs),
            "timelimit": list(request.timelimit or (None, None)),
            "exchange": info["exchange"],
            "routing_key": info["routing_key"],
            "priority": info["priority"],
            "redelivered": bool(info["redelivered"]),
        }

    # -- ends of their own -----------------------------------------------------------------

    @task("fail")
    def fail(kind: str) -> None:
        if kind == "own":
            raise OrderError(7, {"why": "x"})
        if kind == "unheard":
            raise importlib.import_module("tests.interop.only_in_workers").Unheard("why", 1)
        raise ValueError("bad value", 42)

    @task("ignore", bind=True)
    def ignore(self: Any, key: str, state: str | None) -> None:
        note.run(key, "ran")
        if state is not None:
            self.update_state(state=state, meta={"by": "itself"})
        raise ends.Ignore()

    @task("reject", bind=True, acks_late=True)
    def reject(self: Any, key: str, requeue: bool) -> str:
        if store.rpush(f"note.{key}", "ran") == 1:
            raise ends.Reject("not like this", requeue=requeue)
        return "taken at last"

    @task("flaky", bind=True, max_retries=3)
    def flaky(self: Any, succeed_after: int, countdown: float = 0.05) -> Any:
        note.run(self.request.id, self.request.retries)
        if self.request.retries < succeed_after:
            raise self.retry(exc=OrderError(self.request.retries, None), countdown=countdown)
        return [self.request.retries, self.request.id, self.request.parent_id]

    @task("hopeless", bind=True, max_retries=1)
    def hopeless(self: Any) -> None:
        self.retry(countdown=0.05)

    @task("swallow", bind=True, max_retries=1)
    def swallow(self: Any) -> str:
        note.run(self.request.id, self.request.retries)
        try:
            self.retry(countdown=0.05)
        except Exception:
            return "swallowed"
        return ""

    # -- what comes after, and beside --------------------------------------------------------

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

    @task("spawn", bind=True)
    def spawn(self: Any) -> str:
        return str(about.apply_async(queue=self.request.delivery_info["routing_key"]).id)

    @task("ignored", ignore_result=True)
    def ignored(key: str) -> str:
        note.run(key, "ran")
        return "nobody asks"

    # -- that take their time ----------------------------------------------------------------

    @task("nap")
    def nap(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @task("hold", acks_late=True, track_started=True)
    def hold(key: str) -> str:
        store.blpop([f"release.{key}"], timeout=90)
        return "released"

    @task("progress", bind=True)
    def progress(self: Any, key: str) -> str:
        self.update_state(state="PROGRESS", meta={"done": 1, "total": 2})
        store.blpop([f"release.{key}"], timeout=90)
        return "finished"

    return app


ABOUT = (
    "id", "headers", "retries", "eta", "expires", "root_id", "parent_id", "group", "group_index", "shadow",
    "correlation_id", "reply_to", "origin", "ignore_result", "is_eager", "called_directly",
)  # fmt: skip
"""What `about` tells of its request, beside what it takes from parts of it."""


def environment(library: str, place: Place) -> dict[str, str]:
    """What makes `app` of this module the one of `library`'s worker."""
    return {"INTEROP_LIBRARY": library, "INTEROP_PLACE": json.dumps(asdict(place))}


if "INTEROP_LIBRARY" in os.environ:
    _library = os.environ["INTEROP_LIBRARY"]
    app = make_app(_library, Place(**json.loads(os.environ["INTEROP_PLACE"])), QUEUES[_library])
