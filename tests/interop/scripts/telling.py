"""The same tasks in either library, whose workers tell of them: ``LIBRARY``, ``BROKER`` and ``QUEUE`` say where."""

from __future__ import annotations

import importlib
import os
from typing import Any


def make_app(library: str, broker: str, queue: str) -> Any:
    """An app of `library`."""
    module: Any = importlib.import_module(library)
    reject: Any = importlib.import_module(f"{library}.exceptions").Reject
    app = module.Celery("telling", broker=broker, set_as_current=False)
    app.conf.update(task_default_queue=queue, task_send_sent_event=True)

    @app.task(name="telling.add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="telling.fail", shared=False)
    def fail() -> None:
        raise ValueError("bad value", 42)

    @app.task(name="telling.again", shared=False, bind=True)
    def again(self: Any) -> int:
        if not self.request.retries:
            raise self.retry(exc=KeyError("once"), countdown=0.1)
        return 5

    @app.task(name="telling.refuse", shared=False, acks_late=True)
    def refuse() -> None:
        raise reject("no thanks", requeue=False)

    return app


if "LIBRARY" in os.environ:
    app = make_app(os.environ["LIBRARY"], os.environ["BROKER"], os.environ["QUEUE"])
