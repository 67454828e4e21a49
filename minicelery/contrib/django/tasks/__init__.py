"""Django's own tasks, ``django.tasks``, run by minicelery's workers.  Needs Django 6.0.

::

    TASKS = {"default": {"BACKEND": "minicelery.contrib.django.tasks.MiniceleryBackend"}}

`running` is the worker's side, `kept` what the result store has of a call.
"""

from __future__ import annotations

from typing import Any

import django

from minicelery import shared_task
from minicelery.exceptions import ImproperlyConfigured

__all__ = ("RUN", "RUN_ASYNC", "MiniceleryBackend", "MiniceleryTask", "run", "run_async")

RUN, RUN_ASYNC = "minicelery.django.run", "minicelery.django.arun"
"""The two tasks, known to every app, as which Django's are sent: for functions, and for coroutines."""

BESIDE = ".django"
"""What the id of a record ends with that is kept beside the result of such a call; see `kept`."""

_LATER = {
    "MiniceleryBackend": "minicelery.contrib.django.tasks.backend",
    "MiniceleryTask": "minicelery.contrib.django.tasks.declared",
}


@shared_task(name=RUN, bind=True, ignore_result=False)
def run(job: Any, path: str, args: list[Any], kwargs: dict[str, Any], call: dict[str, Any]) -> Any:
    """Run the Django task at `path`."""
    from minicelery.contrib.django.tasks.running import Attempt

    return Attempt(job, path, args, kwargs, call).run()


@shared_task(name=RUN_ASYNC, bind=True, ignore_result=False)
async def run_async(
    job: Any, path: str, args: list[Any], kwargs: dict[str, Any], call: dict[str, Any]
) -> Any:
    """The same, of a coroutine: in the worker's own event loop."""
    from minicelery.contrib.django.tasks.running import Attempt

    return await Attempt(job, path, args, kwargs, call).arun()


def __getattr__(name: str) -> Any:
    # Not imported above: whatever Django there is, workers import this module to have its tasks.
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if django.VERSION < (6, 0):
        raise ImproperlyConfigured(
            f"{__name__}.{name} needs django.tasks, which came with Django 6.0, and this is Django "
            f"{django.__version__}; upgrade Django, or declare tasks with minicelery's @shared_task"
        )
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
