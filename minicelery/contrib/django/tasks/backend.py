"""The backend of ``TASKS``: Django's tasks go to minicelery's broker, and their results come from its store."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core import checks
from django.db import transaction
from django.tasks import DEFAULT_TASK_QUEUE_NAME, TaskResult, TaskResultStatus
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import TASK_MAX_PRIORITY, TASK_MIN_PRIORITY
from django.tasks.exceptions import InvalidTaskBackend
from django.tasks.signals import task_enqueued

from minicelery._state import get_current_app
from minicelery.contrib.django.problems import APP
from minicelery.contrib.django.task import warn_within_transaction
from minicelery.contrib.django.tasks import RUN, RUN_ASYNC
from minicelery.contrib.django.tasks import kept as store
from minicelery.contrib.django.tasks.declared import MiniceleryTask, check_importable, check_own_options
from minicelery.contrib.django.tasks.kept import Kept
from minicelery.contrib.django.times import aware, moment, unix
from minicelery.exceptions import QueueNotFound
from minicelery.message import new_id
from minicelery.options import most_priority
from minicelery.result import DisabledBackend, EagerResult
from minicelery.task import Task

if TYPE_CHECKING:
    from minicelery.app import Celery

OPTIONS = ("app", "enqueue_on_commit")
STEPS = 9
"""The least urgent priority where 0 is the most urgent one."""


class MiniceleryBackend(BaseTaskBackend):
    """Enqueues Django's tasks for workers of minicelery.

    ``OPTIONS``: ``app``, as ``"proj.celery:app"``, if it is not the current one;
    ``enqueue_on_commit=True`` has a task sent when the transaction it was enqueued in is committed.
    """

    task_class = MiniceleryTask
    supports_defer = True
    supports_async_task = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, params)
        self.options: Mapping[str, Any] = params.get("OPTIONS") or {}
        for name, value in self.options.items():
            if name not in OPTIONS:
                near = get_close_matches(str(name), OPTIONS, 1)
                raise InvalidTaskBackend(
                    f"TASKS[{alias!r}]['OPTIONS'][{name!r:.80}] is unknown"
                    + (f", did you mean {near[0]!r}?" if near else "")
                    + f"; accepted: {', '.join(OPTIONS)}"
                )
            if name == "enqueue_on_commit" and not isinstance(value, bool):
                raise InvalidTaskBackend(
                    f"TASKS[{alias!r}]['OPTIONS']['enqueue_on_commit']={value!r:.80}: expected True or False"
                )

    @property
    def app(self) -> Celery:
        """The app whose broker and result store are used.  Raises InvalidTaskBackend."""
        named = self.options.get("app")
        if named is None:
            return get_current_app()
        if not isinstance(named, str):
            found: Any = named
        else:
            module, _, attribute = named.replace(":", ".").rpartition(".")
            try:
                found = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError, ValueError) as error:
                raise InvalidTaskBackend(
                    f"TASKS[{self.alias!r}]['OPTIONS']['app']={named!r}: {error}; expected module:app"
                ) from error
        if not hasattr(found, "send_task"):
            raise InvalidTaskBackend(
                f"TASKS[{self.alias!r}]['OPTIONS']['app']={named!r:.80}: expected a minicelery app, "
                f"got {type(found).__name__}"
            )
        app: Celery = found
        return app

    @property
    def supports_get_result(self) -> bool:
        """Whether the app has a result store, and one that anybody can read: rpc:// can't be."""
        backend = self.app.backend
        return not isinstance(backend, DisabledBackend) and not getattr(backend, "direct", False)

    def validate_task(self, task: Any) -> None:
        """Raises InvalidTask."""
        super().validate_task(task)
        check_own_options(task)

    # -- sending ---------------------------------------------------------------------------

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Send the call.  Raises InvalidTask, TypeError for arguments that JSON has not or that don't
        fit, and OperationalError where the broker can't be reached."""
        self.validate_task(task)
        check_importable(task)
        result = TaskResult(
            task=task, id=new_id(), status=TaskResultStatus.READY, enqueued_at=None, started_at=None,
            last_attempted_at=None, finished_at=None, args=args, kwargs=kwargs, backend=self.alias,
            errors=[], worker_ids=[],
        )  # fmt: skip
        _check_arguments(task, result)
        if self.options.get("enqueue_on_commit"):
            transaction.on_commit(partial(self._send, result))
        else:
            warn_within_transaction(
                task.module_path,
                f"set TASKS[{self.alias!r}]['OPTIONS']['enqueue_on_commit']=True, or write "
                "transaction.on_commit(lambda: ….enqueue(…))",
            )
            self._send(result)
        return result

    def _send(self, result: Any) -> None:
        app, task = self.app, result.task
        kept = Kept(
            task.module_path, result.args, result.kwargs, self.alias, task.priority, task.queue_name,
            unix(task.run_after), task.takes_context, round(time.time(), 6),
        )  # fmt: skip
        is_kept = self.supports_get_result and not app.conf.task_always_eager
        if is_kept:  # first, or a quick worker might be overwritten
            store.write(app, result.id, kept)
        job = app.tasks[RUN_ASYNC if inspect.iscoroutinefunction(task.func) else RUN]
        try:
            sent = Task.apply_async(
                job, (kept.path, kept.args, kept.kwargs, kept.of_call()), task_id=result.id, shadow=kept.path,
                **self._options(app, task),
            )  # fmt: skip
        except BaseException:
            if is_kept:
                store.forget(app, result.id)
            raise
        object.__setattr__(result, "enqueued_at", moment(kept.enqueued_at))
        task_enqueued.send(sender=type(self), task_result=result)
        if isinstance(sent, EagerResult):
            _take_over(result, kept, sent)

    def _options(self, app: Celery, task: Any) -> dict[str, Any]:
        options: dict[str, Any] = {}
        queue = self._queue(app, task.queue_name)
        if queue is not None:
            options["queue"] = queue
        priority = broker_priority(app, queue or app.conf.task_default_queue, task.priority)
        if priority is not None:
            options["priority"] = priority
        if task.run_after is not None:
            options["eta"] = aware(task.run_after)
        for name in ("time_limit", "soft_time_limit", "expires"):
            if (value := getattr(task, name, None)) is not None:
                options[name] = value
        return options

    def _queue(self, app: Celery, name: str) -> str | None:
        """The queue's name at the broker; None where the app's routes say it."""
        if name == DEFAULT_TASK_QUEUE_NAME and name not in app._sender.router.queues:
            return None
        return name

    # -- results ---------------------------------------------------------------------------

    def get_result(self, result_id: str) -> Any:
        """The result as it is stored now.

        Raises TaskResultDoesNotExist; TaskResultMismatch where the task itself is not there any more;
        NotImplementedError where the app has no result store.
        """
        app = self.app
        if not self.supports_get_result:
            raise NotImplementedError(
                "results can't be read: the app has no result store that other processes can read; set "
                "CELERY_RESULT_BACKEND, for example to 'redis://localhost/0' or 'sqlite:///results.db'"
            )
        kept, meta = store.read(app, result_id)
        return store.result_of(result_id, kept, meta)

    # -- checks ----------------------------------------------------------------------------

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """What ``manage.py check`` says of it."""
        try:
            app = self.app
            conf = app.conf
        except Exception as error:
            return [checks.Error(str(error), id="minicelery.E101")]
        found: list[checks.CheckMessage] = []
        if not conf.broker_url:
            found.append(checks.Warning(
                f"TASKS[{self.alias!r}]: no broker is configured, so amqp://guest@localhost is used.",
                hint='Set CELERY_BROKER_URL, for example to "redis://localhost/0".', id="minicelery.W102",
            ))  # fmt: skip
        if not apps.is_installed(APP) and f"{APP}.tasks" not in (*conf.imports, *conf.include):
            found.append(checks.Warning(
                f"TASKS[{self.alias!r}]: {APP!r} is not in INSTALLED_APPS, so workers do not know Django's tasks.",
                hint=f"Add {APP!r} to INSTALLED_APPS.", id="minicelery.W104",
            ))  # fmt: skip
        for name in sorted(self.queues):
            try:
                if (queue := self._queue(app, name)) is not None:
                    app._sender.router.spec(queue)
            except QueueNotFound as error:
                found.append(checks.Error(
                    f"TASKS[{self.alias!r}]['QUEUES'] has {name!r}: {error}", id="minicelery.E103",
                    hint="Declare it in CELERY_TASK_QUEUES.",
                ))  # fmt: skip
        return found


def broker_priority(app: Celery, queue: str, priority: int) -> int | None:
    """Django's −100…100 in the broker's own terms; None where the broker takes none."""
    share: float = (priority - TASK_MIN_PRIORITY) / (TASK_MAX_PRIORITY - TASK_MIN_PRIORITY)
    if most_priority(app.conf) == STEPS:  # Redis, SQLite, memory: 0 is served first
        return round((1 - share) * STEPS)
    try:
        most = app._sender.router.spec(queue).arguments.get("x-max-priority")
    except QueueNotFound:
        return None  # sending says so
    return int(share * most + 0.5) if most else None


def _check_arguments(task: Any, result: Any) -> None:
    """Raises TypeError where the arguments don't fit the function, instead of in the worker."""
    first = ("context",) if task.takes_context else ()
    try:
        inspect.signature(task.func).bind(*first, *result.args, **result.kwargs)
    except TypeError as error:
        raise TypeError(f"arguments of task {task.module_path!r}: {error}") from None


def _take_over(result: Any, kept: Kept, sent: EagerResult[Any]) -> None:
    """With ``task_always_eager`` the task has run by now."""
    kept.attempts = [["eager", kept.enqueued_at]]
    meta = sent._final
    assert meta is not None
    ended = store.result_of(result.id, kept, {"date_done": None, **meta}, result.task)
    object.__setattr__(ended, "finished_at", moment(time.time()))
    for name in (
        "status",
        "started_at",
        "last_attempted_at",
        "finished_at",
        "errors",
        "worker_ids",
        "_return_value",
    ):
        object.__setattr__(result, name, getattr(ended, name))
