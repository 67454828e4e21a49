"""Where compositions are run: an app on some servers, and a worker's loop in this process.

The loop does what happens to workers: deliveries in any order, runs that come to nothing and are
made again, outcomes handed in twice, and, where broker and results are two servers, a death
between the two.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import minicelery
from minicelery import Celery, chord, group
from minicelery.exceptions import Ignore, Reject
from minicelery.groups import GroupResult
from minicelery.message import BODY_HEADER, Delivery, Outcome, Verdict, new_id
from minicelery.result import AsyncResult
from minicelery.worker.executor import Executor
from tests.properties.compositions import End, Failed, Ignored, Several, failed_with, value_of
from tests.properties.libraries import Library

FINAL = {"SUCCESS", "FAILURE", "REVOKED", "IGNORED"}
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

    @app.task(name="retried", bind=True, max_retries=3)
    def retried(self: Any, *args: Any, name: str = "") -> list[Any]:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return [name, *args]

    @app.task(name="moved", bind=True)
    def moved(self: Any, *args: Any, name: str = "") -> Any:
        return self.replace(app.signature("say", args, {"name": name}))

    @app.task(name="spread", bind=True)
    def spread(self: Any, *args: Any, name: str = "") -> Any:
        said = app.signature("say", args, {"name": name})
        return self.replace(group([said, said], app=app))

    @app.task(name="gathered", bind=True)
    def gathered(self: Any, *args: Any, name: str = "") -> Any:
        said = app.signature("say", args, {"name": name})
        return self.replace(chord([said, said | said], app.signature("say", (), {"name": name}), app=app))

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
        self.known: set[str] = set()  # groups that were left open
        self.ended: Counter[str] = Counter()  # how often each call has come to an end, by id
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
        """Run all that is there, and all that comes of it; faults are as `rng` has them, None: there are none."""
        self.seen.clear()
        self.ended.clear()
        held: list[Delivery] = []
        done: list[Outcome] = []
        for _ in range(MOST):
            if done and rng is not None and rng.random() < 0.2:
                self.consumer.swap(deepcopy(done), 0, 0.0)  # its answer was lost
            held += self.consumer.swap(done, 4 if rng is None else rng.randint(1, 4), 0.0)
            done = []
            if not held and not self._more(rng):
                return
            while held and (not done or (rng is not None and rng.random() < 0.5)):
                done.append(self._outcome(held.pop(0 if rng is None else rng.randrange(len(held))), rng))
            self.ended.update(one.delivery.message.id for one in done if self._has_ended(one))
        raise AssertionError(f"no end after {MOST} deliveries: {sorted(set(self.seen.values()))}")

    def _has_ended(self, outcome: Outcome) -> bool:
        """Whether it is the end of a call; copies of a body that is not registered are each refused."""
        known = outcome.delivery.message.task in self.app.tasks
        return known and outcome.record is not None and outcome.record.state in FINAL

    def left_open(self) -> list[str]:
        """The tasks of the bodies that will be sent when their deadline has come, though all has ended."""
        backend: Any = self.app.backend
        bodies = {
            body.headers[BODY_HEADER]: body
            for body in backend.owed_groups(time.time() + 1.5 * 86400.0, self.app.broker.place)
        }
        new = bodies.keys() - self.known
        self.known |= new
        return [bodies[id].task for id in new]

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

    def _more(self, rng: random.Random | None) -> bool:
        """Whether anything is left: waiting for its moment, or owed by somebody who has died."""
        if self.app.broker.delayed("celery") or self.app.broker.size("celery"):
            time.sleep(0.002)
            return True
        backend: Any = self.app.backend
        bodies = []
        for seconds in (1000.0, 5000.0):  # the second time, the first copy is only late
            bodies += backend.owed_groups(time.time() + seconds, self.app.broker.place)
        assert rng is not None or not bodies, "a body is left to those who look after the dead"
        if bodies:
            self.app.broker.publish(bodies)
            backend.group_sent([body.headers[BODY_HEADER] for body in bodies])
        return bool(bodies)


# -- looking at results ----------------------------------------------------------------------------


def check(result: Any, end: End | None) -> None:
    """That a result is what the evaluation has come to."""
    if end is None:
        assert result is None
    elif isinstance(end, Several) and isinstance(result, GroupResult):
        assert len(result.results) == len(end.members), (result, end)
        for one, member in zip(result.results, end.members, strict=True):
            check(one, member)
    elif isinstance(end, Ignored) or (isinstance(end, Several) and end.ignored):
        assert result.state in ("IGNORED", "PENDING")
    elif isinstance(end, Failed):
        assert (result.state, type(result.result).__name__) == ("FAILURE", end.kind), result.result
    elif isinstance(end, Several) and failed_with(end):
        assert result.state == "FAILURE"
    else:
        assert (result.state, result.result) == ("SUCCESS", value_of(end)), result.result


def all_of(result: Any) -> Iterator[AsyncResult[Any]]:
    """The results of all calls that a result names."""
    while result is not None:
        if isinstance(result, GroupResult):
            for one in result.results:
                yield from all_of(one)
        else:
            yield result
        result = result.parent
