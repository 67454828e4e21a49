"""Asking running workers and giving them orders: `app.control`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.broker.post import Letter, Listening
from minicelery.exceptions import DuplicateNodenameWarning
from minicelery.message import new_id
from minicelery.options import nearest
from minicelery.remote.inspecting import Inspect
from minicelery.remote.request import (
    MATCHERS,
    Request,
    decode_reply,
    encode_request,
    matches,
    replies_box,
)
from minicelery.stop_signals import stop_signal

if TYPE_CHECKING:
    from minicelery.app import Celery

REVOKED_FOR = 30 * 86400.0
"""Seconds for which the order not to run a task is kept; it must outlast the task's delay."""
TERMINATED_FOR = 600.0
"""Seconds for which workers look for a run of it that is to be ended."""
AT_ONCE = 10_000
"""Ids that one request names."""
MOST_REPLIES = 100_000
_OF_BROADCAST = (
    "connection", "reply", "timeout", "limit", "callback", "channel", "pattern", "matcher", "quiet",
)  # fmt: skip


class Control:
    """Orders to the workers of an app, and questions.

    `destination` names the workers that are meant, `pattern` and `matcher` ("glob", "pcre")
    describe their names; all of them otherwise.  An order waits for replies only with
    ``reply=True``, for `timeout` seconds after the last one that came, and returns them as
    ``[{node: reply}, …]``.  Raises OperationalError where the broker can't be reached.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app

    # -- asking ----------------------------------------------------------------------------

    def inspect(
        self, destination: Any = None, timeout: float | None = 1.0, callback: Callable[[Any], Any] | None = None,
        connection: Any = None, app: Any = None, limit: int | None = None, pattern: str | None = None,
        matcher: str | None = None, quiet: float | None = None,
    ) -> Inspect:  # fmt: skip
        """Questions to workers, each a method."""
        control = self if app is None else app.control
        return Inspect(control, destination, timeout, callback, limit, pattern, matcher, quiet)

    def ping(
        self, destination: Any = None, timeout: float | None = 1.0, **options: Any
    ) -> list[dict[str, Any]]:
        """Ask who is there: ``[{"celery@host": {"ok": "pong"}}, …]``."""
        found: list[dict[str, Any]] = self.broadcast(
            "ping", {}, destination, **{"reply": True, "timeout": timeout, **options}
        )
        return found

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Any = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float | None = 1.0,
        limit: int | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        channel: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
        *,
        quiet: float | None = None,
        **more: Any,
    ) -> Any:
        """Send a command; with ``reply=True`` a list of the replies, each ``{node: value}``.

        `limit` replies are enough, and one of each `destination`.  `callback` gets each reply as
        it comes.  `quiet`: where some have come, wait for further ones so long instead of `timeout`.
        Other keyword arguments are the command's.
        """
        request = Request(
            _command(command), _arguments(command, arguments, more), *_address(destination, pattern, matcher)
        )
        return self._send(request, reply=reply, timeout=timeout, limit=limit, callback=callback, quiet=quiet)

    def _send(
        self, request: Request, *, reply: Any, timeout: float | None, limit: int | None, callback: Any,
        quiet: float | None = None,
    ) -> list[dict[str, Any]] | None:  # fmt: skip
        timeout = _seconds("timeout", timeout)
        limit = _limit(limit) or (len(set(request.destination)) if request.destination else None)
        app = self.app
        exchange = app.conf.control_exchange
        request.ticket = (
            new_id()
        )  # also where no reply is wanted: what a lost connection repeats is known by it
        if not reply:
            app.broker.post.send([encode_request(request, app.clock.forward(), timeout, exchange)])
            return None
        asker = new_id()
        box = replies_box(asker, exchange, **times_of(app.conf))
        request.reply_to = box.exchange, asker
        with app.broker.post.listen([box]) as listening:
            letter = encode_request(request, app.clock.forward(), timeout, exchange)
            heard: Any = app.broker.post.send([letter])
            if type(heard) is int:  # so many listen, and no more can answer
                limit = heard if limit is None else min(limit, heard)
            return self._collect(listening, request.ticket, limit, timeout, quiet, callback)

    def _collect(
        self, listening: Listening, ticket: str, limit: int | None, timeout: float | None,
        quiet: float | None, callback: Any,
    ) -> list[dict[str, Any]]:  # fmt: skip
        found: list[dict[str, Any]] = []
        enough = MOST_REPLIES if limit is None else limit
        end, over = _end(timeout), False
        while len(found) < enough and not over:
            left = end - time.monotonic()
            over = left <= 0  # after one more look: who could not run all the time has replies waiting
            for letter in listening.take(max(0.0, min(left, 60.0))):
                if (reply := self._reply(letter, ticket)) is not None and len(found) < enough:
                    found.append(reply)
                    over = False
                    end = _end(timeout if quiet is None or timeout is None else min(quiet, timeout))
                    if callback is not None:
                        callback(reply)
        return found

    def _reply(self, letter: Letter, ticket: str) -> dict[str, Any] | None:
        self.app.clock.adjust(letter.headers.get("clock"))
        return decode_reply(letter, ticket)

    # -- tasks -----------------------------------------------------------------------------

    def revoke(
        self, task_id: str | Iterable[str], destination: Any = None, terminate: bool = False,
        signal: str | int | None = "SIGTERM", **options: Any,
    ) -> Any:  # fmt: skip
        """Have tasks not run, by id or several ids; with `terminate` end them if they run.

        The worker that meets one stores its state, REVOKED: whether it runs already nobody else
        knows.  The order is kept in the broker, so it outlives every worker.  Raises TypeError or
        ValueError for a value that can't be.
        """
        ids = _ids(task_id)
        if terminate not in (True, False):
            raise ValueError(f"terminate={terminate!r:.80} of revoke: expected True or False")
        sending = _sending("revoke", options)
        meant = _address(destination, sending.pop("pattern"), sending.pop("matcher"))
        name = stop_signal(signal)
        broker = self.app.broker
        broker.remember_all("revoked", dict.fromkeys(ids, b""), REVOKED_FOR)
        found = None
        step = max(1, len(ids)) if sending["reply"] else AT_ONCE
        try:
            for start in range(0, len(ids), step):
                part = task_id if isinstance(task_id, str) else ids[start : start + step]
                arguments = {"task_id": part, "terminate": bool(terminate), "signal": name}
                found = self._send(Request("revoke", arguments, *meant, kept=True), **sending)
        finally:
            # After the request: else a worker may obey this, and reply to that one that it knows no such task.
            if terminate:
                broker.remember_all("terminate", dict.fromkeys(ids, name.encode()), TERMINATED_FOR)
        return found

    def terminate(
        self, task_id: str | Iterable[str], destination: Any = None, signal: str | int | None = "SIGTERM", **options: Any
    ) -> Any:  # fmt: skip
        """`revoke` with ``terminate=True``."""
        return self.revoke(task_id, destination, True, signal, **options)

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any], destination: Any = None, terminate: bool = False,
        signal: str | int | None = "SIGTERM", **options: Any,
    ) -> Any:  # fmt: skip
        """Have tasks not run that bear one of these stamps; with `terminate` end them if they run.

        Workers that are there now remember it, for as long as they live.
        """
        if not isinstance(headers, Mapping) or not headers:
            raise TypeError(
                f"headers={headers!r:.80} of revoke_by_stamped_headers: expected {{name: stamp, or stamps}}"
            )
        arguments = {"headers": dict(headers), "terminate": bool(terminate), "signal": stop_signal(signal)}
        return self.broadcast("revoke_by_stamped_headers", arguments, destination, **options)

    def rate_limit(self, task_name: str, rate_limit: Any, destination: Any = None, **options: Any) -> Any:
        """Have a task run at no more than this rate, such as ``"10/m"``; 0: at any."""
        arguments = {"task_name": _command(task_name, "task_name"), "rate_limit": rate_limit}
        return self.broadcast("rate_limit", arguments, destination, **options)

    def time_limit(
        self, task_name: str, soft: float | None = None, hard: float | None = None, destination: Any = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Give a task other time limits, in seconds; None: those of the worker."""
        arguments = {"task_name": _command(task_name, "task_name"), "hard": hard, "soft": soft}
        return self.broadcast("time_limit", arguments, destination, **options)

    # -- workers ---------------------------------------------------------------------------

    def add_consumer(
        self, queue: str, exchange: str | None = None, exchange_type: str | None = "direct",
        routing_key: str | None = None, options: Mapping[str, Any] | None = None, destination: Any = None,
        **more: Any,
    ) -> Any:  # fmt: skip
        """Have workers serve one more queue."""
        arguments = {
            "queue": _command(queue, "queue"), "exchange": exchange, "exchange_type": exchange_type,
            "routing_key": routing_key, **(options or {}),
        }  # fmt: skip
        return self.broadcast("add_consumer", arguments, destination, **more)

    def cancel_consumer(self, queue: str, destination: Any = None, **options: Any) -> Any:
        """Have workers serve a queue no more."""
        return self.broadcast("cancel_consumer", {"queue": _command(queue, "queue")}, destination, **options)

    def enable_events(self, destination: Any = None, **options: Any) -> Any:
        """Have workers tell of their tasks."""
        return self.broadcast("enable_events", {}, destination, **options)

    def disable_events(self, destination: Any = None, **options: Any) -> Any:
        """Have workers tell of their tasks no more."""
        return self.broadcast("disable_events", {}, destination, **options)

    def heartbeat(self, destination: Any = None, **options: Any) -> Any:
        """Have workers give a sign of life now, as an event."""
        return self.broadcast("heartbeat", {}, destination, **options)

    def pool_grow(self, n: int = 1, destination: Any = None, **options: Any) -> Any:
        """Have workers run `n` tasks more at once."""
        return self.broadcast("pool_grow", {"n": n}, destination, **options)

    def pool_shrink(self, n: int = 1, destination: Any = None, **options: Any) -> Any:
        """Have workers run `n` tasks less at once."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **options)

    def autoscale(
        self, max: int | None = None, min: int | None = None, destination: Any = None, **options: Any
    ) -> Any:
        """Give workers that follow the work other bounds."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **options)

    def pool_restart(
        self, modules: Sequence[str] | None = None, reload: bool = False, reloader: Any = None, destination: Any = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Replace the children; `modules` are imported before that, or with `reload` imported anew.

        Workers must allow it by their setting `worker_pool_restarts`.
        """
        arguments = {"modules": modules, "reload": reload, "reloader": reloader}
        return self.broadcast("pool_restart", arguments, destination, **options)

    def shutdown(self, destination: Any = None, **options: Any) -> Any:
        """Stop workers; what runs is finished.  There is no reply."""
        return self.broadcast("shutdown", {}, destination, **options)

    # -- queues ----------------------------------------------------------------------------

    def purge(self, connection: Any = None) -> int:
        """Delete what waits in the app's queues; how many messages."""
        broker, queues = self.app.broker, self.app._sender.router.queues
        return sum(broker.purge(queue) for queue in queues)

    discard_all = purge

    def election(self, *_: Any, **__: Any) -> None:
        """Not served: minicelery's workers elect nobody, and it may end Celery's."""
        raise NotImplementedError("app.control.election is not served: minicelery's workers elect nobody")


def times_of(conf: Any) -> dict[str, float | None]:
    """How long letters stay in queues of remote control, and these without a listener."""
    return {"ttl": conf.control_queue_ttl, "expires": conf.control_queue_expires}


def flatten_reply(replies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """``[{node: reply}, …]`` as one dict; warns of nodes that have replied twice."""
    found: dict[str, Any] = {}
    twice: set[str] = set()
    for reply in replies:
        twice.update(node for node in reply if node in found)
        found.update(reply)
    if twice:
        warnings.warn(
            DuplicateNodenameWarning(
                f"more than one worker is called {', '.join(map(repr, sorted(twice)))}: give each a name of its "
                "own, with -n"
            ),
            stacklevel=2,
        )
    return found


# -- what may be given -------------------------------------------------------------------


def _command(value: Any, option: str = "command") -> str:
    if isinstance(value, str) and value:
        return value
    raise TypeError(f"{option}={value!r:.80} of remote control: expected text")


def _arguments(command: str, given: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"arguments={given!r:.80} of {command}: expected a dict")
    for option in more:
        near = nearest(option, frozenset(_OF_BROADCAST))
        if near and option not in _OF_BROADCAST and option not in (given or {}):
            raise TypeError(f"{option}= of {command} is not an option of it; did you mean {near}=?")
    return {**(given or {}), **more}


def _address(destination: Any, pattern: Any, matcher: Any) -> tuple[list[str] | None, Any, Any]:
    names = [destination] if isinstance(destination, str) else destination
    if names is not None:
        if not isinstance(names, (list, tuple, set, frozenset)) or not all(
            isinstance(name, str) and name for name in names
        ):
            raise ValueError(f"destination={destination!r:.80}: expected names of workers, in a list")
        names = list(names)
    if pattern is not None or matcher is not None:
        if not (isinstance(pattern, str) and pattern):
            raise ValueError(f"pattern={pattern!r:.80}: expected text, with matcher='glob' or 'pcre'")
        matcher = "glob" if matcher is None else matcher
        if matcher not in MATCHERS:
            raise ValueError(f"matcher={matcher!r:.80}: expected 'glob' or 'pcre'")
        matches("", pattern, matcher)
    return names, pattern, matcher


def _sending(command: str, options: dict[str, Any]) -> dict[str, Any]:
    for option, value in options.items():
        if option not in _OF_BROADCAST and (
            near := nearest(option, frozenset((*_OF_BROADCAST, "terminate")))
        ):
            raise TypeError(
                f"{option}={value!r:.80} of {command} is not an option of it; did you mean {near}=?"
            )
    defaults: dict[str, Any] = {
        "reply": False, "timeout": 1.0, "limit": None, "callback": None, "pattern": None, "matcher": None,
    }  # fmt: skip
    return {name: options.get(name, default) for name, default in defaults.items()}


def _seconds(option: str, value: Any) -> float | None:
    if value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
    ):
        return value
    raise ValueError(f"{option}={value!r:.80} of remote control: expected seconds, or None to wait for ever")


def _limit(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"limit={value!r:.80} of remote control: expected a number of replies, or None")


def _end(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout


def _ids(given: Any) -> list[str]:
    ids = [given] if isinstance(given, str) else given
    if isinstance(ids, Iterable) and not isinstance(ids, (bytes, Mapping)):
        ids = list(ids)
        if all(isinstance(id, str) and id for id in ids):
            return ids
    raise TypeError(f"task_id={given!r:.80} of revoke: expected the id of a task, or a list of ids")
