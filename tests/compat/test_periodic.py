"""What Celery's beat has: entries, schedules, and the ways to say them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from minicelery.beat import Beat, BeatLazyFunc
from minicelery.cli import main
from minicelery.message import Message, decode_body
from minicelery.schedules import crontab, schedule, solar
from tests.beat.conftest import NOON, Travel, live, make_app
from tests.compat.stage import EVERYTHING, each

_numbers = itertools.count()


@pytest.fixture
def app() -> Iterator[Celery]:
    with make_app(f"memory://periodic{next(_numbers)}") as app:
        yield app


def sent_by(app: Celery, seconds: float, clock: Travel | None = None) -> list[Message]:
    """What a beat sends within so many seconds."""
    clock = clock or Travel()
    live(Beat(app, clock=clock), clock, seconds)
    found: list[Message] = []
    for queue in ("celery", "slow"):
        consumer = app.broker.consumer([queue], "test", None)
        while batch := consumer.swap([], 64, 0):
            found += [delivery.message for delivery in batch]
        consumer.close()
    return found


def arguments_of(message: Message) -> Any:
    return decode_body(message, EVERYTHING)[:2]


# -- entries -------------------------------------------------------------------------------------------


@each({
    "task": ({}, lambda message: message.task, "t.b"),
    "args": ({"args": (1, 2)}, lambda message: arguments_of(message)[0], [1, 2]),
    "kwargs": ({"kwargs": {"x": 1}}, lambda message: arguments_of(message)[1], {"x": 1}),
    "options": ({"options": {"queue": "slow"}}, lambda message: message.queue, "slow"),
})  # fmt: skip
def test_a_field_of_an_entry_is_in_what_is_sent(app: Celery, case: Any) -> None:
    fields, told, expected = case
    entry = {"task": "t.b", "schedule": 10, "args": (1,), **fields}
    if "kwargs" in fields:
        del entry["args"]
    app.conf.beat_schedule = {"e": entry}
    [message] = sent_by(app, 15)
    assert told(message) == expected


@each({
    "schedule (seconds)": (10, 10), "schedule (timedelta)": (timedelta(seconds=10), 10),
    "schedule": (schedule(10), 10), "crontab": (crontab(), 60),
    "crontab.from_string": (crontab.from_string("*/2 * * * *"), 120),
})  # fmt: skip
def test_an_entry_runs_by_its_schedule(app: Celery, case: Any) -> None:
    timing, every = case
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": timing}}
    assert len(sent_by(app, every + 1)) == 1


def test_an_entry_runs_by_the_sun(app: Celery) -> None:
    pytest.importorskip("ephem")
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": solar("sunset", 40.4, -3.7)}}
    assert len(sent_by(app, 12 * 3600)) == 1


def test_a_relative_entry_runs_at_round_times(app: Celery) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": 60, "relative": True}}
    clock = Travel(NOON + 45)
    beat = Beat(app, clock=clock)
    live(beat, clock, 20)
    assert beat.entries["e"].last == NOON + 60


def test_a_lazy_argument_is_computed_at_each_run(app: Celery) -> None:
    count = itertools.count()
    app.conf.beat_schedule = {
        "e": {"task": "t.b", "schedule": 10, "args": (BeatLazyFunc(lambda: next(count)),)}
    }
    assert [arguments_of(message)[0] for message in sent_by(app, 25)] == [[0], [1]]


def test_a_first_run_is_never_missed(app: Celery) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": crontab(minute=0, hour=11)}}
    assert sent_by(app, 3600) == []


# -- ways to say them ----------------------------------------------------------------------------------


@each({
    "a signature": lambda app: app.add_periodic_task(10, app.tasks["t.b"].s(1), name="n"),
    "a task with args and kwargs": lambda app: app.add_periodic_task(10, app.tasks["t.b"], (1,), {"y": 2}),
    "options": lambda app: app.add_periodic_task(10, app.tasks["t.b"].s(1), queue="slow", expires=60),
})  # fmt: skip
def test_add_periodic_task_takes(app: Celery, case: Any) -> None:
    case(app)
    [message] = sent_by(app, 15)
    assert message.task == "t.b" and arguments_of(message)[0] == [1]


def test_an_entry_without_a_name_has_its_signatures_text(app: Celery) -> None:
    sig = app.tasks["t.b"].s(1)
    assert app.add_periodic_task(10, sig) == repr(sig)


@each({"on_after_configure": "on_after_configure", "on_after_finalize": "on_after_finalize"})
def test_entries_are_added_when_the_app_is(app: Celery, case: str) -> None:
    def set_up(sender: Any, **_: Any) -> None:
        sender.add_periodic_task(10, sender.tasks["t.a"].s(), name="added")

    getattr(app, case).connect(set_up, weak=False)
    app.finalize()
    assert len(sent_by(app, 15)) == 1


@each({
    "timezone": lambda app: setattr(app.conf, "timezone", "Europe/Madrid"),
    "update": lambda app: app.conf.update(enable_utc=True),
    "beat_schedule": lambda app: setattr(app.conf, "beat_schedule", {}),
})  # fmt: skip
def test_entries_added_after_the_settings_were_used_count(app: Celery, case: Any) -> None:
    case(app)
    told: list[Any] = []

    @app.on_after_configure.connect
    def set_up(sender: Any, **_: Any) -> None:
        told.append(sender)
        sender.add_periodic_task(10, sender.tasks["t.a"].s(), name="added")

    app.finalize()
    assert len(sent_by(app, 15)) == 1
    assert told == [app]


def test_the_starting_deadline_skips_what_was_missed_for_longer(app: Celery) -> None:
    app.conf.beat_cron_starting_deadline = 600
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": crontab(minute=5)}}
    clock = Travel()
    beat = Beat(app, clock=clock)
    beat.turn()
    beat.close()
    clock.wait(3000)
    assert sent_by(app, 10, clock) == []


def test_the_longest_sleep_is_kept(app: Celery) -> None:
    app.conf.beat_max_loop_interval = 0.25
    assert Beat(app, clock=Travel()).turn() == 0.25


# -- the command ---------------------------------------------------------------------------------------


@each({
    "--schedule": ("beat --schedule file --help", ""), "--scheduler": ("beat -S nowhere:Class", "nowhere"),
    "--max-interval": ("beat --max-interval 0", "--max-interval"),
    "--detach": ("beat --detach", "service manager"), "--beat of a worker": ("worker --help", "--beat"),
})  # fmt: skip
def test_an_option_of_the_command_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: tuple[str, str]
) -> None:
    words, told = case
    (tmp_path / "beaten.py").write_text(
        "from minicelery import Celery\napp = Celery(broker='sqlite:///q.db')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # and away again
    main(["-A", "beaten", *words.split()])
    sys.modules.pop("beaten", None)
    found = "".join(capfd.readouterr())
    assert "No such option" not in found and "no such option" not in found and told in found


def test_last_runs_are_in_utc_and_aware(app: Celery) -> None:
    app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": 10}}
    clock = Travel()
    beat = Beat(app, clock=clock)
    live(beat, clock, 15)
    entry = beat.entries["e"]
    assert entry.last_run_at == datetime.fromtimestamp(NOON + 10, timezone.utc)
    assert entry.total_run_count == 1
