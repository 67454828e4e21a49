"""Where compositions are run: an app on some servers, and a worker's loop in this process.

The loop does what happens to workers: deliveries in any order, runs that come to nothing and are
made again, outcomes handed in twice, and, where broker and results are two servers, a death
between the two.
"""

from __future__ import annotations

import random
import time
from copy import deepcopy
from typing import Any

import minicelery
from minicelery import Celery
from minicelery.exceptions import Ignore, Reject
from minicelery.message import Delivery, Outcome, Verdict, new_id
from minicelery.worker.executor import Executor
from tests.properties.compositions import Library

MOST = 1500
"""Deliveries after which a composition is taken for one that never ends."""


def add_tasks(app: Any, ignore: type[Exception] = Ignore, reject: type[Exception] = Reject) -> None:
    """Declare the tasks that compositions are made of; `app` is of either library."""

    @app.task(name="say")
    def say(*args: Any, name: str = "") -> list[Any]:
        return [name, *args]

    @app.task(name="fail")
    def fail(*args: Any, name: str = "") -> None:
        raise ValueError(name)

    @app.task(name="again", bind=True, max_retries=3)
    def again(self: Any, *args: Any, name: str = "") -> list[Any]:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return [name, *args]

    @app.task(name="ignore")
    def ignored(*args: Any, name: str = "") -> None:
        raise ignore

    @app.task(name="reject")
    def rejected(*args: Any, name: str = "") -> None:
        raise reject(name)

    @app.task(name="heard")
    def heard(task_id: str, key: str = "") -> str:
        return key


class Place:
    """An app, its servers, and what a worker does with them."""

    def __init__(self, broker: str, backend: str = "", **conf: Any) -> None:
        self.app = Celery("compositions", broker=broker, backend=backend or broker, set_as_current=False)
        self.app.conf.update(task_always_eager=False, **conf)
        add_tasks(self.app)
        self.apart = bool(backend) and backend != broker
        self.executor = Executor(self.app)
        self.consumer = self.app.broker.consumer(["celery"], f"c{new_id()}", self.app.backend)
        self.seen: dict[str, str] = {}  # what has been delivered: the task's name by id

    def library(self) -> Library:
        """Makes signatures of the app; what is linked has ids of its own each time."""
        return Library(
            self.app, minicelery.chain, minicelery.group, minicelery.chord, minicelery.signature,
            minicelery.xmap, minicelery.xstarmap, minicelery.chunks, f"{new_id()}.",
        )  # fmt: skip

    def close(self) -> None:
        self.consumer.close()
        self.app.close()

    def drain(self, rng: random.Random | None = None) -> None:
        """Run all that is there, and all that comes of it; faults are as `rng` has them."""
        self.seen.clear()
        held: list[Delivery] = []
        done: list[Outcome] = []
        for _ in range(MOST):
            if done and rng is not None and rng.random() < 0.2:
                self.consumer.swap(deepcopy(done), 0, 0.0)  # its answer was lost
            held += self.consumer.swap(done, 4 if rng is None else rng.randint(1, 4), 0.0)
            done = []
            if not held and not self._more():
                return
            if held:
                done = [self._outcome(held.pop(0 if rng is None else rng.randrange(len(held))), rng)]
        raise AssertionError(f"no end after {MOST} deliveries: {sorted(set(self.seen.values()))}")

    def _outcome(self, delivery: Delivery, rng: random.Random | None) -> Outcome:
        message = delivery.message
        self.seen[message.id] = message.task
        fate = 1.0 if rng is None else rng.random()
        if fate < 0.1:
            return Outcome(delivery, Verdict.REQUEUE)
        if fate < 0.3:
            lost = self.executor.run(deepcopy(delivery))
            if self.apart and fate < 0.2:
                backend: Any = self.app.backend
                backend.store(lost.records())
        return self.executor.run(delivery)

    def _more(self) -> bool:
        """Whether anything is left: waiting for its moment, or owed by somebody who has died."""
        if self.app.broker.delayed("celery") or self.app.broker.size("celery"):
            time.sleep(0.002)
            return True
        backend: Any = self.app.backend
        if bodies := backend.owed_groups(time.time() + 1000.0):
            self.app.broker.publish(bodies)
            backend.group_sent([body.headers["x-minicelery-body"] for body in bodies])
        return bool(bodies)
