"""An app with a broker in memory, and a worker that runs in the test's own thread when told to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytest

from minicelery import Celery
from minicelery.broker import open_limits
from minicelery.message import Message, Outcome, decode_body
from minicelery.result import DisabledBackend
from minicelery.serialization import accepted
from minicelery.signals import Signal
from minicelery.worker.admission import Admission
from minicelery.worker.executor import Executor

F = TypeVar("F", bound=Callable[..., Any])

EVERYTHING = accepted(("json", "msgpack"))


def each(cases: Mapping[str, Any]) -> Callable[[F], F]:
    """Run a test once for each of `cases`, as its argument `case`; a row of the list names one."""

    def decorate(function: F) -> F:
        vars(function)["cases"] = frozenset(cases)
        marked: F = pytest.mark.parametrize("case", cases.values(), ids=list(cases))(function)
        return marked

    return decorate


class Stage:
    """One test's app, what it has sent, and its worker."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.outcomes: list[Outcome] = []  # of all that has run, in order

    def work(self, *queues: str, wait: float = 0.0, most: int = 100) -> list[Outcome]:
        """Run what is in the queues, and what follows from it, until nothing is left; the outcomes.

        `wait` is for what is delayed: the seconds without anything after which nothing is left.  After `most`
        runs nothing is waited for.
        """
        backend = self.app.backend
        consumer = self.app.broker.consumer(
            queues or ("celery",), "compat", None if isinstance(backend, DisabledBackend) else backend
        )
        executor = Executor(self.app, "w1@compat")
        if (limits := open_limits(self.app)) is not None:
            executor.admission = Admission(self.app, limits)
        outcomes: list[Outcome] = []
        try:
            fresh = consumer.swap([], 1, wait)
            while fresh and len(outcomes) < most:
                done = [executor.run(one) for one in fresh]
                outcomes += done
                fresh = consumer.swap(done, int(len(outcomes) < most), wait)
        finally:
            consumer.close()
        self.outcomes += outcomes
        return outcomes

    def run(self, task: Any, *args: Any, **options: Any) -> Any:
        """Call the task, run all that is in the queue, and return the result."""
        found = task.apply_async(args, **options)
        self.work()
        return found

    def sent(self) -> list[Message]:
        """What is in all queues, delayed or not; it stays there."""
        store: Any = self.app.broker._store  # type: ignore[attr-defined]  # a memory broker's
        ready = [entry for lanes in store.ready.values() for lane in lanes.values() for entry in lane]
        return [
            entry.message
            for entry in [*ready, *(entry for _, _, entry in sorted(store.delayed, key=lambda one: one[:2]))]
        ]

    def message(self, task: Any, *args: Any, kwargs: Any = None, **options: Any) -> Message:
        """The message of a call with these options; it is sent, and never run."""
        task.apply_async(args, kwargs, **options)
        [message] = self.sent()
        self.forget()
        return message

    def forget(self) -> None:
        """Empty all queues."""
        for message in self.sent():
            self.app.broker.purge(message.queue)

    def lose(self, task: Any, *, reason: str = "Worker exited prematurely: signal 9 (SIGKILL)") -> Outcome:
        """What becomes of a call of the task whose child has died."""
        task.apply_async()
        consumer = self.app.broker.consumer(("celery",), "dead", None)
        [delivery] = consumer.swap([], 1, 0.0)
        delivery.started, delivery.reason = True, reason
        outcome = Executor(self.app, "w1@compat").begin(delivery)
        assert isinstance(outcome, Outcome)
        consumer.swap([outcome], 0, 0.0)
        return outcome


def body_of(message: Message) -> tuple[Any, Any, Any]:
    """`(args, kwargs, links)` of a message."""
    return decode_body(message, EVERYTHING)


def delay_of(message: Message) -> float:
    """Seconds from now until the message is due."""
    assert message.due is not None
    return message.due - time.time()


@contextlib.contextmanager
def hearing(*signals: Signal) -> Iterator[list[tuple[str, Any, dict[str, Any]]]]:
    """What the signals say within the block: name, sender and keywords."""
    heard: list[tuple[str, Any, dict[str, Any]]] = []

    def hear(sender: Any, signal: Signal, **named: Any) -> None:
        copied = {key: dict(value) if type(value) is dict else value for key, value in named.items()}
        heard.append((signal.name, sender, copied))

    for signal in signals:
        signal.connect(hear)
    try:
        yield heard
    finally:
        for signal in signals:
            signal.disconnect(hear)
