"""The same shop in either library, to be looked at in Flower: ``LIBRARY``, ``BROKER`` and ``BACKEND`` say where."""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

QUEUE = "shop"


def make_app(library: str, broker: str, backend: str) -> Any:
    """An app of `library`."""
    app = importlib.import_module(library).Celery("shop", broker=broker, backend=backend)
    app.conf.update(task_default_queue=QUEUE, timezone="Europe/Madrid", worker_pool_restarts=True)
    if library == "minicelery":
        app.conf.task_limits_url = backend  # RabbitMQ keeps no limits

    @app.task(name="shop.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    @app.task(name="shop.fail")
    def fail(why: str) -> None:
        raise ValueError(why)

    @app.task(name="shop.hold")
    def hold(seconds: float) -> None:
        time.sleep(seconds)

    @app.task(name="shop.later", bind=True)
    def later(self: Any) -> None:
        raise self.retry(exc=KeyError("not yet"), countdown=3600)

    return app


if "LIBRARY" in os.environ:
    app = make_app(os.environ["LIBRARY"], os.environ["BROKER"], os.environ["BACKEND"])
