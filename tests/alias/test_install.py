"""`install_as_celery()`: each script runs in an interpreter of its own, whose imports it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicelery.alias.refused import REFUSED
from tests.alias.scripts import NEITHER, ONLY_KOMBU, run


def test_a_program_written_for_celery_runs_where_no_celery_is(tmp_path: Path) -> None:
    script = """
from minicelery import install_as_celery
install_as_celery()
install_as_celery()
import celery.result, minicelery
from celery import Celery, chain, shared_task, states
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from celery.schedules import crontab
from celery.signals import task_postrun
from celery.utils.log import get_task_logger
from kombu import Exchange, Queue
from celery.signals import *
from kombu.exceptions import OperationalError

assert worker_ready is minicelery.signals.worker_ready
assert Celery is minicelery.Celery and chain is minicelery.chain
app = Celery("shop", broker="memory://", backend="memory://")
app.conf.update(task_always_eager=True, task_queues=[Queue("orders", Exchange("orders"), routing_key="o")])
ended = []
task_postrun.connect(lambda task_id, **_: ended.append(task_id), weak=False)

@shared_task
def add(x, y):
    return x + y

found = chain(add.s(1, 2), add.s(3))()
assert type(celery.result.AsyncResult(found.id)) is minicelery.result.AsyncResult
assert celery.current_app.main == "shop" and celery.VERSION >= (5, 4)
print(found.get(), found.state == states.SUCCESS, len(ended), crontab(minute=5).is_due)
"""
    assert run(NEITHER + script, tmp_path).startswith("6 True 2 <bound method")


def test_an_installed_celery_is_not_hidden_unless_told_to(tmp_path: Path) -> None:
    script = """
from minicelery import Celery, install_as_celery
from minicelery.exceptions import ImproperlyConfigured
try:
    install_as_celery()
except ImproperlyConfigured as error:
    print(error)
import celery.states, kombu
assert celery.Celery is not Celery
real = celery.Celery("theirs")
install_as_celery(force=True)
import celery.states, kombu, sys
assert celery.Celery is Celery
assert kombu.Queue.__module__.startswith("minicelery.") and real.main == "theirs"
print([name for name, module in sys.modules.items()
       if name.partition(".")[0] in ("celery", "kombu") and type(module).__name__ != "StandIn"])
"""
    said, left = run(script, tmp_path).splitlines()
    assert said.startswith("install_as_celery() would hide /")
    assert said.endswith("celery/__init__.py; uninstall Celery, or say install_as_celery(force=True)")
    assert left == "[]"


def test_an_installed_kombu_stays_where_celery_is_not(tmp_path: Path) -> None:
    script = """
from minicelery import Celery, install_as_celery
install_as_celery()
import celery, kombu
assert celery.Celery is Celery
with Celery("shop", broker="memory://", task_queues=[kombu.Queue("orders")]) as app:
    print(kombu.__version__[0], kombu.Queue.__module__, list(app.conf.task_queues)[0].name)
install_as_celery(force=True)
import kombu
print(kombu.Queue.__module__.partition(".")[0])
"""
    assert run(ONLY_KOMBU + script, tmp_path) == "5 kombu.entity orders\nminicelery\n"


def test_what_is_not_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    script = """
from minicelery import install_as_celery
install_as_celery()
for line in (
    "from celery.bootsteps import StartStopStep", "import celery.worker.consumer.consumer",
    "from celery.worker import WorkController", "from kombu import Connection",
    "from celery.utils.threads import bgThread", "from celery.apps import nothing", "import celery.models",
):
    try:
        exec(line)
    except ImportError as error:
        print(error)
import celery, celery.worker, importlib.util
try:
    celery.worker.WorkController
except AttributeError as error:
    print(error)
print(hasattr(celery, "models"), importlib.util.find_spec("celery.admin"), "states" in dir(celery))
"""
    blueprints, messages, threads, apps = (
        REFUSED[path] for path in ("celery.bootsteps", "kombu", "celery.utils.threads", "celery.apps")
    )
    assert run(NEITHER + script, tmp_path).splitlines() == [
        f"minicelery has no celery.bootsteps: {blueprints}",
        f"minicelery has no celery.worker.consumer: {blueprints}",
        f"minicelery has no celery.worker.WorkController: {blueprints}",
        f"minicelery has no kombu.Connection: {messages}",
        f"minicelery has no celery.utils.threads.bgThread: {threads}",
        f"minicelery has no celery.apps: {apps}",
        "No module named 'celery.models'",
        f"minicelery has no celery.worker.WorkController: {blueprints}",
        "False None True",
    ]


def test_flower_needs_nothing_of_celerys_or_kombus(tmp_path: Path) -> None:
    pytest.importorskip("flower")
    script = """
from minicelery import install_as_celery
install_as_celery()
import sys
import flower.command, flower.utils
print([name for name, module in sys.modules.items()
       if name.partition(".")[0] in ("celery", "kombu", "amqp", "vine", "billiard")
       and type(module).__name__ != "StandIn"], flower.utils.bugreport())
"""
    left, _, report = run(NEITHER + script, tmp_path).partition(" ")
    assert left == "[]"
    assert "minicelery:" in report
