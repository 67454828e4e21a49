"""The Django tutorial on RabbitMQ, end to end: a site, a worker, Flower, and a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial

import pytest

from tests.browser import Browser
from tests.examples.project import least, on_rabbit
from tests.examples.sites import Site, Visitor
from tests.rabbit import RabbitServer
from tests.waiting import wait_until

pytest.importorskip("django")

pytestmark = pytest.mark.timeout(180)  # a slow machine starts four programs

ENDED = r"Task myTasks\.tasks\.waitNSeconds\[([0-9a-f-]{36})\] succeeded in (\d+\.\d+)s: None"


@pytest.fixture(scope="module")
def site(rabbit_server: RabbitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The example's worker and server, as its README starts them."""
    make = partial(Site, example="django_rabbitmq")
    with on_rabbit(rabbit_server, tmp_path_factory, make) as site:
        site.start_worker(site.documented("minicelery -A celeryApp worker -l info"))
        site.serve()
        yield site


def test_the_view_answers_at_once_and_the_worker_takes_the_three_seconds(site: Site) -> None:
    visitor = Visitor(site.url)

    def ask() -> float:
        page, seconds = visitor.get("/slow/")
        assert json.loads(page) == {"response": "ok"}
        return seconds

    assert least((ask() for _ in range(8)), 0.3) < 0.3
    site.logged("succeeded")
    assert all(float(seconds) >= 3 for _, seconds in re.findall(ENDED, site.log.read_text()))


def test_a_browser_shows_the_answer_and_flower_the_calls(site: Site, browser: Browser) -> None:
    pytest.importorskip("flower")
    log = site.log.with_name("flower.log")
    site.environment |= {"FLOWER_PORT": "0", "FLOWER_ADDRESS": "127.0.0.1"}
    site.start(site.documented("minicelery -A celeryApp flower"), log, "Visit me at ")
    flower = re.findall(r"Visit me at (http://[\d.:]+)", log.read_text())[0]
    # Flower switches the events of tasks on when it has run for some seconds.
    site.logged("Task events are enabled by remote control")

    browser.open(f"{site.url}/slow/")
    assert json.loads(browser.text()) == {"response": "ok"}

    def shown() -> list[list[str]]:
        browser.open(f"{flower}/tasks")
        browser.wait_for("document.querySelector('#tasks-table tbody td') !== null")
        rows = browser.rows("#tasks-table tbody")
        return [row for row in rows if "SUCCESS" in row]

    for row in wait_until(shown, 45, interval=0.3):  # more, where calls of the other test had to wait
        assert row[0] == "myTasks.tasks.waitNSeconds" and row[2] == "SUCCESS"
        site.logged(f"{row[0]}[{row[1][:36]}] succeeded in ")


def test_the_worker_names_the_transport_without_its_password_and_has_found_the_task(site: Site) -> None:
    log = site.logged("ready")

    assert re.search(r"transport: +amqp://guest:\*+@127\.0\.0\.1:\d+/example-", log)
    assert ". myTasks.tasks.waitNSeconds\n" in log
    assert "guest:guest" not in log


def test_the_listings_are_as_printed(site: Site) -> None:
    assert [file for file, listing in LISTINGS.items() if not site.prints(file, listing)] == []


LISTINGS = {
    "celeryApp/celery.py": """\
# celeryApp/celery.py
import os
from celery import Celery

os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'celeryApp.settings')
app = Celery('celeryApp')
app.config_from_object('django.conf:settings', namespace='CELERY')
app.autodiscover_tasks()
""",
    "celeryApp/__init__.py": """\
# celeryApp/__init__.py
from .celery import app as celery_app
__all__ = ('celery_app',)
""",
    "myTasks/tasks.py": """\
from celeryApp.celery import app
import time

@app.task
def waitNSeconds(n):
    time.sleep(n)
""",
    "myTasks/views.py": """\
from django.http import JsonResponse
from .tasks import waitNSeconds

def slowResponseView(request):
    waitNSeconds.delay(3)
    return JsonResponse({"response": "ok"})
""",
}
