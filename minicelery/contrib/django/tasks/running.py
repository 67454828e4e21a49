"""One attempt at a Django task, in a worker."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.tasks import TaskContext, TaskResultStatus, task_backends
from django.tasks.base import TaskError
from django.tasks.exceptions import TaskException
from django.tasks.signals import task_finished, task_started
from django.utils.json import normalize_json

from minicelery import states
from minicelery.awaiting import in_thread
from minicelery.contrib.django.tasks import kept as store
from minicelery.contrib.django.tasks.declared import MiniceleryTask, find_task
from minicelery.contrib.django.tasks.kept import Kept
from minicelery.contrib.django.times import moment
from minicelery.exceptions import BackendError, TaskPredicate
from minicelery.result import DisabledBackend
from minicelery.retrying import retry_delay
from minicelery.worker.call import format_traceback

_random = random.Random()


class Attempt:
    """Runs the function, tells Django's receivers, and has what is to be known of it stored.

    `job` is the task of minicelery's whose request this is.
    """

    def __init__(
        self, job: Any, path: str, args: list[Any], kwargs: dict[str, Any], call: dict[str, Any]
    ) -> None:
        self.job = job
        self.app = job.app
        self.kept = Kept(path, args, kwargs, **call)
        self.task = find_task(path)
        self.sender = type(task_backends[self.kept.backend])
        self.result: Any = None
        self._is_stored = not isinstance(self.app.backend, DisabledBackend) and not job.request.is_eager

    def run(self) -> Any:
        """What the function returns, as JSON has it; raises what it raises."""
        self._begin()
        self._tell(task_started)
        try:
            value = normalize_json(self.result.task.call(*self._arguments(), **self.result.kwargs))
        except TaskPredicate:
            raise
        except (Exception, SystemExit) as error:
            self._retry(error)
            self._failed(error)
            self._tell(task_finished)
            raise
        self._succeeded(value)
        self._tell(task_finished)
        return value

    async def arun(self) -> Any:
        """The same of a coroutine."""
        await in_thread(self.app, self._begin)
        await self._atell(task_started)
        try:
            value = normalize_json(await self.result.task.acall(*self._arguments(), **self.result.kwargs))
        except TaskPredicate:
            raise
        except (Exception, SystemExit) as error:
            self._retry(error)
            self._failed(error)
            await self._atell(task_finished)
            raise
        self._succeeded(value)
        await self._atell(task_finished)
        return value

    def _tell(self, signal: Any) -> None:
        signal.send_robust(sender=self.sender, task_result=self.result)

    async def _atell(self, signal: Any) -> None:
        # Not `asend_robust`: with Django 6.0 receivers would not see the exception that is being handled.
        await sync_to_async(self._tell)(signal)

    def _arguments(self) -> list[Any]:
        if not self.kept.takes_context:
            return list(self.result.args)
        return [TaskContext(task_result=self.result), *self.result.args]

    def _begin(self) -> None:
        request = self.job.request
        if self._is_stored and (request.retries or request.redelivered):
            self._take_up()
        self.kept.attempts.append([request.hostname or "eager", time.time()])
        self.result = store.result_of(
            request.id, self.kept, {"status": states.STARTED, "result": None}, self.task
        )
        if self._is_stored:
            request.reported = True  # what is stored here is the state STARTED
            store.write(self.app, request.id, self.kept, {"pid": os.getpid(), "hostname": request.hostname})

    def _take_up(self) -> None:
        """Go on from what the attempts before this one have left."""
        try:
            before, _ = store.read(self.app, self.job.request.id)
        except (BackendError, TaskException):
            return
        self.kept.attempts, self.kept.errors = before.attempts, before.errors

    def _retry(self, error: BaseException) -> None:
        """Raises Retry if the task is to be tried once more."""
        task, request = self.task, self.job.request
        if not isinstance(task, MiniceleryTask) or request.retries >= task.max_retries:
            return
        if isinstance(error, SystemExit):
            return
        pause: float = task.default_retry_delay
        if task.retry_backoff:
            pause = retry_delay(
                request.retries, float(task.retry_backoff), task.retry_backoff_max, task.retry_jitter, _random
            )
        self.kept.errors.append(_error(error))
        if self._is_stored:
            store.write(self.app, request.id, self.kept)
        raise self.job.retry(exc=error, countdown=pause, max_retries=task.max_retries)

    def _failed(self, error: BaseException) -> None:
        path, text = _error(error)
        self.result.errors.append(TaskError(exception_class_path=path, traceback=text))
        self._set(status=TaskResultStatus.FAILED, finished_at=moment(time.time()))

    def _succeeded(self, value: Any) -> None:
        self._set(status=TaskResultStatus.SUCCESSFUL, finished_at=moment(time.time()), _return_value=value)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self.result, name, value)


def _error(error: BaseException) -> list[str]:
    """The path of its class, and its traceback."""
    kind = type(error)
    return [f"{kind.__module__}.{kind.__qualname__}", format_traceback(error)]
