"""The Django tutorial, end to end: a site, a worker and a RabbitMQ of its own, and an HTTP client."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.examples.project import Project, on_rabbit
from tests.rabbit import RabbitServer

pytest.importorskip("django")

ENDED = r"Task myTasks\.tasks\.waitNSeconds\[[0-9a-f-]{36}\] succeeded in (\d+\.\d+)s: None"


@pytest.fixture(scope="module")
def project(rabbit_server: RabbitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The example's worker, as its README starts it."""
    with on_rabbit(rabbit_server, tmp_path_factory, "django_celeryapp") as project:
        project.start_worker("minicelery -A celeryApp worker -l info")
        yield project


def test_the_slow_view_answers_at_once_and_the_worker_takes_the_three_seconds(project: Project) -> None:
    address = f"127.0.0.1:{_free_port()}"
    project.start(
        f"manage.py runserver --noreload {address}", project.log.with_name("web.log"), "Starting development"
    )
    began = time.monotonic()
    with urllib.request.urlopen(f"http://{address}/slow/", timeout=10) as answer:
        assert json.load(answer) == {"response": "ok"}
    assert time.monotonic() - began < 2.5

    ended = re.search(ENDED, project.logged("succeeded"))
    assert ended is not None
    assert 3 <= float(ended[1]) < 4


def test_the_worker_names_the_transport_without_its_password_and_has_found_the_task(
    project: Project,
) -> None:
    log = project.logged("ready")

    assert re.search(r"transport: +amqp://guest:\*+@127\.0\.0\.1:\d+/example-", log)
    assert ". myTasks.tasks.waitNSeconds\n" in log
    assert "guest:guest" not in log


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
