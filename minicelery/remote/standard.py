"""The commands that tell of a worker: what `app.control.inspect()` asks.

`state` is the worker's: see `worker.station`.  None of them waits for a child, so all answer
at once, however busy the children are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minicelery.remote.registry import inspect_command
from minicelery.remote.request import plain

REVOKED_FOR = 10_800.0
"""Seconds for which ids are kept that another worker has told of, as workers of Celery do."""
MOST_REVOKED = 50_000
_INFO = ("exchange", "routing_key", "rate_limit")
_OWN = ("celery.", "minicelery.")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def boolean(text: Any) -> bool:
    """What a word of the command line says."""
    word = str(text).lower()
    if word not in (*_TRUE, *_FALSE):
        raise ValueError(f"{text!r:.80}: expected true or false")
    return word in _TRUE


def ids_of(given: Any) -> list[str]:
    """Ids of tasks: one, or a list.  Raises TypeError."""
    ids = [given] if isinstance(given, str) else given
    if not isinstance(ids, (list, tuple)) or not all(isinstance(id, str) and id for id in ids):
        raise TypeError(f"{given!r:.80}: expected the id of a task, or a list of ids")
    return list(dict.fromkeys(ids))


@inspect_command(default_timeout=0.2)
def ping(state: Any, **_: Any) -> dict[str, str]:
    """Ask who is there."""
    return {"ok": "pong"}


@inspect_command(alias="dump_active")
def active(state: Any, safe: Any = False, **_: Any) -> list[dict[str, Any]]:
    """Tasks that run."""
    found: list[dict[str, Any]] = state.active(bool(safe))
    return found


@inspect_command(alias="dump_reserved")
def reserved(state: Any, **_: Any) -> list[dict[str, Any]]:
    """Tasks that the worker holds and that have not begun."""
    found: list[dict[str, Any]] = state.reserved()
    return found


@inspect_command(alias="dump_schedule")
def scheduled(state: Any, **_: Any) -> list[dict[str, Any]]:
    """Tasks that the worker holds until their time: none, the broker does."""
    return []


@inspect_command(variadic="ids", signature="[id1 [id2 [... [idN]]]]")
def query_task(state: Any, ids: Any, **_: Any) -> dict[str, Any]:
    """What is known of tasks by their ids."""
    wanted = set(ids_of(ids))
    kinds = (("reserved", state.reserved()), ("active", state.active(False)))
    return {task["id"]: (kind, task) for kind, tasks in kinds for task in tasks if task["id"] in wanted}


@inspect_command(alias="dump_tasks", variadic="taskinfoitems", signature="[attr1 [attr2 [... [attrN]]]]")
def registered(state: Any, taskinfoitems: Any = None, builtins: Any = False, **_: Any) -> list[str]:
    """Tasks that the worker knows, with some of their attributes."""
    items = taskinfoitems if isinstance(taskinfoitems, (list, tuple)) else ()
    items = [item for item in items or _INFO if isinstance(item, str) and not item.startswith("_")]
    tasks = state.app.tasks
    return [_described(tasks[name], items) for name in sorted(tasks) if builtins or not name.startswith(_OWN)]


def _described(task: Any, items: Sequence[str]) -> str:
    values = ((item, getattr(task, item, None)) for item in items)
    shown = [f"{item}={value!s:.200}" for item, value in values if value is not None]
    return f"{task.name} [{' '.join(shown)}]" if shown else str(task.name)


@inspect_command()
def stats(state: Any, **_: Any) -> dict[str, Any]:
    """What the worker is and has done."""
    found: dict[str, Any] = state.stats()
    return found


@inspect_command()
def active_queues(state: Any, **_: Any) -> list[dict[str, Any]]:
    """Queues that the worker serves."""
    router = state.app._sender.router
    return [_queue(router.declared(name)) for name in state.queues]


def _queue(target: Any) -> dict[str, Any]:
    found: dict[str, Any] = plain(target.queue.as_dict(recurse=True))
    exchange = found.get("exchange")
    if isinstance(exchange, dict) and not exchange.get("name") and target.exchange is not None:
        exchange["name"], exchange["type"] = target.exchange.name, target.exchange.type
    found["routing_key"] = found.get("routing_key") or target.key
    return found


@inspect_command(alias="dump_revoked")
def revoked(state: Any, **_: Any) -> list[str]:
    """Ids of revoked tasks."""
    return list(state.app.broker.recall("revoked"))[-MOST_REVOKED:]


@inspect_command(alias="dump_conf", signature="[include_defaults=False]", args=[("with_defaults", boolean)])
def conf(state: Any, with_defaults: Any = False, **_: Any) -> Mapping[str, Any]:
    """Settings that differ from their defaults, or all."""
    found: Mapping[str, Any] = plain(state.app.conf.table(with_defaults=bool(with_defaults)))
    return found


@inspect_command()
def report(state: Any) -> dict[str, str]:
    """Versions and settings, for bug reports."""
    return {"ok": state.app.bugreport()}


@inspect_command()
def clock(state: Any, **_: Any) -> dict[str, int]:
    """The number of the last thing that the worker has told."""
    return {"clock": state.app.clock.value}


@inspect_command(visible=False)
def hello(state: Any, from_node: Any, revoked: Any = None, **_: Any) -> dict[str, Any] | None:
    """Tell a worker that has just started which tasks are revoked, and hear which ones it knows of."""
    if from_node == state.hostname:
        return None
    known = list(state.app.broker.recall("revoked"))[-MOST_REVOKED:]
    if isinstance(revoked, (list, tuple, dict)):
        there = set(known)
        fresh = [id for id in revoked if isinstance(id, str) and id and id not in there][-MOST_REVOKED:]
        state.keep_revoked(fresh, REVOKED_FOR)
        known += fresh
    return {"revoked": known, "clock": state.app.clock.forward()}


@inspect_command()
def memsample(state: Any, **_: Any) -> str | None:
    """Memory that the worker's processes take together."""
    kib = state.memory()
    return f"{kib / 1024:.1f}MB" if kib else None
