"""Questions to running workers: `app.control.inspect()`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.remote.registry import Panel
from minicelery.remote.request import matches

if TYPE_CHECKING:
    from minicelery.remote.client import Control


class Inspect:
    """Each method asks all workers, or those of `destination`, and returns ``{node: answer}``.

    None where nobody has answered within `timeout` seconds.  With one name as `destination`
    it is that node's answer alone.  The app's own `inspect_command`s are methods too.
    """

    def __init__(
        self,
        control: Control,
        destination: Any = None,
        timeout: float | None = 1.0,
        callback: Callable[[Any], Any] | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
        quiet: float | None = None,
    ) -> None:
        self._control = control
        self.app = control.app
        self.destination = destination
        self.timeout = timeout
        self.callback = callback
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher
        self.quiet = quiet

    def _request(self, command: str, **arguments: Any) -> Any:
        from minicelery.remote.client import flatten_reply

        replies = self._control.broadcast(
            command, arguments, self.destination, reply=True, timeout=self.timeout, limit=self.limit,
            callback=self.callback, pattern=self.pattern, matcher=self.matcher, quiet=self.quiet,
        )  # fmt: skip
        if not replies:
            return None
        found = flatten_reply(replies)
        if isinstance(self.destination, str):
            return found.get(self.destination)
        if self.pattern:
            return {
                node: reply
                for node, reply in found.items()
                if matches(node, self.pattern, self.matcher or "glob")
            }
        return found

    def ping(self, destination: Any = None) -> Any:
        """``{node: {"ok": "pong"}}``."""
        if destination:
            self.destination = destination
        return self._request("ping")

    def active(self, safe: bool | None = None) -> Any:
        """The tasks that run, but for those that have just begun; with `safe` their arguments as text."""
        return self._request("active", safe=safe)

    def reserved(self) -> Any:
        """The tasks that a worker holds and that have not begun; what waits in the queues it does not hold."""
        return self._request("reserved")

    def scheduled(self, safe: bool | None = None) -> Any:
        """The tasks that a worker holds until their time; here that is the broker's to do."""
        return self._request("scheduled")

    def query_task(self, *ids: Any) -> Any:
        """``{node: {id: [state, task]}}`` of those that a worker holds or runs."""
        if len(ids) == 1 and isinstance(ids[0], (list, tuple)):
            ids = tuple(ids[0])
        return self._request("query_task", ids=ids)

    def registered(self, *taskinfoitems: str) -> Any:
        """The names of the tasks that a worker knows, with these attributes."""
        return self._request("registered", taskinfoitems=taskinfoitems)

    def stats(self) -> Any:
        """What a worker is and has done: pool, broker, number of runs by task, and more."""
        return self._request("stats")

    def active_queues(self) -> Any:
        """The queues that a worker serves, and how they are declared."""
        return self._request("active_queues")

    def revoked(self) -> Any:
        """The ids of revoked tasks."""
        return self._request("revoked")

    def conf(self, with_defaults: bool = False) -> Any:
        """The settings that differ from their defaults, or all; secrets masked."""
        return self._request("conf", with_defaults=with_defaults)

    def report(self) -> Any:
        """Versions and settings as text."""
        return self._request("report")

    def clock(self) -> Any:
        """``{node: {"clock": number}}``."""
        return self._request("clock")

    def hello(self, from_node: str, revoked: Sequence[str] | None = None) -> Any:
        """What workers of Celery ask each other at their start."""
        return self._request("hello", from_node=from_node, revoked=revoked)

    def memsample(self) -> Any:
        """The memory that a worker takes, as text."""
        return self._request("memsample")

    def __getattr__(self, name: str) -> Any:
        info = Panel.meta.get(name)
        if info is None or info.type != "inspect":
            raise AttributeError(f"app.control.inspect() has no {name!r}")
        return lambda **arguments: self._request(name, **arguments)


# Names that Celery has had for some of them.
for _old, _new in {
    "dump_active": "active",
    "dump_reserved": "reserved",
    "dump_schedule": "scheduled",
    "dump_revoked": "revoked",
    "dump_tasks": "registered",
    "registered_tasks": "registered",
    "dump_conf": "conf",
}.items():
    setattr(Inspect, _old, getattr(Inspect, _new))
