"""Flower as it is, looked at in Chromium: by Celery's client and by our own, it shows and steers our workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from minicelery.pausing import pause
from tests.browser import Browser
from tests.interop.scripts.shop import QUEUE, make_app
from tests.waiting import wait_until

pytest.importorskip("flower")

pytestmark = pytest.mark.timeout(240)  # the first test of each stage waits for three programs to start

ROOT = Path(__file__).parents[2]
NODE = "mini@shop"
CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "added": ("shop.add", (2,), {"y": 40}),
    "failed": ("shop.fail", ("sin existencias",), {}),
    "held": ("shop.hold", (3600,), {}),
    "to wait": ("shop.later", (), {}),
}
STATES = {"added": "SUCCESS", "failed": "FAILURE", "held": "STARTED", "to wait": "RETRY"}


@dataclass
class Stage:
    """A worker of ours that has run `CALLS`, and a Flower that has watched it."""

    app: Any
    url: str
    page: Browser
    worker: subprocess.Popen[bytes]
    on_redis: bool
    scales: bool  # by itself
    ids: dict[str, str] = field(default_factory=dict)

    def open(self, path: str) -> Browser:
        self.page.open(f"{self.url}/{path}")
        return self.page

    def ask(self, question: str) -> Any:
        """What the worker answers."""
        found = getattr(self.app.control.inspect([NODE], timeout=10), question)()
        return found and found[NODE]

    def click(self, selector: str, answer: str) -> None:
        """Press a button; Flower says `answer`."""
        self.page.run("document.querySelectorAll('.toast').forEach(toast => toast.remove())")
        self.page.run(f"document.querySelector({selector!r}).click()")
        said = self.page.wait_for("document.querySelector('.toast-body')?.textContent.trim()")
        # Which it says where the answer takes longer than a second: it has been done nevertheless.
        assert said == answer or "Unknown reason" in said

    def enter(self, selector: str, value: object) -> None:
        self.page.run(f"document.querySelector({selector!r}).value = '{value}'")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Browser.available():
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("chromium is not installed")
    with Browser() as found:
        yield found


@pytest.fixture(
    scope="module",
    params=[
        ("redis", "celery", "-c3"),
        ("rabbitmq", "celery", "--autoscale=5,3"),
        ("redis", "minicelery", "-c3"),
    ],
    ids=lambda way: f"{way[0]}-by-{way[1]}",
)
def stage(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    broker, library, size = request.param
    store = request.getfixturevalue("redis_server")
    store.command("FLUSHALL")
    folder = tmp_path_factory.mktemp("flower")
    with ExitStack() as closing:
        url = store.url(db=8)
        if broker == "rabbitmq":
            server = request.getfixturevalue("rabbit_server")
            server.add_vhost("flower")
            closing.callback(server.delete_vhost, "flower")
            url = server.url("flower")
        environment = {"BROKER": url, "BACKEND": store.url(db=9), "FLOWER_UNAUTHENTICATED_API": "1"}
        app = make_app("minicelery", url, environment["BACKEND"])
        closing.callback(app.close)
        pause(app.broker, queues=["stock"])
        worker = _start(
            "minicelery",
            f"worker -E -n {NODE} -Q {QUEUE},stock {size} -l INFO --heartbeat-interval 1",
            folder,
            environment,
        )
        closing.callback(_end, worker, signal.SIGQUIT)
        flower = _start(library, "flower --port=0 --address=127.0.0.1", folder, environment)
        closing.callback(_end, flower, signal.SIGTERM)
        try:
            visit = wait_until(
                lambda: re.search(r"Visit me at (http://\S+)\s", (folder / "flower.log").read_text()), 90
            )
            stage = Stage(app, visit[1], browser, worker, broker == "redis", size != "-c3")
            _play(stage)
        except AssertionError as error:
            logs = [(folder / f"{name}.log").read_text()[-2000:] for name in ("worker", "flower")]
            raise AssertionError("\n".join([str(error), *logs])) from None
        yield stage


def _start(library: str, words: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", library, "-A", "tests.interop.scripts.shop", *words.split()]
    with open(folder / f"{words.split()[0]}.log", "wb") as log:
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT), "LIBRARY": library, **environment},
        )  # fmt: skip


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(how)
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    process.kill()
    process.wait(5)


def _play(stage: Stage) -> None:
    """Send `CALLS`, and return when Flower knows what has become of them."""
    page = stage.open("healthcheck")
    # Once it has heard a heartbeat it listens to all the rest.
    page.wait_for(_json(f"d.data.some(w => w.hostname == '{NODE}' && w.status)", "workers?json=1"), 60)
    for name, (task, args, kwargs) in CALLS.items():
        stage.ids[name] = stage.app.send_task(task, args, kwargs).id
    for count in range(3):
        stage.app.send_task("shop.add", (count,), queue="stock")
    wanted = [f"d['{stage.ids[name]}']?.state == '{state}'" for name, state in STATES.items()]
    page.wait_for(_json(" && ".join(wanted), "api/tasks"), 45)


def _json(condition: str, path: str) -> str:
    return f"fetch('/{path}').then(r => r.json()).then(d => {condition}).catch(() => false)"


def table(stage: Stage, path: str, selector: str, count: int) -> list[list[str]]:
    """The rows of a table that a script fills in, once there are so many."""
    page = stage.open(path)
    page.wait_for(f"document.querySelectorAll('{selector} tr td:nth-child(2)').length == {count}")
    return page.rows(selector)


def details(stage: Stage, call: str) -> dict[str, str]:
    """What the page of a task says, by its labels."""
    found: dict[str, str] = stage.open(f"task/{stage.ids[call]}").run(
        "Object.fromEntries([...document.querySelectorAll('.detail-row')]"
        ".map(row => [row.querySelector('dt').innerText, row.querySelector('dd').innerText.trim()]))"
    )
    return found


def test_the_workers_page_has_a_row_for_the_worker(stage: Stage) -> None:
    stage.page.wait_for(_json("d.data[0].active == 1", "workers?json=1"))  # the heartbeat after the events
    rows = table(stage, "workers", "#workers-table tbody", 1)
    name, status, active, processed, failed, succeeded, load = rows[0]
    assert (name, status, active, processed, failed, succeeded) == (NODE, "Online", "1", "4", "1", "1")
    assert re.fullmatch(r"(\d+(\.\d+)?){3}", load)
    assert stage.page.text("#workers-online") == "1"


def test_the_tabs_of_a_worker_are_filled(stage: Stage) -> None:
    page = stage.open(f"worker/{NODE}")

    def refreshed() -> bool:
        # It shows what the worker has told last, which may be what was asked first, and asks anew.
        stage.open(f"worker/{NODE}")
        there = [
            tab for tab in ("#tab-tasks", "#tab-config", "#worker-queues", "#limits-table") if page.rows(tab)
        ]
        tasks = page.rows("#tab-tasks")
        return len(there) == 4 and ["shop.add", "1"] in tasks and any(len(row) == 6 for row in tasks)

    wait_until(refreshed, 45, interval=0.2)
    pool = dict(page.rows("#tab-pool .worker-panel:first-child"))
    assert pool["Implementation"] == "Minicelery.worker:prefork"
    assert (pool["Max concurrency"], len(pool["Processes"].split(", "))) == ("3", 3)
    assert pool["Worker PID"] == str(stage.worker.pid)
    assert dict(page.rows(".worker-autoscaler-panel")).get("Max") == ("5" if stage.scales else None)
    assert dict(page.rows("#tab-broker"))["Transport"] == ("redis" if stage.on_redis else "amqp")
    assert [(row[0], row[2], row[3]) for row in page.rows("#worker-queues")] == [
        (QUEUE, "True", QUEUE),
        ("stock", "True", "stock"),
    ]
    ((name, id, acknowledged, pid, args, kwargs),) = [row for row in page.rows("#tab-tasks") if len(row) == 6]
    assert (name, args, kwargs, acknowledged) == ("shop.hold", "(3600,)", "{}", "True")
    assert id.startswith(stage.ids["held"])
    assert pid in pool["Processes"].split(", ")
    assert [row[0] for row in page.rows("#limits-table")] == sorted({call[0] for call in CALLS.values()})
    conf = dict(page.rows("#tab-config"))
    assert (conf["timezone"], conf["task_default_queue"]) == ("Europe/Madrid", QUEUE)
    assert ("guest@" in conf["broker_url"], "**@" in conf["broker_url"]) == (False, not stage.on_redis)
    assert float(dict(page.rows("#tab-system"))["maxrss"]) > 1000
    assert dict(page.rows("#tab-other"))["uptime"]


def test_the_tasks_page_has_name_state_time_and_worker_of_each(stage: Stage) -> None:
    rows = {row[1][:36]: row for row in table(stage, "tasks", "#tasks-table tbody", len(CALLS))}
    for name, id in stage.ids.items():
        task, _, state, received, runtime, worker = rows[id]
        assert (task, state, worker) == (CALLS[name][0], STATES[name], NODE)
        assert bool(runtime) == (name == "added")
        moment = datetime.fromisoformat(received).replace(tzinfo=ZoneInfo("Europe/Madrid"))
        now = datetime.now(ZoneInfo("UTC"))
        # An hour of October is there twice.
        assert min(abs((now - moment.replace(fold=fold)).total_seconds()) for fold in (0, 1)) < 600


def test_the_page_of_a_task_has_its_arguments_and_its_result(stage: Stage) -> None:
    found = details(stage, "added")
    assert (found["Name"], found["Status"], found["Arguments"], found["Keyword arguments"]) == (
        "shop.add",
        "SUCCESS",
        "(2,)",
        "{'y': 40}",
    )
    assert (found["Result"], found["Worker"], found["Retries"]) == ("42", NODE, "0")
    for moment in ("Received", "Started", "Succeeded"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:.]{15} CES?T", found[moment])
    assert re.fullmatch(r"[\d.]+ ms|[\d.]+ s", found["Runtime"])


def test_the_page_of_a_failed_task_has_its_exception_and_its_traceback(stage: Stage) -> None:
    found = details(stage, "failed")
    assert (found["Status"], found["Exception"]) == ("FAILURE", "ValueError('sin existencias')")
    assert "raise ValueError(why)\nValueError: sin existencias" in found["Traceback"]


def test_the_broker_page_has_the_queues_and_no_password(stage: Stage) -> None:
    stage.page.wait_for(
        _json(f"d['{NODE}'].active_queues.length == 2", f"api/workers?refresh=1&workername={NODE}")
    )
    stage.open("broker")
    url = stage.page.text(".broker-url")
    rows = stage.page.rows("#queue-table tbody")
    if stage.on_redis:
        assert url.replace(":**@", "") == stage.app.broker.url  # Celery masks what is not there
        assert [row[:2] for row in rows] == [[QUEUE, "0"], ["stock", "3"]]
    else:
        assert "guest:**@" in url
        # For any worker: it takes RabbitMQ's management plugin.
        assert rows == [["No queue data is available."]]


def test_the_buttons_of_the_pool_change_it(stage: Stage) -> None:
    stage.open(f"worker/{NODE}")
    if stage.scales:
        stage.enter("#min-autoscale", 1)
        stage.enter("#max-autoscale", 2)
        stage.click("#worker-pool-autoscale", f"Autoscaling '{NODE}' worker (min=1, max=2)")
        wait_until(lambda: stage.ask("stats")["autoscaler"]["max"] == 2, 30)
    else:
        stage.enter("#pool-size", 2)
        stage.click("#worker-pool-grow", f"Growing '{NODE}' worker's pool by 2")
        wait_until(lambda: stage.ask("stats")["pool"]["max-concurrency"] == 5, 30)
        stage.enter("#pool-size", 1)
        stage.click("#worker-pool-shrink", f"Shrinking '{NODE}' worker's pool by 1")
        wait_until(lambda: stage.ask("stats")["pool"]["max-concurrency"] == 4, 30)
    before = _idle(stage)
    stage.click("#worker-pool-restart", f"Restarting '{NODE}' worker's pool")
    wait_until(lambda: not before & _idle(stage), 30)


def _idle(stage: Stage) -> set[int]:
    """The children of the worker that run nothing."""
    busy = {task["worker_pid"] for task in stage.ask("active")}
    return set(stage.ask("stats")["pool"]["processes"]) - busy


def test_the_buttons_of_the_queues_change_what_is_consumed(stage: Stage) -> None:
    page = stage.open(f"worker/{NODE}")
    stage.enter("#add-consumer-name", "extra")
    stage.click("#worker-add-consumer", "add consumer extra")
    wait_until(lambda: "extra" in [queue["name"] for queue in stage.ask("active_queues")], 30)
    page.wait_for(_json(f"d['{NODE}'].active_queues.length == 3", f"api/workers?refresh=1&workername={NODE}"))
    stage.open(f"worker/{NODE}")
    stage.click("[id='worker-cancel-consumer-extra']", "no longer consuming from extra")
    wait_until(lambda: "extra" not in [queue["name"] for queue in stage.ask("active_queues")], 30)


def test_the_buttons_of_the_limits_change_them(stage: Stage) -> None:
    stage.open(f"worker/{NODE}")
    row = "#limits-table tr:nth-child(1) td:nth-child(%d) input"
    stage.enter(row % 2, 7)
    stage.click("[id='task-rate-limit-shop.add']", "new rate limit set successfully")
    stage.enter(row % 3, 30)
    stage.click("[id='task-timeout-soft-shop.add']", "time limits set successfully")
    inspect = stage.app.control.inspect([NODE], timeout=10)
    wanted = "shop.add [rate_limit=7 soft_time_limit=30.0]"
    wait_until(lambda: wanted in inspect.registered("rate_limit", "soft_time_limit")[NODE], 30)


def test_the_buttons_of_a_task_revoke_and_terminate_it(stage: Stage) -> None:
    details(stage, "to wait")
    stage.click("#task-revoke", f"Revoked '{stage.ids['to wait']}'")
    wait_until(lambda: stage.ids["to wait"] in stage.ask("revoked"), 30)
    details(stage, "held")
    stage.click("#task-terminate", f"Revoked '{stage.ids['held']}'")
    stage.page.wait_for(_json("d.state == 'REVOKED'", f"api/task/info/{stage.ids['held']}"))


def test_the_button_that_shuts_a_worker_down_ends_it(stage: Stage) -> None:
    stage.open(f"worker/{NODE}")
    stage.click("#worker-shutdown", "Shutting down!")
    assert stage.worker.wait(30) == 0
    stage.page.wait_for(_json(f"d['{NODE}'] === false", "api/workers?status=1"))
