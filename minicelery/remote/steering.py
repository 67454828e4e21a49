"""The commands that change a worker: what `app.control` orders.  `state`: see `standard`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from minicelery.limits import interval_of
from minicelery.remote.client import REVOKED_FOR
from minicelery.remote.registry import Panel, control_command
from minicelery.remote.stamps import bears
from minicelery.remote.standard import ids_of
from minicelery.stop_signals import stop_signal

__all__ = ["NO_REPLY", "Panel"]

log = logging.getLogger(__name__)

NO_REPLY = object()
"""What a command returns that is not to be answered."""
MOST_STAMPS = 1000
MOST_QUEUES = 1000
_LONGEST_NAME = 255


def ok(value: str) -> dict[str, str]:
    return {"ok": value}


def refused(value: object) -> dict[str, str]:
    return {"error": str(value)}


# -- tasks -------------------------------------------------------------------------------


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: Any, task_id: Any, terminate: Any = False, signal: Any = None, **_: Any) -> dict[str, str]:
    """Have tasks not run, by their ids."""
    ids = ids_of(task_id)
    name = stop_signal(signal)
    kept = state.request.kept
    if not kept:
        state.keep_revoked(ids, REVOKED_FOR)
    if not terminate:
        return ok(f"tasks {set(ids)} flagged as revoked")
    wanted = set(ids)
    ended = state.terminate(lambda run: run.id in wanted, name)
    if not kept:
        state.keep_terminated(ids, name)
    return ok(f"terminate: {', '.join(ended) if ended else 'tasks unknown'}")


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]")
def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """End tasks that run, by their ids."""
    return revoke(state, task_id, True, signal)


@control_command(variadic="headers", signature="[key1=value1 [key2=value2 [... [keyN=valueN]]]]")
def revoke_by_stamped_headers(
    state: Any, headers: Any, terminate: Any = False, signal: Any = None, **_: Any
) -> dict[str, str]:
    """Have tasks not run that bear one of these stamps."""
    headers = _headers(headers)
    stamps = _stamps(headers)
    name = stop_signal(signal)
    for header, values in stamps.items():
        for value in values:
            state.change("stamp", json.dumps([header, value]), True)
    if not terminate:
        return ok(f"headers {headers} flagged as revoked, but not terminated")
    ended = state.terminate(lambda run: bears(json.loads(run.stamps or "{}"), stamps), name)
    return ok(f"headers {headers} revoked" if ended else f"headers {headers} were not terminated")


def _headers(given: Any) -> Mapping[str, Any]:
    if isinstance(given, list):
        pairs = [text.partition("=") for text in given if isinstance(text, str)]
        given = {name: value for name, equal, value in pairs if equal}
    if not isinstance(given, dict) or not given:
        raise TypeError(f"headers={given!r:.80}: expected {{name: stamp, or stamps}}, or name=stamp")
    return given


def _stamps(headers: Mapping[str, Any]) -> dict[str, list[Any]]:
    found = {}
    for name, values in headers.items():
        found[str(name)] = list(values) if isinstance(values, (list, tuple)) else [values]
    if sum(map(len, found.values())) > MOST_STAMPS:
        raise ValueError(f"at most {MOST_STAMPS} stamps at once")
    for name, values in found.items():
        for value in values:
            if not isinstance(value, (str, int, float)):
                raise TypeError(f"the stamp {value!r:.80}: expected text or a number")
            if max(len(name), len(str(value))) > _LONGEST_NAME:
                raise ValueError(
                    f"the stamp {name[:40]}={str(value)[:40]!r}…: at most {_LONGEST_NAME} characters"
                )
    return found


@control_command(
    args=[("task_name", str), ("rate_limit", str)],
    signature="<task_name> <rate_limit (e.g., 5/s | 5/m | 5/h)>",
)
def rate_limit(state: Any, task_name: Any, rate_limit: Any, **_: Any) -> dict[str, str]:
    """Have a task run at no more than some rate."""
    if not _is_known(state, task_name):
        return refused("unknown task")
    try:
        interval = interval_of(rate_limit, "rate_limit")
    except (ValueError, TypeError) as error:
        return refused(error)
    state.change("rate", task_name, rate_limit if interval else 0)
    if not interval:
        return ok("rate limit disabled successfully")
    return ok("new rate limit set successfully")


@control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)],
    signature="<task_name> <soft_secs> [hard_secs]",
)
def time_limit(
    state: Any, task_name: Any = None, hard: Any = None, soft: Any = None, **_: Any
) -> dict[str, str]:
    """Give a task other time limits."""
    if not _is_known(state, task_name):
        return refused("unknown task")
    for option, limit in (("soft", soft), ("hard", hard)):
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 < limit < 1e9 and math.isfinite(limit)):
            return refused(f"{option}={limit!r:.40}: expected seconds above 0, or null for the worker's own")
    if soft and hard and soft > hard:
        return refused(f"soft={soft:g} is longer than hard={hard:g}: nothing would hear of it")
    if (why := state.refuses_limits(task_name, soft, hard)) is not None:
        return refused(why)
    state.change("time", task_name, [hard, soft])
    return ok("time limits set successfully")


def _is_known(state: Any, name: Any) -> bool:
    if isinstance(name, str) and name in state.app.tasks:
        return True
    log.error("Remote control names a task that is not registered: %.80r", name)
    return False


# -- events ------------------------------------------------------------------------------


@control_command()
def enable_events(state: Any, **_: Any) -> dict[str, str]:
    """Have the worker tell of its tasks."""
    return _events(state, True)


@control_command()
def disable_events(state: Any, **_: Any) -> dict[str, str]:
    """Have the worker tell of its tasks no more."""
    return _events(state, False)


def _events(state: Any, wanted: bool) -> dict[str, str]:
    word = "enabled" if wanted else "disabled"
    if state.events is wanted:
        return ok(f"task events already {word}")
    state.change("events", "", wanted)
    log.info("Task events are %s by remote control", word)
    return ok(f"task events {word}")


@control_command()
def heartbeat(state: Any, **_: Any) -> None:
    """Have the worker give a sign of life now."""
    state.heartbeat()


# -- the pool ----------------------------------------------------------------------------


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(state: Any, n: Any = 1, **_: Any) -> dict[str, str]:
    """Have more children."""
    return _resize(state, "grow", n)


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(state: Any, n: Any = 1, **_: Any) -> dict[str, str]:
    """Have fewer children."""
    return _resize(state, "shrink", n)


def _resize(state: Any, how: str, n: Any) -> dict[str, str]:
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n={n!r:.40}: expected a whole number")
    if state.pool != "prefork":
        return refused(f"the {state.pool} pool can't {how}: its places are fixed when the worker starts")
    if state.scale is not None:
        return refused(
            f"pool_{how} is not for a pool that follows the work: change the range, with autoscale"
        )
    size = state.concurrency + (n if how == "grow" else -n)
    if n < 1 or not 1 <= size <= state.room:
        return refused(
            f"{how} by {n}: there are {state.concurrency} children; expected 1 or more, and at the end 1 to "
            f"{state.room} children"
        )
    state.order(how, lambda: state.concurrency == size, n=n)
    return ok(f"pool will {how}")


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(state: Any, max: Any = None, min: Any = None, **_: Any) -> dict[str, str]:
    """Give the number of children other bounds."""
    if state.scale is None:
        raise ValueError("Autoscale not enabled")
    least, most = state.scale
    most, least = _count("max", max, most), _count("min", min, least)
    if max is not None and min is None and least > most:
        least = most
    if not 1 <= least <= most <= state.room:
        return refused(f"max={most} min={least}: expected 1 <= min <= max <= {state.room}")
    state.order("scale", lambda: state.scale == (least, most), most=most, least=least)
    return ok(f"autoscale now max={most} min={least}")


def _count(option: str, value: Any, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{option}={value!r:.40}: expected a whole number")
    return value


@control_command()
def pool_restart(
    state: Any, modules: Any = None, reload: Any = False, reloader: Any = None, **_: Any
) -> dict[str, str]:
    """Replace the children."""
    if not state.app.conf.worker_pool_restarts:
        raise ValueError("Pool restarts not enabled")
    if state.pool == "solo":
        return refused("the solo pool has no children to replace")
    names = [modules] if isinstance(modules, str) else modules
    if names is not None and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
        raise TypeError(f"modules={modules!r:.80}: expected names of modules")
    state.order("restart", modules=names, reload=bool(reload))
    return ok("reload started")


@control_command()
def shutdown(state: Any, msg: Any = "Got shutdown from remote", **_: Any) -> object:
    """Stop the worker; what runs is finished."""
    log.warning("Remote control: shutdown: %.200r", msg)
    state.order("stop")
    return NO_REPLY


# -- queues ------------------------------------------------------------------------------


@control_command(
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(
    state: Any, queue: Any, exchange: Any = None, exchange_type: Any = None, routing_key: Any = None, **_: Any
) -> dict[str, str]:
    """Have the worker serve one more queue."""
    given = {"queue": queue, "exchange": exchange, "type": exchange_type, "key": routing_key}
    for option, value in given.items():
        if not (value is None or (isinstance(value, str) and len(value) <= _LONGEST_NAME)):
            raise TypeError(f"{option}={value!r:.80}: expected text of at most {_LONGEST_NAME} characters")
    if not queue:
        raise TypeError(f"queue={queue!r:.80}: expected the name of a queue")
    queues = state.queues
    if queue not in queues:
        if len(queues) >= MOST_QUEUES:
            return refused(f"this worker serves {len(queues)} queues already, and no more at a time")
        state.change("queue", queue, {"exchange": exchange, "type": exchange_type, "key": routing_key})
    return ok(f"add consumer {queue}")


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(state: Any, queue: Any, **_: Any) -> dict[str, str]:
    """Have the worker serve a queue no more."""
    if not isinstance(queue, str) or not queue:
        raise TypeError(f"queue={queue!r:.80}: expected the name of a queue")
    if queue in state.queues:
        state.change("queue", queue, None)
    return ok(f"no longer consuming from {queue}")
