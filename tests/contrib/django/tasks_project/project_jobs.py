"""Its tasks, and receivers that write down what they hear."""

import asyncio
import os
import sys
import time

import django.apps

if not django.apps.apps.ready:
    django.setup()

from django.dispatch import receiver
from django.tasks import task
from django.tasks.signals import task_enqueued, task_finished, task_started

LOG = os.environ["PROJECT_LOG"]
OWN = {"max_retries": 2, "default_retry_delay": 0} if django.VERSION >= (6, 1) else {}


def note(text):
    with open(LOG, "a") as file:
        file.write(text + "\n")


@receiver([task_enqueued, task_started, task_finished])
def hear(sender, signal, task_result, **_):
    name = {id(task_enqueued): "enqueued", id(task_started): "started", id(task_finished): "finished"}
    raised = type(sys.exc_info()[1]).__name__ if sys.exc_info()[1] else "-"
    note(f"{task_result.id} {name[id(signal)]} {sender.__name__} {task_result.status} {raised}")


@task
def add(x, y=1):
    return x + y


@task(priority=10, queue_name="mail")
def send(address):
    return f"sent to {address}"


@task
async def wait(seconds):
    await asyncio.sleep(seconds)
    return (seconds, "waited")


@task
def fail(text):
    raise ValueError(text)


@task
async def fail_async(text):
    raise LookupError(text)


@task(takes_context=True)
def tell(context, more):
    result = context.task_result
    return [context.attempt, result.id, result.status, result.args, more]


@task
def strange():
    return object()


@task
def leave():
    raise SystemExit(3)


@task
def slow(folder):
    open(os.path.join(folder, "begun"), "w").close()
    while not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.01)
    return "slow"


@task(takes_context=True, **OWN)
def third_time(context):
    if context.attempt < 3:
        raise ValueError(f"attempt {context.attempt}")
    return context.attempt


@task(takes_context=True, **OWN)
def never(context):
    raise ValueError(f"attempt {context.attempt}")


@task(backend="commit")
def after_commit():
    return "committed"


@task(backend="named")
def silent():
    return None


def plain():
    return None
