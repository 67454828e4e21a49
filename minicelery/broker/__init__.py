"""What a server must be able to do: the `Broker`, `Consumer` and `Backend` protocols.

A broker moves `Message`s and knows nothing of tasks; a backend keeps `Record`s. Where one
server is both, settling a task, storing its result and fetching the next one is a single
step. `tests/conformance` tells the author of a new one when it is done.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from minicelery.broker.url import AMQP_SCHEMES, ServerURL, parse_urls
from minicelery.exceptions import ImproperlyConfigured
from minicelery.limits import Ask, TaskLimits, Wait, of_task
from minicelery.message import DeadLetter, Delivery, Group, Message, Outcome, Record

if TYPE_CHECKING:
    from minicelery.broker.post import Letter, Post

LEASE = 12.0
"""Seconds a consumer keeps what it holds after its last sign of life."""


class Consumer(Protocol):
    """One process's hold on some queues.  Not thread-safe, except `wake`."""

    adopts: bool
    """Whether `adopt` can take over what another consumer holds.  Where it can't, the server puts
    back what a lost consumer held, and the worker's Board tells what had become of it."""

    @property
    def renew(self) -> float:
        """While a task runs `extend` must be called at least so often, in seconds."""

    @property
    def name(self) -> str:
        """Who holds the deliveries; a new one after every lost connection."""

    def swap(self, done: Sequence[Outcome], want: int, wait: float) -> list[Delivery]:
        """Settle `done`, then take up to `want` deliveries, waiting at most `wait` seconds.

        Order of effects for each outcome: record, publish, verdict; of several that go back
        to the front, the last one ends up foremost.  An outcome whose
        receipt is no longer held is skipped whole, so calling again with the same
        `done` is safe.  What an outcome releases is free again in the same step, and a message
        that is parked waits in its line, or is back at the front of its queue where there is room
        meanwhile.  `want=0` only settles.  With `want` > 0 and `wait` = 0 it fetches
        what is there.  Raises BrokerUnavailable (or BackendUnavailable): nothing is lost, call again.
        """

    def extend(self, held: Sequence[Delivery], records: Sequence[Record] = ()) -> None:
        """Renew the lease, mark `held` as started, and store `records`, in one trip."""

    def adopt(self, name: str, started: Mapping[int, str] | None = None) -> list[Delivery]:
        """Take over all that the consumer `name` holds, receipts unchanged; safe to repeat.

        What is in `started` (receipt -> reason) is marked so durably.  The result's
        deliveries are all that this consumer then holds, with `started` and `reason` set
        accordingly, also by earlier `extend`s.  It must have fetched nothing itself.
        """

    def holds(self, delivery: Delivery) -> bool:
        """Whether the delivery is still this consumer's.  Asked only where it can't adopt."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Let go of a delivery before it runs, so that it never comes back; sets its `let_go`.

        Only where the consumer can't adopt.  Raises BrokerUnavailable where it is not held any more.
        """

    def skip(self, queues: Collection[str]) -> None:
        """From the next `swap` on fetch nothing from these of its queues; from all others again.

        What is held of them is settled as ever.  A queue that goes away with its last consumer
        is not skipped.
        """

    def post(self, letters: Sequence[Letter]) -> None:
        """Have letters leave with the next `swap` or `extend`, at no further trip.  From any thread.

        They go out after what is settled, and whatever becomes of them, it fails nothing: where the
        trip fails they may be lost.  Of more than `post.WAITING` or `WAITING_BYTES` that wait the oldest
        are dropped.
        """

    @property
    def letters_dropped(self) -> int:
        """How many letters were dropped: too many waited, or they could not be sent."""

    def wake(self) -> None:
        """End a waiting `swap` now, or the next one at once.  From any thread."""

    def close(self) -> None:
        """Give back, uncounted and to the front, all that is unsettled; never raises."""


class Leased:
    """What consumers have in common whose broker keeps leases: what a dead one held is adopted."""

    adopts = True

    def holds(self, delivery: Delivery) -> bool:
        """Not asked: an outcome of what is not held is skipped."""
        return True

    def acknowledge(self, delivery: Delivery) -> None:
        """Not asked: a mark does."""


class Broker(Protocol):
    """A server of queues.  Thread-safe; after a fork each process connects anew."""

    url: str  # masked: safe to print
    place: str  # tells its queues from those of others, by whatever name or port it is reached

    @property
    def post(self) -> Post:
        """Letters to whoever listens: remote control and events."""

    def publish(
        self, messages: Sequence[Message], *, deadline: float | None = None, attempts: int | None = None
    ) -> Mapping[str, str] | None:
        """Put every message on its queue, or into its delay, in as few trips as it can.

        Returns the ids of those that are not sent, as another call holds their `unique` key, and
        the id of that one; None where all are.  A key that begins with `limits.ONCE` lets one
        message pass, and not the same one again.  `deadline` is the seconds all attempts may take in total (None: 5), `attempts` how
        many there may be (None: as many as fit).  A repeated attempt never sends twice.
        Raises OperationalError naming the server and a hint.
        """

    def consumer(self, queues: Sequence[str], name: str, backend: Backend | None) -> Consumer:
        """A consumer of `queues`.  Connects on first use."""

    def tend(self, queues: Sequence[str], alive: Sequence[str]) -> list[str]:
        """Renew the leases of the consumers `alive`; return the names whose lease has ended.

        One trip.  Also does what the server needs done regularly (about once a second).
        """

    def size(self, queue: str) -> int:
        """Messages ready in `queue`: neither held by a consumer nor delayed; also those whose delay is over."""

    def delayed(self, queue: str) -> int | None:
        """Messages of `queue` that wait for their time, or for a limit; None where it can't tell."""

    def dead(self, queue: str) -> int:
        """How many dead letters of `queue` are kept."""

    def purge(self, queue: str) -> int:
        """Drop every ready and, where they can be told, every delayed message of `queue`; how many."""

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """The newest rejected messages of `queue`, newest first."""

    def replay_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        """Put dead letters back on `queue` as if newly sent, oldest first: those of `ids`, None: all.

        How many they were.  The runs that died under them are forgotten.
        """

    def discard_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        """Throw dead letters away: those of `ids`, None: all; how many they were."""

    def remember(self, topic: str, key: str, ttl: float, value: bytes = b"") -> None:
        """Keep a small durable record, e.g. a revoked id under topic ``revoked``.

        A fetched delivery whose message id is under ``revoked`` has `revoked` set.
        """

    def remember_all(self, topic: str, records: Mapping[str, bytes], ttl: float) -> None:
        """`remember` many, in as few trips as it can."""

    def recall(self, topic: str) -> dict[str, bytes]:
        """The records of `topic` that have not expired."""

    def lead(self, name: str, holder: str, seconds: float) -> str:
        """Who leads `name`: `holder`, for `seconds` from now, unless another one does.

        Called again it keeps the lead.  Another is named as far as the server can tell.
        """

    def leader(self, name: str) -> str:
        """Who leads `name` now, as far as the server can tell; empty where nobody does."""

    def step_down(self, name: str, holder: str) -> None:
        """Give the lead up, if `holder` has it."""

    def close(self) -> None:
        """Close every connection; the broker may be used again and then reconnects."""


class Backend(Protocol):
    """A store of results.  Thread-safe; after a fork each process connects anew."""

    url: str  # masked: safe to print

    def store(self, records: Sequence[Record]) -> list[Message]:
        """Keep the records and tell who waits; a stored SUCCESS is never overwritten.

        Returns the bodies of chords that are now to be sent by the caller, who then says so by
        `group_sent`.  Raises BackendUnavailable.
        """

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        """One record per id, in the order of `ids`; None where there is none (or it expired).

        One round trip.  Raises BackendUnavailable; never waits for a result.
        """

    def watch(self, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
        """Wait until a record of `ids` differs from the document in `seen`; return those that do.

        Returns at once what differs already; an empty list after `wait` seconds.
        One subscription for all ids, no polling where the server can notify.
        """

    def forget(self, ids: Sequence[str]) -> None:
        """Drop the records."""

    def close(self) -> None:
        """Close every connection; the backend may be used again and then reconnects."""


class CountingBackend(Backend, Protocol):
    """A result store that can count: what chords need, and saved groups.

    A part whose record has `part_of` counts in that group, once, in the step in which the record
    is stored.  The group's body is sent once: when every member has ended, or the first one not
    well, or when the deadline has come.  Where a consumer of the same server settles, the body
    leaves in the same step.  Each call is one trip, and raises BackendUnavailable.
    """

    def open_groups(self, groups: Sequence[Group]) -> None:
        """Keep groups, before any of their parts is sent.

        One that is there already is kept as it is now given, unless one of its parts has ended.
        """

    def load_group(self, id: str) -> Group | None:
        """The group; None where there is none."""

    def claim_group(self, id: str, copy: str) -> bool:
        """Whether `copy` is the one copy of the group's body that may run; it is not owed any more."""

    def add_member(self, id: str, member: str) -> bool:
        """Have the body wait for one more part, the last in order; False where it does not wait any more."""

    def drop_groups(self, ids: Sequence[str]) -> None:
        """Forget groups whose parts could not be sent."""

    def owed_groups(self, now: float, place: str) -> list[Message]:
        """Bodies for the broker at `place` that somebody has to send.

        Whoever was to has not said so, or the deadline has come.

        They are owed again, after ever longer pauses, until one has claimed the group.
        """

    def group_sent(self, ids: Sequence[str]) -> None:
        """The bodies of these groups are sent: they are owed once more only if they have not begun for long."""

    def save_group(self, id: str, document: bytes, ttl: float | None) -> None:
        """Keep the document of a group's results for `ttl` seconds, None: for ever."""

    def restore_group(self, id: str) -> bytes | None:
        """The document; None where there is none."""

    def delete_group(self, id: str) -> None:
        """Drop the document."""


class Limits(Protocol):
    """A store of limits.  Thread-safe; after a fork each process connects anew.

    Each call is one trip, and raises OperationalError where the store can't be reached.
    """

    parks: bool
    """Whether what waits stays in this store: it is the broker's own, and its `publish` knows of
    unique calls, its consumers of `Outcome.release` and `Outcome.park`."""

    def admit(self, ask: Ask) -> Wait | None:
        """None where the call may begin, and all it needs is its own now; else what it waits for.

        Who has a place in the room keeps it when it asks again.
        """

    def renew(self, places: Sequence[tuple[str, str, float]]) -> None:
        """Keep places in rooms: gate, holder, and for how many seconds from now."""

    def free(self, holder: str, release: Sequence[str], took: float = 0.0) -> None:
        """Release what `holder` has; `took` is how long it had it, in seconds."""

    def claim(self, key: str, holder: str, seconds: float) -> str:
        """Who holds the unique key: `holder`, unless another did before."""

    def close(self) -> None:
        """Close every connection; the store may be used again and then reconnects."""


def open_limits(app: Any) -> Limits | None:
    """Where the limits of the app's tasks are kept; None where no task has any.

    That is the broker, or the store that `task_limits_url` names.  Raises ImproperlyConfigured
    where the broker can't, and no store is named; ValueError for an option that can't be right.
    """
    conf = app.conf
    limited = [found for task in app.tasks.values() if (found := of_task(task, conf)) is not None]
    if not limited:
        return None
    url = conf.task_limits_url
    return limits_store(app.broker, url and app._placed(url), limited)


def limits_store(broker: Broker, url: str | None, limited: Sequence[TaskLimits]) -> Limits:
    """The store for the tasks `limited`.  Raises ImproperlyConfigured naming them."""
    own: Any = getattr(broker, "limits", None)
    if not url and own is not None:
        kept: Limits = own(parks=True)
        return kept
    names = ", ".join(sorted(limits.name for limits in limited)[:5]) + (", …" if len(limited) > 5 else "")
    if not url:
        raise ImproperlyConfigured(
            f"the limits of {names} (rate_limit, concurrency_limit, unique) can't be kept by {broker.url}: "
            "set task_limits_url to a redis:// or sqlite:/// URL, where all workers and callers keep them"
        )
    store: Any = getattr(open_broker(url), "limits", None)
    if store is None:
        raise ImproperlyConfigured(
            f"task_limits_url can't keep the limits of {names}: expected a redis:// or sqlite:/// URL"
        )
    found: Limits = store(parks=False)
    return found


_BROKERS = {
    "memory": "minicelery.broker.memory:MemoryBroker",
    "redis": "minicelery.broker.redis:RedisBroker",
    "rediss": "minicelery.broker.redis:RedisBroker",
    "redis+socket": "minicelery.broker.redis:RedisBroker",
    "valkey": "minicelery.broker.redis:RedisBroker",
    "sqlite": "minicelery.broker.sqlite:SQLiteBroker",
    **dict.fromkeys(AMQP_SCHEMES, "minicelery.broker.amqp:AMQPBroker"),
}
_BACKENDS = {
    "memory": "minicelery.broker.memory:MemoryBackend",
    "cache+memory": "minicelery.broker.memory:MemoryBackend",
    "redis": "minicelery.broker.redis:RedisBackend",
    "rediss": "minicelery.broker.redis:RedisBackend",
    "redis+socket": "minicelery.broker.redis:RedisBackend",
    "valkey": "minicelery.broker.redis:RedisBackend",
    "sqlite": "minicelery.broker.sqlite:SQLiteBackend",
}


OWN_STORES = frozenset(_BACKENDS)
"""Schemes of result stores that are minicelery's."""

_BY_NAME = {
    "django-db": "minicelery.contrib.django.results.database:DatabaseBackend",
    "django-cache": "minicelery.contrib.django.results.cache:CacheBackend",
}
"""Result stores that are not named by a URL."""


def open_broker(url: str, *, options: Mapping[str, Any] | None = None) -> Broker:
    """The broker that `url`'s scheme names; imports its client, connects to nothing.

    `options` are `broker_transport_options`.  Raises ImproperlyConfigured.
    """
    servers = parse_urls(url)
    kind = _load(servers[0], _BROKERS, "broker_url")
    broker: Broker = kind(servers if servers[0].scheme in AMQP_SCHEMES else servers[0], options or {})
    return broker


def open_backend(url: str, *, options: Mapping[str, Any] | None = None) -> Backend:
    """The result store that `url`'s scheme names; imports its client, connects to nothing.

    `options` are `result_backend_transport_options`.  Raises ImproperlyConfigured.
    """
    if url in _BY_NAME:
        return open_by_name(url, options or {})
    (server, *_) = parse_urls(url)
    backend: Backend = _load(server, _BACKENDS, "result_backend")(server, options or {})
    return backend


def open_by_name(name: str, options: Mapping[str, Any]) -> Backend:
    """A result store of a framework that the program is in.  Raises ImproperlyConfigured."""
    if importlib.util.find_spec("django") is None:
        raise ImproperlyConfigured(f"result_backend={name!r} needs Django, which is not installed")
    importlib.import_module("minicelery.contrib.django.results").check(name)
    module, _, kind = _BY_NAME[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), kind)(options)
    return backend


def open_replies(
    broker: Broker, *, expires: Any = None, persistent: bool | None = None, serializer: str = "json"
) -> Backend:
    """Results that go straight to who asked for them, through `broker`: ``rpc://``.

    Raises ImproperlyConfigured where the broker has no reply queues.
    """
    open_them = getattr(broker, "replies", None)
    if open_them is None:
        raise ImproperlyConfigured(
            f"result_backend='rpc://' needs RabbitMQ as broker, and it is {broker.url}; "
            "use the broker's own server as result_backend as well"
        )
    backend: Backend = open_them(expires, persistent, serializer)
    return backend


def _load(server: ServerURL, table: Mapping[str, str], setting: str) -> Any:
    target = table.get(server.scheme)
    if target is None:
        known = ", ".join(f"{scheme}://" for scheme in sorted(table))
        raise ImproperlyConfigured(
            f"{setting}={server.masked!r}: no transport named {server.scheme!r}; "
            f"this version of minicelery speaks {known}"
        )
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
