"""What has been sent: kept for a test to look at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from minicelery import signals

_NO_CALLS = ("celery.ping", "celery.backend_cleanup")
"""What a test worker and beat send of their own accord."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One call that was sent; `queue` is its routing key, `eta` aware where there is one."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    id: str
    queue: str
    eta: datetime | None = None
    headers: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        given = [*map(repr, self.args), *(f"{key}={value!r}" for key, value in self.kwargs.items())]
        return f"{self.name}({', '.join(given)})"


class Outbox(Sequence[Sent]):
    """The calls that this process has sent since it was opened, in order; retries are not among them.

    Calls that are run at once, by `apply` or `task_always_eager`, are not sent.
    """

    def __init__(self) -> None:
        self._sent: list[Sent] = []
        signals.after_task_publish.connect(self._note)

    def close(self) -> None:
        """Note no more."""
        signals.after_task_publish.disconnect(self._note)

    def clear(self) -> None:
        """Forget what has been sent so far."""
        self._sent.clear()

    def _note(
        self, sender: Any = None, body: Any = None, headers: Any = None, routing_key: str = "", **_: Any
    ) -> None:
        name = str(sender)
        if name in _NO_CALLS or (headers or {}).get("retries"):
            return
        args, kwargs = (body[0], body[1]) if isinstance(body, (list, tuple)) else ((), {})
        eta = headers.get("eta")
        self._sent.append(
            Sent(
                name, tuple(args), dict(kwargs), headers["id"], routing_key,
                datetime.fromisoformat(eta.replace("Z", "+00:00")) if isinstance(eta, str) else eta, dict(headers),
            )
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._sent)

    def __getitem__(self, index: Any) -> Any:
        return self._sent[index]

    def __repr__(self) -> str:
        return f"<Outbox: {', '.join(map(str, self._sent)) or 'empty'}>"

    def of(self, task: Any) -> list[Sent]:
        """The calls of one task, given as such or by its name."""
        return [sent for sent in self._sent if sent.name == _name(task)]

    def assert_enqueued(
        self,
        task: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        times: int | None = None,
        queue: str | None = None,
        eta: datetime | None = None,
        where: Callable[[Sent], Any] | None = None,
    ) -> list[Sent]:
        """The calls of `task` with these arguments, this queue and eta, of which `where` holds.

        What is None may be anything.  Raises AssertionError that names what was sent unless
        there are so many `times`, or without it at least one.
        """
        found = [
            sent
            for sent in self.of(task)
            if (args is None or sent.args == tuple(args))
            and (kwargs is None or sent.kwargs == dict(kwargs))
            and (queue is None or sent.queue == queue)
            and (eta is None or sent.eta == eta)
            and (where is None or where(sent))
        ]
        if len(found) == times or (times is None and found):
            return found
        wanted = [
            f"{key}={value!r}"
            for key, value in (("args", args), ("kwargs", kwargs), ("queue", queue), ("eta", eta))
            if value is not None
        ]
        often = "at least once" if times is None else _often(times)
        lines = "".join(
            f"\n  {sent} to {sent.queue}" + (f" at {sent.eta}" if sent.eta else "") for sent in self._sent
        )
        raise AssertionError(
            f"{' '.join([_name(task), *wanted])} was to be sent {often}, and was {_often(len(found))}; "
            f"sent were{lines or ' no tasks'}"
        )


@contextmanager
def assert_enqueued(task: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Iterator[list[Sent]]:
    """Assert that within a ``with`` statement `task` is sent; see `Outbox.assert_enqueued`.

    Gives a list that has the calls when the statement has ended.
    """
    found: list[Sent] = []
    with contextlib.closing(Outbox()) as outbox:
        yield found
        found += outbox.assert_enqueued(task, args, kwargs, **options)


def _often(times: int) -> str:
    return {0: "not at all", 1: "once"}.get(times, f"{times} times")


def _name(task: Any) -> str:
    return task if isinstance(task, str) else str(task.name)
