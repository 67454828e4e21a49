"""The FastAPI example, as its README starts it: answers at once, progress as it happens, 503 in an outage."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser
from tests.contrib.project import ROOT, port_in, running
from tests.examples.project import LIMIT, least, took
from tests.servers import RedisServer
from tests.waiting import wait_until

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

EXAMPLE = ROOT / "examples" / "fastapi_app"
WORKER = "minicelery -A tasks worker --loglevel=info --concurrency=4"
SITE = "uvicorn app:site"

pytestmark = pytest.mark.timeout(180)  # a slow machine starts four programs


class Site:
    def __init__(self, port: int, redis: RedisServer) -> None:
        self.port = port
        self.redis = redis

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)) as connection:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def events(self, path: str) -> Iterator[tuple[float, dict[str, Any]]]:
        """When each event came, and what it says."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)) as connection:
            connection.request("GET", path)
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    yield time.monotonic(), json.loads(line[6:])


@pytest.fixture(scope="module")
def site(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("fastapi")
    redis = RedisServer().start()
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    for command in (WORKER, SITE):
        assert f"\n{command}\n" in readme
    worker = WORKER.split()
    web = f"{SITE} --host 127.0.0.1 --port 0".split()
    env = {"REDIS_URL": redis.url(), "API_TOKEN": "t0ken"}
    try:
        with (
            running(EXAMPLE, worker, " ready", log=str(folder / "worker.log"), **env),
            running(EXAMPLE, web, "(Press CTRL", log=str(folder / "web.log"), **env) as log,
        ):
            yield Site(port_in(log), redis)
    finally:
        redis.stop()


def test_an_order_answers_at_once_while_its_task_takes_three_seconds(site: Site) -> None:
    began: list[float] = []
    answers: list[tuple[int, Any]] = []

    def order() -> None:
        began.append(time.monotonic())
        answers.append(site.ask("POST", "/reports?pages=3"))

    for _ in range(5):  # again, where this machine had to wait while a page of the report was made
        began.clear()
        answers.clear()
        assert least((took(order) for _ in range(5)), 0.3) < 0.3
        status, ordered = answers[-1]
        assert status == 202
        events = list(site.events(ordered["events"]))
        assert events[-1][0] - began[-1] >= 3
        documents = [document for _, document in events]
        percents = [document["progress"]["percent"] for document in documents if document["progress"]]
        assert percents == sorted(percents)
        assert set(percents) <= {0, 33.3, 66.7}
        assert documents[-1]["result"] == {"file": "report-3.pdf", "pages": 3}
        assert site.ask("GET", ordered["state"]) == (200, documents[-1])
        # each came when it happened
        if percents[-2:] == [33.3, 66.7] and events[-1][0] - events[-2][0] > 0.8:
            return
    pytest.fail(str(events))


def test_the_page_shows_in_a_browser_how_far_the_report_is(site: Site, browser: Browser) -> None:
    for _ in range(5):  # again, where this machine had to wait while a page of the report was made
        browser.open(f"http://127.0.0.1:{site.port}/")
        browser.run("window.seen = []")
        # Looked at here, not from outside: each value that the events of the server give the bar.
        browser.run(
            "new MutationObserver(() => seen.push([find('progress').value, find('output').value]))"
            ".observe(find('progress'), {attributes: true}) || true"
        )
        browser.run("find('button').click()")
        browser.wait_for("find('output').value.includes('report-5.pdf')", LIMIT)
        assert json.loads(browser.text("output")) == {"file": "report-5.pdf", "pages": 5}
        seen = browser.run("seen")
        assert seen == sorted(seen)
        assert seen[-1][0] == 100
        if [said for value, said in seen if value in (40, 60, 80)] == ["PROGRESS"] * 3:
            return
    pytest.fail(str(seen))


def test_a_view_may_await_its_task_and_a_client_may_leave(site: Site) -> None:
    _, order = site.ask("POST", "/reports?pages=2")
    stream = site.events(order["events"])
    next(stream)
    stream.close()  # the client has gone
    assert site.ask("GET", "/hello/Ana") == (200, {"text": "Hello Ana"})


def test_a_call_by_name_needs_the_token(site: Site) -> None:
    path, body = "/tasks/tasks.report", {"args": [0]}
    assert site.ask("POST", path, body) == (401, {"detail": "send the header X-Token"})
    status, called = site.ask("POST", path, body, **{"X-Token": "t0ken"})
    assert status == 202
    assert list(site.events(called["events"]))[-1][1]["result"]["pages"] == 0
    assert site.ask("POST", "/tasks/tasks.greet", {}, **{"X-Token": "t0ken"})[0] == 404


def test_an_outage_is_503_and_ends_with_the_outage(site: Site) -> None:
    site.redis.kill()
    try:
        for method, path in (("POST", "/reports"), ("GET", "/tasks/abc"), ("GET", "/tasks/abc/events")):
            status, answer = site.ask(method, path)
            assert (status, "can't be reached" in answer["detail"]) == (503, True)
    finally:
        site.redis.start()
    wait_until(lambda: site.ask("GET", "/hello/Eva") == (200, {"text": "Hello Eva"}), LIMIT)
