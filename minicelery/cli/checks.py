"""What `minicelery doctor` looks at; each check yields what it has found."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minicelery import vitals
from minicelery.cli import ui
from minicelery.cli.choosing import known_queues
from minicelery.code_version import changed_since, code_version, project_files
from minicelery.exceptions import ImproperlyConfigured, MiniCeleryError
from minicelery.registry import OWN_TASKS

if TYPE_CHECKING:
    from minicelery.app import Celery

SLOW = 0.1
"""Seconds that a trip to a server should not take."""
FEW_FILES = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `level` is ok, note, warning or error."""

    level: str
    subject: str
    text: str
    hint: str = ""


def examine(app: Celery) -> Iterator[Finding]:
    """All that can be said of the app, its servers and this machine."""
    yield from _guarded(_system, app)
    good = True
    for finding in _guarded(_settings, app):
        good = good and finding.level != "error"
        yield finding
    if not good:  # all else would be said of other settings than those that are meant
        return
    for check in (_contradictions, _tasks):
        yield from _guarded(check, app)
    reached = True
    for finding in _guarded(_broker, app):
        reached = reached and finding.level != "error"
        yield finding
    # Whom the broker is out of reach for has heard it by now.
    for check in (_results, _queues, _workers, _beat) if reached else (_results,):
        yield from _guarded(check, app)


def _guarded(check: Callable[[Celery], Iterator[Finding]], app: Celery) -> Iterator[Finding]:
    subject = check.__name__.strip("_")
    try:
        yield from check(app)
    except MiniCeleryError as error:
        yield Finding("error", subject, *_parts(error))
    except Exception as error:  # of the app's own code, which is imported here
        from minicelery.cli.find_app import fault_of_program

        fault = fault_of_program(error, Path.cwd())
        if fault is None:
            raise
        text, hint = _parts(fault)
        yield Finding("error", subject, text.replace("\n  ", ", at "), hint)


# -- here ----------------------------------------------------------------------------------


def _system(app: Celery) -> Iterator[Finding]:
    from minicelery import __version__

    yield Finding("ok", "versions", f"minicelery {__version__}, Python {platform.python_version()}")
    if os.getuid() == 0 and not _contained():
        yield Finding(
            "warning",
            "user",
            "this is root: whatever a task does, it may",
            "run workers as a user of their own",
        )
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < FEW_FILES:
        yield Finding("warning", "limits", f"a process may open {files} files only", "ulimit -n 65536")


def _contained() -> bool:
    return os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv") or os.getpid() == 1


def _settings(app: Celery) -> Iterator[Finding]:
    from minicelery.settings.names import suggestion
    from minicelery.settings.table import TABLE

    conf, good = app.conf, True
    try:
        conf.check()
    except ImproperlyConfigured as error:
        good = False
        yield Finding("error", "settings", *_parts(error))
    for name in conf:
        row = TABLE.get(name)
        if row is None:
            good = False
            near = suggestion(name).strip("; ").strip()
            yield Finding("warning", "settings", f"there is no setting {name!r}", near)
    for name in conf.changed():
        row = TABLE.get(name)
        if row is not None and row.served is not True:
            good = False
            yield Finding("note", "settings", f"{name} has no effect: {row.served}")
    if good:
        changed = sorted(conf.changed())
        more = ", …" if len(changed) > 5 else ""
        said = f"{len(changed)} set: {', '.join(changed[:5])}{more}" if changed else "all are as by default"
        yield Finding("ok", "settings", said)


def _contradictions(app: Celery) -> Iterator[Finding]:
    conf = app.conf
    soft, hard = conf.task_soft_time_limit, conf.task_time_limit
    expires = conf.result_expires
    kept = expires.total_seconds() if hasattr(expires, "total_seconds") else expires
    said = (
        (
            conf.task_serializer not in conf.accept_content and not _accepts(conf, conf.task_serializer),
            "error", f"task_serializer={conf.task_serializer!r} is not in accept_content: workers refuse what is sent",
            f"accept_content = {[*conf.accept_content, conf.task_serializer]!r}",
        ),
        (
            bool(soft and hard and soft >= hard),
            "error", f"task_soft_time_limit={soft} is not below task_time_limit={hard}: a task never hears of it",
            "make the soft limit the shorter one",
        ),
        (
            conf.task_always_eager, "warning",
            "task_always_eager is set: tasks run in their caller, and no worker is asked", "for tests only",
        ),
        (
            conf.task_reject_on_worker_lost and not conf.task_acks_late, "warning",
            "task_reject_on_worker_lost without task_acks_late has no effect", "set task_acks_late = True too",
        ),
        (
            bool(kept and hard and kept < hard), "warning",
            f"results are kept {ui.duration(float(kept or 0))}, and a task may take {ui.duration(float(hard or 0))}",
            "make result_expires longer",
        ),
        (
            conf.task_store_errors_even_if_ignored and not conf.result_backend, "warning",
            "task_store_errors_even_if_ignored is set, and there is no result_backend", "set result_backend",
        ),
        (
            conf.task_track_started and not conf.result_backend, "warning",
            "task_track_started is set, and there is no result_backend to store it in", "set result_backend",
        ),
        (
            "pickle" in conf.accept_content or "application/x-python-serialize" in conf.accept_content, "warning",
            "accept_content has pickle: whoever can write to the broker can run code in the workers",
            "use json or msgpack, or let only trusted programs reach the broker",
        ),
        (
            "visibility_timeout" in conf.broker_transport_options, "note",
            "visibility_timeout is for workers of Celery on the same Redis: one of these keeps what it runs, however "
            "long, and holds nothing that is not due", "",
        ),
        (
            not conf.enable_utc and conf.timezone is None, "note",
            "enable_utc is off and no timezone is set: schedules are in this machine's zone", "set timezone",
        ),
    )  # fmt: skip
    good = True
    for wrong, level, text, hint in said:
        if wrong:
            good = False
            yield Finding(level, "settings", text, hint)
    if good:
        yield Finding("ok", "settings", "none contradicts another")


def _accepts(conf: Any, serializer: str) -> bool:
    from minicelery.serialization import accepted

    return accepted((serializer,)) <= accepted(conf.accept_content)


def _tasks(app: Celery) -> Iterator[Finding]:
    app.import_task_modules()
    own = [name for name in app.tasks if not name.startswith(OWN_TASKS)]
    if own:
        yield Finding(
            "ok",
            "tasks",
            f"{len(own)} known: {', '.join(sorted(own)[:5])}{', …' if len(own) > 5 else ''}",
        )
    else:
        yield Finding(
            "warning", "tasks", "the app knows none", 'name their modules: Celery(…, include=["tasks"]) or imports'
        )  # fmt: skip
    for name in sorted(own):
        task = app.tasks[name]
        if task.reject_on_worker_lost and not task.acks_late:
            yield Finding(
                "warning", "tasks", f"{name} has reject_on_worker_lost without acks_late: it has no effect",
                "set acks_late=True too",
            )  # fmt: skip


# -- servers -------------------------------------------------------------------------------


def _broker(app: Celery) -> Iterator[Finding]:
    if not app.conf.broker_url:
        yield Finding(
            "warning", "broker", f"none is configured; the default is {app.broker.url}",
            'set broker_url, for instance to "sqlite:///queue.db"',
        )  # fmt: skip
    queue = app.conf.task_default_queue
    found = _timed("broker", app.broker.url, lambda: app.broker.size(queue))
    yield found
    if found.level == "error":
        return
    from minicelery.cli.servers import examine_server

    for level, text, hint in examine_server(app.broker):
        yield Finding(level, "broker", text, hint)


def _results(app: Celery) -> Iterator[Finding]:
    if not app.conf.result_backend:
        yield Finding(
            "note",
            "results",
            "there is no result_backend: what tasks return is not kept, and get() can't work",
        )
        return
    backend: Any = app.backend
    found = _timed("results", backend.url, lambda: backend.load(["minicelery-doctor"]))
    yield found
    if found.level == "error":
        return
    from minicelery.cli.servers import examine_server

    if getattr(getattr(backend, "server", None), "place", backend) != getattr(
        getattr(app.broker, "server", None), "place", app.broker
    ):
        for level, text, hint in examine_server(backend):
            yield Finding(level, "results", text, hint)


def _timed(subject: str, url: str, ask: Callable[[], object]) -> Finding:
    """Reach a server: the first time it also connects, and of three further ones the quickest counts."""
    try:
        ask()
        took = min(_span(ask) for _ in range(3))
    except MiniCeleryError as error:
        return Finding("error", subject, *_parts(error))
    text = f"{url} answers in {ui.duration(took) if took >= 0.0005 else '< 1 ms'}"
    if took > SLOW:
        return Finding(
            "warning", subject, text, "each task costs about two such trips; is it far away, or busy?"
        )
    return Finding("ok", subject, text)


def _span(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def _queues(app: Celery) -> Iterator[Finding]:
    from minicelery.pausing import read_paused

    names = known_queues(app)
    paused = read_paused(app.broker)
    good = True
    for name in names:
        ready, dead = app.broker.size(name), app.broker.dead(name)
        consumers = getattr(app.broker, "consumers", lambda _: None)(name)
        if dead:
            good = False
            yield Finding(
                "warning", "queues", f"{name} has {ui.counted(dead, 'dead letter')}", "minicelery dead list"
            )
        if name in paused.queues:
            good = False
            hint = f"minicelery resume -Q {name}"
            yield Finding(
                "warning", "queues", f"{name} is paused, with {ui.counted(ready, 'message')} in it", hint
            )
        elif ready and consumers == 0:
            good = False
            hint = f"start one: minicelery worker -Q {name}"
            yield Finding(
                "warning",
                "queues",
                f"no worker serves {name}, with {ui.counted(ready, 'message')} in it",
                hint,
            )
    for name in sorted(paused.tasks):
        good = False
        yield Finding("warning", "queues", f"the task {name} is paused", f"minicelery resume -T {name}")
    if good:
        yield Finding("ok", "queues", f"nothing is paused or dead in {', '.join(names)}")


# -- who is there --------------------------------------------------------------------------


def _workers(app: Celery) -> Iterator[Finding]:
    here = [one for one in vitals.read_all() if one.live and one.said.get("broker") == app.broker.url]
    for one in here:
        if one.ready:
            yield Finding("ok", "workers", f"{one.node} runs on this machine, process {one.pid}")
            yield from _code(app, one)
        else:
            yield Finding("warning", "workers", f"{one.node}, process {one.pid}: {'; '.join(one.reasons)}")
    if not here:
        yield Finding("note", "workers", "none of this app's runs on this machine, as this user")


def _code(app: Celery, worker: vitals.Health) -> Iterator[Finding]:
    """Whether it runs what stands in the files."""
    files = project_files()
    theirs, ours = worker.said.get("code"), code_version(files)
    if not theirs or worker.said.get("app") != app.main or theirs == ours:
        return
    changed = changed_since(files, float(worker.said.get("started") or 0))
    names = ", ".join(sorted(os.path.basename(path) for path in changed)[:5])
    if changed:
        yield Finding(
            "warning", "code", f"{worker.node} runs code {theirs}, here is {ours}: {names} changed since it started",
            "restart it; minicelery worker --reload, and minicelery dev, do so by themselves",
        )  # fmt: skip
    else:
        yield Finding("note", "code", f"{worker.node} runs code {theirs}, here is {ours}")


def _beat(app: Celery) -> Iterator[Finding]:
    entries = app.periodic_entries()
    if not entries:
        return
    from minicelery.beat.lease import lead_of

    if app.broker.leader(lead_of(app)):
        yield Finding("ok", "beat", f"one is there, for {len(entries)} entries")
        return
    yield Finding(
        "warning", "beat", f"no beat is there, for {ui.counted(len(entries), 'periodic task')}",
        "start `minicelery beat`, or a worker with --beat",
    )  # fmt: skip


def _parts(error: MiniCeleryError) -> tuple[str, str]:
    text, hint = ui.split_hint(error)
    return text, hint or ""
