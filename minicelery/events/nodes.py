"""A worker and a task, as far as their events tell: what a `State` is made of."""

from __future__ import annotations

import bisect
import logging
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minicelery import states

if TYPE_CHECKING:
    from minicelery.events.state import State

log = logging.getLogger(__name__)

HEARTBEAT_EXPIRE_WINDOW = 200
"""Percent of its `freq` after which a worker that has not been heard of counts as offline."""
HEARTBEAT_DRIFT_MAX = 16
"""Seconds by which two machines' clocks may differ before that is said."""
TASK_EVENT_TO_STATE: Mapping[str, str] = {
    "sent": states.PENDING, "received": states.RECEIVED, "started": states.STARTED, "failed": states.FAILURE,
    "retried": states.RETRY, "succeeded": states.SUCCESS, "revoked": states.REVOKED,
    "rejected": states.REJECTED,
}  # fmt: skip
_INFO = (
    "args", "kwargs", "retries", "result", "eta", "runtime", "expires", "exception", "exchange", "routing_key",
    "root_id", "parent_id",
)  # fmt: skip


def heartbeat_expires(
    timestamp: float, freq: float = 60, expire_window: float = HEARTBEAT_EXPIRE_WINDOW
) -> float:
    """When a worker whose last heartbeat came at `timestamp` counts as gone."""
    return float(timestamp) + float(freq) * (expire_window / 100)


class Worker:
    """One worker; what its events have said of it are its attributes."""

    heartbeat_max = 4
    expire_window = HEARTBEAT_EXPIRE_WINDOW
    _fields = (
        "hostname", "pid", "freq", "heartbeats", "clock", "active", "processed", "loadavg", "sw_ident",
        "sw_ver", "sw_sys",
    )  # fmt: skip

    def __init__(
        self,
        hostname: str | None = None,
        pid: int | None = None,
        freq: float = 60,
        heartbeats: list[float] | None = None,
        clock: int = 0,
        **fields: Any,
    ) -> None:
        self.hostname = hostname
        self.pid = pid
        self.freq = freq
        self.heartbeats: list[float] = [] if heartbeats is None else heartbeats  # when the last ones came
        self.clock = clock or 0
        self.active: int | None = None
        self.processed: int | None = None
        self.loadavg: list[float] | None = None
        self.sw_ident: str | None = None
        self.sw_ver: str | None = None
        self.sw_sys: str | None = None
        self.update(fields)

    def event(
        self,
        type_: str | None,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Take in what an event says."""
        self.update(fields or {})
        if type_ == "offline":
            self.heartbeats.clear()
            return
        if not local_received or not timestamp:
            return
        drift = abs(local_received - timestamp)
        if drift > HEARTBEAT_DRIFT_MAX and self.hostname not in _drifting:
            if len(_drifting) > 10_000:
                _drifting.clear()
            _drifting.add(str(self.hostname))
            log.warning("The clock of %s differs from ours by %.0f s", self.hostname, drift)
        bisect.insort(self.heartbeats, local_received)
        del self.heartbeats[: -self.heartbeat_max]

    def update(self, f: Mapping[str, Any], **more: Any) -> None:
        """Set attributes."""
        for name, value in {**f, **more}.items():
            if name not in _OURS and (name != "freq" or _is_span(value)):
                self.__dict__[name] = value

    @property
    def heartbeat_expires(self) -> float:
        """When it counts as gone unless it is heard of."""
        return heartbeat_expires(self.heartbeats[-1], self.freq, self.expire_window)

    @property
    def alive(self) -> bool:
        """Whether it has been heard of lately."""
        return bool(self.heartbeats and time.time() < self.heartbeat_expires)

    @property
    def status_string(self) -> str:
        """`alive` in a word."""
        return "ONLINE" if self.alive else "OFFLINE"

    @property
    def id(self) -> str:
        """Its name, and the number of its process."""
        return f"{self.hostname}.{self.pid}"

    def __eq__(self, other: object) -> bool:
        return self.hostname == other.hostname if isinstance(other, Worker) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.hostname)

    def __repr__(self) -> str:
        return f"<Worker: {self.hostname} ({self.status_string} clock:{self.clock})>"


_drifting: set[str] = set()
"""Workers of which it has been said that their clocks differ."""
_OURS = frozenset({"heartbeats", "cluster_state", "children", *vars(Worker)})
"""What no event can change, whatever fields it has."""


class Task:
    """One task; what its events have said of it are its attributes, others are None."""

    name: str | None = None
    state = states.PENDING
    clock = 0
    client: str | None = None
    worker: Worker | None = None
    timestamp: float | None = None
    received = sent = started = succeeded = failed = retried = revoked = rejected = None
    args = kwargs = eta = expires = retries = result = exception = runtime = traceback = None
    exchange = routing_key = root_id = parent_id = None

    _fields = (
        "uuid", "name", "state", "received", "sent", "started", "rejected", "succeeded", "failed", "retried",
        "revoked", "args", "kwargs", "eta", "expires", "retries", "worker", "result", "exception", "timestamp",
        "runtime", "traceback", "exchange", "routing_key", "clock", "client", "root", "root_id", "parent",
        "parent_id", "children",
    )  # fmt: skip
    merge_rules: Mapping[str, tuple[str, ...]] = {
        states.RECEIVED: ("name", "args", "kwargs", "parent_id", "root_id", "retries", "eta", "expires"),
    }
    """What counts of an event that comes late: of these states only these fields, of others all."""

    def __init__(self, uuid: str | None = None, cluster_state: State | None = None, **fields: Any) -> None:
        self.uuid = uuid
        self.cluster_state = cluster_state
        self.children: weakref.WeakSet[Task] = weakref.WeakSet()
        self.__dict__.update(fields)

    def event(
        self,
        type_: str,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Take in what an event says; one that comes late changes no later state."""
        known = {name: value for name, value in (fields or {}).items() if name not in _FIXED}
        state = TASK_EVENT_TO_STATE.get(type_)
        if state is None:
            state = type_.upper()
        else:
            self.__dict__[type_] = timestamp
        retried = states.RETRY in (state, self.state)
        if not retried and states.precedence(state) > states.precedence(self.state):
            if (keep := self.merge_rules.get(state)) is not None:
                known = {name: value for name, value in known.items() if name in keep}
        else:
            known.update(state=state, timestamp=timestamp)
        self.__dict__.update(known)

    def info(self, fields: Any = None, extra: Any = None) -> dict[str, Any]:
        """What is known of it, for a screen."""
        names = [*(_INFO if fields is None else fields), *(extra or ())]
        return {name: value for name in names if (value := getattr(self, name, None)) is not None}

    def as_dict(self) -> dict[str, Any]:
        """All its fields; of relatives their ids."""
        found = {name: getattr(self, name) for name in self._fields if name not in ("root", "parent")}
        children = [child.id for child in self.children]
        return {**found, "root": self.root_id, "parent": self.parent_id, "children": children}

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("cluster_state", "children")
        }

    def __setstate__(self, known: dict[str, Any]) -> None:
        self.__init__(**known)  # type: ignore[misc]  # a State relates it to others again

    @property
    def id(self) -> str | None:
        """Its id."""
        return self.uuid

    @property
    def origin(self) -> str | None:
        """Who told of it last."""
        return self.client if self.worker is None else self.worker.id

    @property
    def ready(self) -> bool:
        """Whether it has ended."""
        return self.state in states.READY_STATES

    @property
    def parent(self) -> Task | None:
        """The task that has sent it, where it is known."""
        return self._relative(self.parent_id)

    @property
    def root(self) -> Task | None:
        """The first one of its composition, where it is known."""
        return self._relative(self.root_id)

    def _relative(self, id: str | None) -> Task | None:
        state = self.cluster_state
        return None if state is None or not id else state.tasks.data.get(id)

    def __eq__(self, other: object) -> bool:
        return self.uuid == other.uuid if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.uuid)

    def __repr__(self) -> str:
        return f"<Task: {self.name}({self.uuid}) {self.state} clock:{self.clock}>"


_FIXED = (
    _OURS | {"uuid", "worker", "client", "state", *TASK_EVENT_TO_STATE} | set(vars(Task)) - set(Task._fields)
)


def _is_span(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9
