"""Archives: documents that a broker keeps until they are removed, however long nobody asks for them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol

from minicelery.broker import Broker
from minicelery.broker.url import AMQP_SCHEMES
from minicelery.exceptions import ImproperlyConfigured


class Archive(Protocol):
    """Documents by name.  Thread-safe.  Everything raises OperationalError, and may then be called again."""

    def version(self) -> str:
        """Differs from that of `read` once anything has changed; costs no more than one small trip.

        It may lag by some milliseconds.
        """

    def get(self, key: str) -> bytes | None:
        """One document; None where there is none."""

    def read(self) -> tuple[str, dict[str, bytes]]:
        """The version, and every document."""

    def news(self) -> tuple[str, dict[str, bytes]]:
        """As `read`, for who has asked for the version; may lag by some milliseconds as well."""

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        """Put `new` in place of `old`, None meaning that there is none; False where `old` is not there.

        Where `new` is there already, all is well.
        """


_ARCHIVES = {
    "memory": "minicelery.broker.memory.archive:MemoryArchive",
    **dict.fromkeys(
        ("redis", "rediss", "redis+socket", "valkey"), "minicelery.broker.redis.archive:RedisArchive"
    ),
    "sqlite": "minicelery.broker.sqlite.archive:SQLiteArchive",
    **dict.fromkeys(AMQP_SCHEMES, "minicelery.broker.amqp.archive:StreamArchive"),
}


def open_archive(broker: Broker, name: str) -> Archive:
    """The archive of that name on the broker's server; connects to nothing."""
    scheme = broker.url.partition(":")[0]
    target = _ARCHIVES.get(scheme)
    if target is None:
        raise ImproperlyConfigured(f"{broker.url} keeps no documents; accepted: {', '.join(_ARCHIVES)}")
    module, _, attribute = target.partition(":")
    kind: Callable[[Broker, str], Archive] = getattr(importlib.import_module(module), attribute)
    return kind(broker, name)
