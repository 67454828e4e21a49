"""An app that listens to every signal, in either library, and notes what it hears.

``LIBRARY``, ``BROKER``, ``BACKEND`` and ``NOTES`` come from the environment.  As a program it
sends the calls that the worker is to hear of: those named in its arguments.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LIBRARY = os.environ["LIBRARY"]
BROKER = os.environ["BROKER"]
NOTES = Path(os.environ["NOTES"])

library = importlib.import_module(LIBRARY)
signals = importlib.import_module(f"{LIBRARY}.signals")
errors = importlib.import_module(f"{LIBRARY}.exceptions")

NAMES = (
    "before_task_publish after_task_publish task_sent task_received task_prerun task_postrun task_success "
    "task_retry task_failure task_internal_error task_revoked task_rejected task_unknown celeryd_init "
    "celeryd_after_setup import_modules worker_init worker_before_create_process worker_process_init "
    "worker_process_shutdown worker_ready worker_shutting_down worker_shutdown heartbeat_sent "
    "after_setup_logger after_setup_task_logger user_preload_options"
).split()


def note(what: str, **more: Any) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), **more})
    file = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


def shown(value: Any, name: str = "") -> Any:
    """A value as JSON that is the same for what is the same in both libraries."""
    if name == "request":
        return {
            field: shown(getattr(value, field, "absent")) for field in ("id", "args", "kwargs", "retries")
        }
    if name == "einfo" and value is not None:
        return [type(value).__name__, "Traceback" in str(value)]
    if name == "traceback":
        return type(value).__name__
    if isinstance(value, BaseException):
        return [type(value).__name__, str(value)]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, dict):
        return {str(key): shown(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(one) for one in value]
    if isinstance(getattr(value, "name", None), str):
        return f"{name or 'object'} named {value.name}"
    return f"a {type(value).__name__}"


def listen(name: str) -> None:
    def hear(sender: Any = None, signal: Any = None, **named: Any) -> None:
        note(name, sender=shown(sender), named={key: shown(value, key) for key, value in named.items()})

    getattr(signals, name).connect(hear, weak=False)


for each in NAMES:
    listen(each)

app = library.Celery("listening", broker=BROKER, backend=os.environ.get("BACKEND", BROKER))
if LIBRARY == "celery":
    app.conf.broker_connection_retry_on_startup = True
    app.conf.worker_hijack_root_logger = False
for moment in ("on_configure", "on_after_configure", "on_after_finalize"):
    getattr(app, moment).connect(
        lambda moment=moment, sender=None, signal=None, **named: note(
            moment, sender=sender is app, named=sorted(named)
        ),
        weak=False,
    )


class Noting(app.Task):  # type: ignore[name-defined,misc]
    """Notes its handlers."""

    abstract = True

    def before_start(self, *given: Any) -> None:
        note("before_start", named=shown(given))

    def on_success(self, *given: Any) -> None:
        note("on_success", named=shown(given))

    def on_retry(self, *given: Any) -> None:
        note("on_retry", named=shown(given))

    def on_failure(self, *given: Any) -> None:
        note("on_failure", named=shown(given))

    def after_return(self, *given: Any) -> None:
        note("after_return", named=shown(given))


def task(name: str, **options: Any) -> Any:
    return app.task(name=name, base=Noting, shared=False, **options)


@task("add")
def add(x: int, y: int = 0) -> int:
    note("run", named="add")
    return x + y


@task("fail")
def fail() -> None:
    note("run", named="fail")
    raise KeyError("why")


@task("expected", throws=(KeyError,))
def expected() -> None:
    note("run", named="expected")
    raise KeyError("why")


@task("again", bind=True)
def again(self: Any) -> str:
    note("run", named="again")
    if self.request.retries < 1:
        raise self.retry(countdown=0.01, exc=KeyError("once"))
    return "done"


@task("ignore")
def ignore() -> None:
    note("run", named="ignore")
    raise errors.Ignore


@task("reject")
def reject() -> None:
    note("run", named="reject")
    raise errors.Reject("no", requeue=False)


class BadHandlers(Noting):
    abstract = True

    def on_failure(self, *given: Any) -> None:
        super().on_failure(*given)
        raise OSError("of the handler")

    def on_success(self, *given: Any) -> None:
        super().on_success(*given)
        raise OSError("of the handler")


@app.task(name="bad_end", base=BadHandlers, shared=False)
def bad_end(fails: bool) -> None:
    note("run", named="bad_end")
    if fails:
        raise KeyError("why")


@task("slow")
def slow() -> None:
    note("run", named="slow")
    time.sleep(30)


@task("die")
def die() -> None:
    note("run", named="die")
    os._exit(3)


@task("last")
def last() -> None:
    note("run", named="last")


def send(name: str) -> None:
    """One of the calls; its id is its name."""
    calls: dict[str, Any] = {
        "add": lambda: add.apply_async((1,), {"y": 2}, task_id="add", headers={"mine": 1}),
        "priority": lambda: add.apply_async((1, 2), task_id="priority", priority=3),
        "policy": lambda: add.apply_async((1, 2), task_id="policy", retry_policy={"max_retries": 7}),
        "linked": lambda: add.apply_async((1, 2), task_id="linked", link=add.s(5).set(task_id="link")),
        "fail": lambda: fail.apply_async(task_id="fail"),
        "expected": lambda: expected.apply_async(task_id="expected"),
        "again": lambda: again.apply_async(task_id="again"),
        "ignore": lambda: ignore.apply_async(task_id="ignore"),
        "reject": lambda: reject.apply_async(task_id="reject"),
        "bad on_failure": lambda: bad_end.apply_async((True,), task_id="bad on_failure"),
        "bad on_success": lambda: bad_end.apply_async((False,), task_id="bad on_success"),
        "unknown": lambda: app.send_task("nobody.has", (1,), task_id="unknown"),
        "expired": lambda: add.apply_async((1, 2), task_id="expired", expires=0.001),
        "slow": lambda: slow.apply_async(task_id="slow", time_limit=1),
        "die": lambda: die.apply_async(task_id="die"),
        "last": lambda: last.apply_async(task_id="last"),
    }  # fmt: skip
    calls[name]()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        send(argument)
