"""Documents in RabbitMQ: a stream that is never too old, and not too long; see `minicelery.broker.archives`.

Whoever writes holds an exclusive queue meanwhile, so that of two who would change the same
document one sees what the other has done.  A stream only grows at its end and is cut at its
beginning, by its size: now and then whoever writes adds everything anew, long before what
counts could be cut off.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pika import spec

from minicelery.broker.amqp.notes import FOR_EVER, LARGEST, Topic
from minicelery.broker.amqp.server import Refused, is_down
from minicelery.exceptions import OperationalError

if TYPE_CHECKING:
    from minicelery.broker.amqp.broker import AMQPBroker

WORN = 1000
"""Records besides one for each document after which all is added anew."""
_SHARE = LARGEST // 6
"""Bytes of all documents together, at most."""
_FOR_EVER = 1e11
"""Seconds; Erlang knows no infinity."""
_PATIENCE = 10.0
_HEARTBEAT = 10
_LOCKED = 405
_ANEW = " anew"
"""The document that tells where everything was added anew the last time."""


class StreamArchive:
    """A stream of `notes`, with a version that is the offset of its last record."""

    def __init__(self, broker: AMQPBroker, name: str) -> None:
        self._notes = broker.notes
        self._topic = f"{FOR_EVER}{name}"

    def version(self) -> str:
        return str(self._notes.reached(self._topic))

    def get(self, key: str) -> bytes | None:
        return self._notes.scan(self._topic).present().get(key)

    def read(self) -> tuple[str, dict[str, bytes]]:
        found = self._notes.scan(self._topic)
        return str(found.reached), _without_notes(found.present())

    def news(self) -> tuple[str, dict[str, bytes]]:
        version = self.version()
        return version, _without_notes(self._notes.news(self._topic))

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        with self._alone():
            found = self._notes.scan(self._topic)
            documents = found.present()
            there = documents.get(key)
            if there == new:
                return True
            if there != old:
                return False
            if new is None:
                self._notes.write(self._topic, {key: b""}, -1.0)
                documents.pop(key)
            else:
                self._refuse_too_much(documents, key, new)
                self._notes.write(self._topic, {key: new}, _FOR_EVER)
                documents[key] = new
            if found.reached - _added_anew_at(documents) > WORN + len(documents):
                self._add_anew(found, documents)
        return True

    def _add_anew(self, found: Topic, documents: dict[str, bytes]) -> None:
        documents[_ANEW] = str(found.reached + len(documents) + 1).encode()
        self._notes.write(self._topic, documents, _FOR_EVER)

    def _refuse_too_much(self, documents: dict[str, bytes], key: str, new: bytes) -> None:
        size = sum(len(name) + len(document) for name, document in {**documents, key: new}.items())
        if size > _SHARE:
            raise OperationalError(f"{self._topic} would have {size} bytes; accepted: at most {_SHARE}")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While nobody else writes.  Raises OperationalError after some seconds in which others do."""
        end = time.monotonic() + _PATIENCE
        declare = spec.Queue.Declare(queue=f"minicelery.{self._topic}.writer", exclusive=True)
        while True:
            with self._notes.in_words():
                link = self._notes.connect(_HEARTBEAT)
                try:
                    link.call(declare, end=end)
                    break
                except Refused as error:
                    link.close()
                    if error.code != _LOCKED or is_down(error):
                        raise
                except BaseException:
                    link.close()
                    raise
            if time.monotonic() > end:
                raise OperationalError(f"others write to {self._topic} all the time; try again")
            time.sleep(random.uniform(0.01, 0.1))
        try:
            yield
        finally:
            link.close()


def _without_notes(documents: dict[str, bytes]) -> dict[str, bytes]:
    documents.pop(_ANEW, None)
    return documents


def _added_anew_at(documents: dict[str, bytes]) -> int:
    try:
        return int(documents.get(_ANEW, b"0"))
    except ValueError:
        return 0
