"""Beats and workers as programs: who takes over from whom, and who sends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from minicelery.beat import watch
from minicelery.beat.entries import run_id
from minicelery.beat.lease import lead_of
from minicelery.exceptions import OperationalError
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.worker.harness import Stalls

ROOT = Path(__file__).parents[2]
MODULE = """
from minicelery import Celery
app = Celery("shop", broker={url!r})
app.conf.beat_schedule = {{"tick": {{"task": "shop.tick", "schedule": 1.0}}}}

@app.task(name="shop.tick")
def tick():
    with open("ticks", "a") as file:
        file.write("tick\\n")
"""

Start = Callable[..., "subprocess.Popen[str]"]


@contextlib.contextmanager
def programs(tmp_path: Path) -> Iterator[Start]:
    """Starts the command line in a project; what was started ends with the block."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> subprocess.Popen[str]:
        with open(tmp_path / f"log{len(started)}", "w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "minicelery", "-A", "shop", *argv],
                cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            process.wait(15)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Start]:
    """Starts the command line in a project of the test's own; what it has started ends with the test."""
    with programs(tmp_path) as start:
        yield start


def write_shop(folder: Path, url: str) -> Celery:
    (folder / "shop.py").write_text(MODULE.format(url=url))
    return Celery("shop", broker=url, set_as_current=False)


@pytest.fixture(params=["sqlite", "redis", "rabbit"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Celery]:
    """The project's app, as this process sees it."""
    url = request.getfixturevalue(f"{request.param}_url")
    with write_shop(tmp_path, url) as app:
        yield app


def recalled(app: Celery, topic: str) -> dict[str, bytes]:
    """The records; none while RabbitMQ makes the stream, at which it closes connections."""
    with contextlib.suppress(OperationalError):
        return app.broker.recall(topic)
    return {}


def leader(folder: Path) -> int:
    """The process number of the beat that has begun to lead last, as its log says."""
    lines = [
        line
        for log in folder.glob("log*")
        for line in log.read_text().split("\n")[:-1]  # the last one may be half there
        if ": leading, as " in line
    ]
    return int(max(lines).rpartition(" ")[2].split(":")[1]) if lines else 0


def sent_ids(app: Celery) -> list[str]:
    """The ids of all that was sent, by beats that have ended."""
    size = app.broker.size("celery")
    consumer = app.broker.consumer(["celery"], "test", None)
    found: list[str] = []

    def fetched() -> bool:
        batch = consumer.swap([], 64, 0.1)
        found.extend(delivery.message.id for delivery in batch)
        return not batch and len(found) >= size

    wait_until(fetched)
    consumer.close()
    return found


def last_due(app: Celery) -> float:
    found = recalled(app, f"beat.{lead_of(app)}").get("tick")
    return float(json.loads(found)["last"]) if found else 0.0


def gaps(app: Celery, ids: list[str], since: float) -> list[int]:
    """How many ticks in a row are missing, wherever some are."""
    last, lead = last_due(app), lead_of(app)
    there, found, missing = set(ids), [], 0
    due = last
    while due >= since:
        if run_id(lead, "tick", due) in there:
            found.append(missing)
            missing = 0
        else:
            missing += 1
        due = round(due - 1.0, 6)
    return [gap for gap in found if gap]


def tick_on(app: Celery, run: Start, folder: Path, rounds: int, pause: float) -> None:
    """Kill the leader of three beats again and again."""
    beats = {process.pid: process for process in (run("beat", "-l", "info") for _ in range(3))}
    wait_until(lambda: last_due(app), 25)
    since = time.time() + 1

    def one_that_leads() -> int:
        return pid if (pid := leader(folder)) in beats else 0

    with Stalls() as stalls:
        for _ in range(rounds):
            time.sleep(pause)  # ticks go by
            killed = wait_until(one_that_leads, 20)
            os.kill(killed, signal.SIGKILL)
            beats.pop(killed).wait(10)
            wait_until(one_that_leads, 20)
            fresh = run("beat", "-l", "info")
            beats[fresh.pid] = fresh
        time.sleep(2)  # also until those begun last hear signals
    for process in beats.values():
        process.terminate()
        assert process.wait(15) in (0, -signal.SIGTERM)
    ids = sent_ids(app)
    assert max(Counter(ids).values()) == 1
    # Who can't run for a while makes up for one tick only, be it a beat or the whole machine.
    missing = [gap for gap in gaps(app, ids, since) if gap > 1 + stalls.longest]
    assert len(missing) <= rounds, (missing, stalls.longest)
    assert max(missing, default=0) <= 9 + stalls.longest, (missing, stalls.longest)


def test_another_beat_takes_over_within_ten_seconds_and_doubles_nothing(
    shop: Celery, run: Start, tmp_path: Path
) -> None:
    tick_on(shop, run, tmp_path, rounds=1, pause=3)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_beats_killed_for_two_minutes_double_nothing(
    sqlite_url: str, redis_url: str, rabbit_url: str, tmp_path: Path
) -> None:
    def live(url: str) -> None:
        folder = tmp_path / url.partition(":")[0]
        folder.mkdir()
        with write_shop(folder, url) as app, programs(folder) as start:
            tick_on(app, start, folder, rounds=12, pause=5)

    with ThreadPoolExecutor() as pool:
        list(pool.map(live, (sqlite_url, redis_url, rabbit_url)))


def test_a_worker_with_beat_sends_and_runs(shop: Celery, run: Start, tmp_path: Path) -> None:
    worker = run("worker", "--beat", "-c", "1", "-l", "info")
    wait_until(lambda: (tmp_path / "ticks").exists() and len((tmp_path / "ticks").read_text()) > 5, 20)
    worker.terminate()
    assert worker.wait(20) == 0


def test_a_solo_worker_with_beat_sends_and_runs(sqlite_url: str, run: Start, tmp_path: Path) -> None:
    write_shop(tmp_path, sqlite_url)
    worker = run("worker", "-B", "-P", "solo")
    wait_until(lambda: (tmp_path / "ticks").exists(), 20)
    worker.terminate()
    assert worker.wait(20) == 0


def test_beat_says_what_runs_next_in_local_time_and_utc(sqlite_url: str, run: Start, tmp_path: Path) -> None:
    write_shop(tmp_path, sqlite_url)
    beat = run(
        "beat", "--pidfile", "beat.pid", "-s", "file", "--max-interval", "5", "-S", "celery.beat:Scheduler"
    )
    wait_until(lambda: "tick: " in (tmp_path / "log0").read_text(), 15)
    assert (tmp_path / "beat.pid").read_text() == f"{beat.pid}\n"
    beat.terminate()
    assert beat.wait(10) == 0
    text = (tmp_path / "log0").read_text()
    assert " UTC" in text and "--schedule is not needed" in text
    assert not (tmp_path / "beat.pid").exists()


def test_a_worker_whose_agent_is_killed_sends_on(redis_url: str, run: Start, tmp_path: Path) -> None:
    with write_shop(tmp_path, redis_url) as app:
        run("worker", "--beat", "-c", "1", "-l", "info")
        first = wait_until(lambda: leader(tmp_path), 20)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: leader(tmp_path) not in (0, first), 20)
        before = last_due(app)
        wait_until(lambda: last_due(app) > before + 1, 15)


@pytest.mark.slow
def test_a_leader_that_was_stopped_for_long_doubles_nothing(
    redis_url: str, run: Start, tmp_path: Path
) -> None:
    with write_shop(tmp_path, redis_url) as app:
        beats = {process.pid: process for process in (run("beat", "-l", "info") for _ in range(2))}
        first = wait_until(lambda: leader(tmp_path), 20)
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: leader(tmp_path) not in (0, first), 20)
        time.sleep(2)
        os.kill(first, signal.SIGCONT)
        time.sleep(3)
        for process in beats.values():
            process.terminate()
            assert process.wait(15) == 0
        assert max(Counter(sent_ids(app)).values()) == 1
        assert "standing by" in "".join(log.read_text() for log in tmp_path.glob("log*"))


# -- a worker that hears of no beat ----------------------------------------------------------


class Heard:
    """A watch that looks each second."""

    def __init__(self, app: Celery) -> None:
        self.now = 0.0
        self.watch = watch.BeatWatch(app)

    def look(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            self.watch.look(self.now)


@pytest.fixture
def watched(sqlite_url: str) -> Iterator[Celery]:
    with Celery("shop", broker=sqlite_url, set_as_current=False) as app:
        app.conf.beat_schedule = {"e": {"task": "t", "schedule": 1}}
        yield app


def test_a_worker_that_hears_of_no_beat_for_a_minute_says_so_once(
    watched: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(watched)
    heard.look(60)
    assert caplog.text == ""
    heard.look(200)
    assert caplog.text.count("1 beat entries are configured, and no beat was seen for 60 s") == 1


def test_a_worker_that_hears_of_a_beat_is_silent(watched: Celery, caplog: pytest.LogCaptureFixture) -> None:
    heard: Any = Heard(watched)
    watched.broker.lead(lead_of(watched), "there:1:2", 100)
    heard.look(300)
    assert caplog.text == ""


def test_a_lead_that_is_nobodys_is_taken_and_given_up(shop: Celery) -> None:
    broker = shop.broker
    assert broker.lead("x", "me", 60) == "me"
    assert broker.lead("x", "me", 60) == "me"
    with Celery("other", broker=shop.conf.broker_url, set_as_current=False) as other:
        assert other.broker.lead("x", "you", 60) != "you"
        broker.step_down("x", "me")
        assert wait_until(lambda: other.broker.lead("x", "you", 60) == "you")


def test_a_broker_that_is_not_there_is_an_operational_error() -> None:
    with Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False) as app:
        app.conf.broker_connection_timeout = 0.2
        with pytest.raises(OperationalError):
            app.broker.lead("x", "me", 5)


# -- brokers that die ------------------------------------------------------------------------


def test_beat_outlives_its_broker_and_catches_up_once(
    private_redis: RedisServer, run: Start, tmp_path: Path
) -> None:
    with write_shop(tmp_path, private_redis.url()) as app:
        beat = run("beat", "-l", "info")
        wait_until(lambda: app.broker.size("celery") >= 2, 15)
        private_redis.kill()
        away = time.time()
        time.sleep(4)  # so many ticks are missed
        back = time.time()
        private_redis.start()  # with nothing of what was in it
        wait_until(lambda: app.broker.size("celery") >= 3, 15)
        assert beat.poll() is None
        log = tmp_path / "log0"
        wait_until(lambda: "the broker is back" in log.read_text())
        assert log.read_text().count("waiting for the broker") == 1
        last, ids = last_due(app), sent_ids(app)
        assert max(Counter(ids).values()) == 1
        made_up = [
            due for second in range(-1, 30)
            if away < (due := round(last - second, 6)) < back and run_id(lead_of(app), "tick", due) in ids
        ]  # fmt: skip
        assert len(made_up) <= 1


# -- options that can't work -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--max-interval 0", "--max-interval"),
        ("-D", "-D/--detach is not part of this version"),
        ("--enable-remote-control", "is not part of this version"),
        ("-S nowhere:Class", "No module named 'nowhere'"),
        ("-l loud", "'loud' is not one of DEBUG, INFO"),
    ],
)
def test_an_option_that_can_not_work_is_refused(
    sqlite_url: str, run: Start, tmp_path: Path, words: str, error: str
) -> None:
    write_shop(tmp_path, sqlite_url)
    assert run("beat", *words.split()).wait(20) in (2, 78)
    assert error in (tmp_path / "log0").read_text()


def test_a_worker_refuses_a_scheduler_that_can_not_work(sqlite_url: str, run: Start, tmp_path: Path) -> None:
    write_shop(tmp_path, sqlite_url)
    assert run("worker", "-B", "--scheduler", "nowhere:Class").wait(20) == 78
    assert "No module named 'nowhere'" in (tmp_path / "log0").read_text()
