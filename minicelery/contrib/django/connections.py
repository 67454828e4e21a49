"""Django's connections to databases and caches, in a worker: closed when they have aged, never shared."""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from django.core.cache import close_caches
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
from django.db.utils import Error

log = logging.getLogger(__name__)

_inherited: list[Any] = []
"""Connections of the parent: kept, for to be collected they would say goodbye to its server."""


class Connections:
    """Those of one worker.  `reuse` is how many tasks keep a connection, whatever its age."""

    def __init__(self, reuse: int | None = None) -> None:
        self._reuse = reuse or 0
        self._here = threading.local()

    def before_task(self, sender: Any, **_: Any) -> None:
        """A task is about to run in this thread."""
        if not sender.request.is_eager:
            self._close_aged()
            self._here.within = {one.alias for one in _opened() if one.in_atomic_block}

    def after_task(self, sender: Any, **_: Any) -> None:
        """It has ended."""
        if sender.request.is_eager:
            return
        self._end_transactions(sender.name, sender.request.id)
        tasks = self._here.tasks = getattr(self._here, "tasks", 0) + 1
        if self._reuse and tasks >= self._reuse:
            self._here.tasks = 0
            close(_opened(), whatever_age=True)
        else:
            self._close_aged()
        if inspect.iscoroutinefunction(sender.run):
            _close_where_coroutines_ask(whatever_age=not self._reuse)
        close_caches()

    def after_revoked(self, sender: Any, request: Any, terminated: bool, **_: Any) -> None:
        """It was ended in the midst, or not run at all."""
        if terminated:
            self._end_transactions(sender.name, request.id)

    def _end_transactions(self, name: str, id: str) -> None:
        """Roll back what it has left open, or its result, and all that follow, could never be stored."""
        before = getattr(self._here, "within", ())
        for connection in _opened():
            if connection.in_atomic_block and connection.alias not in before:
                log.warning(
                    "Task %s[%s] has left a transaction of the database %r open: it is rolled back",
                    name,
                    id,
                    connection.alias,
                )
                _forget_transaction(connection)
                connection.close()

    def _close_aged(self) -> None:
        if not self._reuse:
            close_aged()

    def after_fork(self, **_: Any) -> None:
        """This is a child: what it has inherited is the parent's."""
        forget_inherited()
        close_caches()

    def before_beat(self, **_: Any) -> None:
        """Beat begins in a process of the worker's."""
        close(_opened(), whatever_age=True)

    def close_all(self) -> None:
        """Before children are forked: none of them is to have any."""
        close(_opened(), whatever_age=True)
        for connection in connections.all(initialized_only=True):
            if getattr(connection, "pool", None) is not None:
                connection.close_pool()
        close_caches()


def close(opened: Iterable[Any], *, whatever_age: bool = False) -> None:
    """Close connections that are broken or older than CONN_MAX_AGE; none within a transaction."""
    for connection in opened:
        if connection.in_atomic_block:
            continue  # as of a TestCase; for Django it would be unusable
        if whatever_age:
            connection.close()
        else:
            connection.close_if_unusable_or_obsolete()


def close_aged() -> None:
    """The same of all that this thread has."""
    close(_opened())


@contextlib.contextmanager
def borrowed(alias: str, *, now: bool = False) -> Iterator[None]:
    """Leave the thread's connection as it was: closed again, in a thread that ends without a word.

    Not in the main thread.  With `now` it is opened at once, if it can be.
    """
    connection = connections[alias]
    if connection.connection is not None or threading.current_thread() is threading.main_thread():
        yield
        return
    if now:
        with contextlib.suppress(Error, SynchronousOnlyOperation):  # the next statement says so
            connection.ensure_connection()
    try:
        yield
    finally:
        if not connection.in_atomic_block:
            connection.close()


def forget_inherited() -> None:
    """Have this process connect anew, without a word to the parent's servers."""
    for connection in _opened():
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            continue  # a copy, with all that is in it
        _inherited.append(connection.connection)
        connection.connection = None
        _forget_transaction(connection)
        pools = getattr(connection, "_connection_pools", None)
        if pools:
            _inherited.append(pools.pop(connection.alias, None))


def _forget_transaction(connection: Any) -> None:
    connection.in_atomic_block = connection.needs_rollback = connection.closed_in_transaction = False
    connection.savepoint_ids, connection.atomic_blocks, connection.run_on_commit = [], [], []


def _opened() -> list[Any]:
    return [one for one in connections.all(initialized_only=True) if one.connection is not None]


def _close_where_coroutines_ask(*, whatever_age: bool) -> None:
    """The same in the thread in which `async def` tasks have Django's ORM work; does not wait for it."""
    from asgiref.sync import SyncToAsync

    if whatever_age and SyncToAsync.single_thread_executor._threads:
        SyncToAsync.single_thread_executor.submit(lambda: close(_opened()))
