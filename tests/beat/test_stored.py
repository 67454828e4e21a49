"""The stored schedule: changed while beats run, from any process, on every broker."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from minicelery.beat import BadEntry, BeatLazyFunc, Scheduler, StoredSchedule, UnknownEntry
from minicelery.broker.archives import open_archive
from minicelery.exceptions import BrokerUnavailable, OperationalError
from minicelery.schedules import BaseSchedule, crontab, maybe_schedule, schedule, solar
from tests.beat.conftest import NOON, Sent, Travel, live, make_app, start
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MakeApp = Callable[[], Celery]


@pytest.fixture(params=["memory", "sqlite", "redis", "rabbit"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeApp]:
    """Opens one more app on the same broker, as another process would."""
    if request.param == "memory":
        url = f"memory://{tmp_path.name}"
    else:
        url = request.getfixturevalue(f"{request.param}_url")
    opened: list[Celery] = []

    def make() -> Celery:
        opened.append(make_app(url))
        return opened[-1]

    yield make
    for app in opened:
        app.close()


def by_clock(app: Celery, clock: Travel) -> StoredSchedule:
    """The schedule of the app, in time that the test moves."""
    app.schedule._now = clock.now
    return app.schedule


def put(app: Celery, name: str, document: Any) -> None:
    """Write a document as anybody may who reaches the broker."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    archive = open_archive(app.broker, "schedule.t@celery")
    assert archive.swap(name, archive.get(name), text)


# -- what is stored ----------------------------------------------------------------------------


def test_what_one_process_stores_another_lists(another: MakeApp) -> None:
    mine, yours = another(), another()
    timing = crontab(minute=30, hour=4, day_of_week="mon", tz="Europe/Madrid")
    mine.schedule.add("é", "t.b", timing, [1], {"y": 2}, options={"queue": "slow"}, catch_up="skip")
    before = timing.next(datetime.now(timezone.utc))
    found = yours.schedule.entries()["é"]
    assert (found.task, found.schedule, found.args, found.kwargs) == ("t.b", timing, [1], {"y": 2})
    assert (found.options, found.catch_up, found.enabled, found.source) == (
        {"queue": "slow"}, "skip", True, "stored",
    )  # fmt: skip
    assert (found.last_run, found.runs) == (None, 0)
    assert found.next_run in (before, timing.next(datetime.now(timezone.utc)))
    yours.schedule.disable("é")
    assert (mine.schedule.entries()["é"].enabled, mine.schedule.entries()["é"].next_run) == (False, None)
    mine.schedule.remove("é")
    assert yours.schedule.entries() == {}


@pytest.mark.parametrize(
    "timing",
    [
        30, 0.5, timedelta(hours=1), schedule(60, relative=True), crontab(minute="*/5", day_or=True),
        crontab(minute=[1, 2], tz="America/Mexico_City"),
    ],
    ids=repr,
)  # fmt: skip
def test_every_kind_of_schedule_comes_back_as_it_was(app: Celery, timing: Any) -> None:
    app.schedule.add("e", "t.a", timing)
    found = app.schedule.entries()["e"].schedule
    assert found == maybe_schedule(timing)
    assert getattr(found, "relative", False) == getattr(timing, "relative", False)


def test_the_sun_comes_back_as_it_was(app: Celery) -> None:
    pytest.importorskip("ephem")
    app.schedule.add("e", "t.a", solar("sunset", 40.4, -3.7))
    assert app.schedule.entries()["e"].schedule == solar("sunset", 40.4, -3.7)


def test_a_change_is_sent_by_a_beat_that_runs(another: MakeApp, clock: Travel, sent: Sent) -> None:
    beat = start(another(), clock)
    live(beat, clock, 1)
    stored = by_clock(another(), clock)
    stored.add("e", "t.b", 10, [1])
    wait_until(lambda: beat.scheduler.changed())
    live(beat, clock, 16)
    assert len(sent.times("t.b")) == 1
    stored.add("e", "t.b", 2, [1], replace=True)
    wait_until(lambda: beat.scheduler.changed())
    live(beat, clock, 8)
    ran = len(sent.times("t.b"))
    assert ran >= 3
    stored.disable("e")
    wait_until(lambda: beat.scheduler.changed())
    live(beat, clock, 4)
    count = len(sent.times("t.b"))
    live(beat, clock, 20)
    assert len(sent.times("t.b")) == count
    beat._ledger.flush()
    found = stored.entries()["e"]
    assert found.runs == count
    assert found.last_run is not None
    assert round(found.last_run.timestamp() - NOON) <= sent.times("t.b")[-1]


def test_a_change_is_taken_up_within_four_seconds(app: Celery, clock: Travel, sent: Sent) -> None:
    beat = start(app, clock)
    live(beat, clock, 100)
    by_clock(app, clock).add("e", "t.a", 60)
    live(beat, clock, 4)
    assert list(beat.entries) == ["e"]


def test_what_was_changed_while_no_beat_ran_is_there_afterwards(
    another: MakeApp, clock: Travel, sent: Sent
) -> None:
    with another() as app:
        stored = by_clock(app, clock)
        stored.add("kept", "t.a", 10)
        stored.add("gone", "t.b", 10, [1])
        stored.remove("gone")
    clock.wait(40 * 86400)
    live(start(another(), clock), clock, 15)
    assert [name for name, _ in sent.runs] == ["t.a"]


# -- disabled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs_on", [True, False], ids=["the same beat", "a new beat"])
@pytest.mark.parametrize("source", ["program", "stored"])
@pytest.mark.parametrize("timing", [10, crontab(minute="*")], ids=repr)
def test_an_entry_does_not_make_up_for_the_time_it_was_disabled(
    claiming_app: Celery, clock: Travel, sent: Sent, source: str, timing: Any, runs_on: bool
) -> None:
    app = claiming_app
    stored = by_clock(app, clock)
    if source == "stored":
        stored.add("e", "t.a", timing)
    else:
        app.conf.beat_schedule = {"e": {"task": "t.a", "schedule": timing}}
    beat = start(app, clock)
    live(beat, clock, 65)
    before = len(sent.runs)
    stored.disable("e")
    live(beat, clock, 5)
    if not runs_on:
        beat.close()
        clock.wait(1000)
        beat = start(app, clock)
    live(beat, clock, 1000)
    assert len(sent.runs) == before
    stored.enable("e")
    due = maybe_schedule(timing, app=app)
    at, expected = datetime.fromtimestamp(clock.shown, timezone.utc), []
    live(beat, clock, 66)
    while (at := due.next(at)).timestamp() <= clock.shown:
        expected.append(at.timestamp())
    assert expected
    assert [sent_at for _, sent_at in sent.runs[before:]] == pytest.approx(expected, abs=3.1)
    beat._ledger.flush()
    assert stored.entries()["e"].runs == len(sent.runs)


def test_what_is_enabled_while_no_beat_runs_makes_up_for_nothing_before(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    stored = by_clock(app, clock)
    stored.add("e", "t.a", 100)
    beat = start(app, clock)
    live(beat, clock, 150)
    stored.disable("e")
    beat.close()
    clock.wait(1000)
    stored.enable("e")
    clock.wait(30)
    live(start(app, clock), clock, 80)
    assert sent.times() == [100, 1250]


def test_what_is_enabled_while_no_beat_runs_makes_up_for_what_is_missed_since(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    stored = by_clock(app, clock)
    stored.add("e", "t.a", 100)
    beat = start(app, clock)
    live(beat, clock, 150)
    stored.disable("e")
    beat.close()
    stored.enable("e")
    clock.wait(450)  # due were 250, 350, 450, 550
    live(start(app, clock), clock, 1)
    assert sent.times() == [100, 600]


def test_an_entry_that_comes_again_after_it_was_removed_begins_anew(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    stored = by_clock(app, clock)
    stored.add("e", "t.a", 100)
    beat = start(app, clock)
    live(beat, clock, 150)
    stored.remove("e")
    beat.close()
    clock.wait(1000)
    stored.add("e", "t.a", 100)
    live(start(app, clock), clock, 99)
    assert sent.times() == [100]


def test_an_entry_that_is_changed_goes_on_from_its_last_run(app: Celery, clock: Travel, sent: Sent) -> None:
    stored = by_clock(app, clock)
    stored.add("e", "t.a", 100)
    beat = start(app, clock)
    live(beat, clock, 150)
    stored.add("e", "t.a", 200, [1], replace=True)
    live(beat, clock, 160)
    assert sent.times() == [100, 300]


def test_a_beat_that_stood_by_goes_on_from_where_the_leader_was_with_what_was_added_meanwhile(
    app: Celery, clock: Travel, sent: Sent
) -> None:
    first, second = start(app, clock), start(app, clock)
    live(first, clock, 1)
    live(second, clock, 1)
    by_clock(app, clock).add("e", "t.a", 100, catch_up="once")
    live(first, clock, 110)
    first.close()
    clock.wait(100)
    live(second, clock, 10)
    assert len(sent.times()) == 2 and sent.times()[1] < 215
    assert second.entries["e"].runs == 2


# -- the program's -------------------------------------------------------------------------------


def test_an_entry_of_the_program_is_disabled_and_enabled_and_nothing_else(another: MakeApp) -> None:
    mine, yours = another(), another()
    for app in (mine, yours):
        app.conf.beat_schedule = {"p": {"task": "t.a", "schedule": 60}}
    mine.schedule.disable("p")
    found = yours.schedule.entries()["p"]
    assert (found.source, found.enabled) == ("program", False)
    with pytest.raises(
        BadEntry, match=r"'p' is the program's, .*; take it out there, or disable it: app.sched"
    ):
        mine.schedule.remove("p")
    with pytest.raises(BadEntry, match=r"'p' is the program's, .*; change it there, or choose another name"):
        mine.schedule.add("p", "t.a", 5, replace=True)
    yours.schedule.enable("p")
    assert mine.schedule.entries()["p"].enabled


def test_what_is_said_of_an_entry_that_the_program_has_no_more_can_be_removed(app: Celery) -> None:
    app.conf.beat_schedule = {"p": {"task": "t.a", "schedule": 60}}
    app.schedule.disable("p")
    app.conf.beat_schedule = {}
    assert app.schedule.entries() == {}
    app.schedule.remove("p")
    app.conf.beat_schedule = {"p": {"task": "t.a", "schedule": 60}}
    assert app.schedule.entries()["p"].enabled


def test_an_entry_that_the_program_has_too_is_the_programs(app: Celery) -> None:
    app.schedule.add("p", "t.b", 60, [1], enabled=False)
    app.conf.beat_schedule = {"p": {"task": "t.a", "schedule": 60}}
    found = app.schedule.entries()["p"]
    assert (found.task, found.source, found.enabled) == ("t.a", "program", False)
    app.schedule.remove("p")
    assert app.schedule.entries()["p"].enabled


# -- at once -------------------------------------------------------------------------------------


def test_two_who_change_at_once_lose_nothing(another: MakeApp) -> None:
    apps = [another(), another()]

    def change(number: int) -> None:
        for turn in range(3):
            apps[number].schedule.add(f"e{number}{turn}", "t.a", 60)
            apps[number].schedule.disable(f"e{number}{turn}")

    threads = [threading.Thread(target=change, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = another().schedule.entries()
    assert sorted(found) == ["e00", "e01", "e02", "e10", "e11", "e12"]
    assert not any(entry.enabled for entry in found.values())


def test_of_two_who_add_the_same_name_one_is_told(app: Celery) -> None:
    app.schedule.add("e", "t.a", 60)
    with pytest.raises(BadEntry, match=r"entry 'e' is stored already; .* replace it with replace=True"):
        app.schedule.add("e", "t.a", 61)
    assert app.schedule.entries()["e"].schedule == schedule(60)


def test_a_change_that_changes_nothing_writes_nothing(app: Celery) -> None:
    app.schedule.add("e", "t.a", 60, [1])
    before = app.schedule.version()
    app.schedule.add("e", "t.a", 60, [1], replace=True)
    app.schedule.enable("e")
    assert app.schedule.version() == before


def test_a_replaced_entry_is_the_one_that_is_disabled(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.schedule.add("e", "t.a", 60)
    archive = app.schedule._archive()
    swap, pending = type(archive).swap, [True]

    def after_somebody_else(self: Any, key: str, old: bytes | None, new: bytes | None) -> bool:
        if pending and pending.pop():
            app.schedule.add("e", "t.a", 120, replace=True)
        return swap(self, key, old, new)

    monkeypatch.setattr(type(archive), "swap", after_somebody_else)
    app.schedule.disable("e")
    found = app.schedule.entries()["e"]
    assert (found.schedule, found.enabled) == (schedule(120), False)


# -- now -----------------------------------------------------------------------------------------


def test_an_entry_is_sent_at_once_where_somebody_says_so(app: Celery, sent: Sent) -> None:
    app.schedule.add("e", "t.b", 3600, [1], {"y": 2}, options={"queue": "slow"}, enabled=False)
    result = app.schedule.run("e")
    (delivery,) = app.broker.consumer(["slow"], "c", None).swap([], 1, 0)
    assert (delivery.message.id, delivery.message.task) == (result.id, "t.b")
    assert app.schedule.entries()["e"].runs == 0


def test_an_entry_of_a_task_that_is_not_known_here_is_sent_too(app: Celery, sent: Sent) -> None:
    app.schedule.add("e", "t.elsewhere", 3600, [1])
    app.conf.beat_schedule = {"p": {"task": "t.a", "schedule": 60, "args": [BeatLazyFunc(lambda: 7)]}}
    app.schedule.run("e")
    app.schedule.run("p")
    assert [name for name, _ in sent.runs] == ["t.elsewhere", "t.a"]


# -- what can't be -------------------------------------------------------------------------------


class OfMine(BaseSchedule):
    def next(self, after: datetime) -> datetime:
        return after + timedelta(days=1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "the name '' of an entry; accepted: text of 1 to 1000 characters"),
        ({"name": 3}, "the name 3 of an entry"),
        ({"name": "half \ud83d"}, "the name 'half .*' of an entry"),
        ({"task": 3}, "entry 'e': task=3; accepted: the name of a task"),
        ({"task": "celery.chain"}, "entry 'e': task='celery.chain'; accepted: a single task"),
        ({"schedule": -5}, "entry 'e': schedule=-5: .*too short"),
        ({"schedule": "0 4 * * *"}, r"did you mean crontab.from_string\('0 4 \* \* \*'\)"),
        ({"schedule": None}, "entry 'e': schedule=None; accepted: a number of seconds"),
        (
            {"schedule": OfMine()},
            "entry 'e': schedule: .* is of OfMine; what is stored is a schedule, crontab",
        ),
        (
            {"args": [{1, 2}]},
            r"entry 'e': args\[0\]=\{1, 2\} can't be stored, it is a set; accepted: what JSON has",
        ),
        ({"args": "ab"}, "entry 'e': args='ab' of t.a: expected a list or tuple"),
        ({"args": [BeatLazyFunc(dict)]}, r"entry 'e': args\[0\]=.*can't be stored, it is a BeatLazyFunc"),
        ({"kwargs": {"k": {"l": float("nan")}}}, r"entry 'e': kwargs\['k'\]\['l'\]=nan can't be stored"),
        ({"kwargs": {"k": {3: 4}}}, r"entry 'e': kwargs\['k'\] has the key 3; accepted: text"),
        ({"args": [10**5000]}, "entry 'e': can't be stored: "),
        ({"args": ["x" * 200_000]}, "entry 'e': has 20.... bytes as JSON; accepted: at most 100000"),
        ({"options": {"priority": 11}}, "entry 'e': priority=11 of t.a"),
        ({"options": {"expires": datetime(2030, 1, 1)}}, r"options\['expires'\]=.* it is a datetime"),
        ({"options": {"task_id": "x"}}, "entry 'e': options: task_id='x'; accepted: none"),
        ({"catch_up": "all"}, "entry 'e': catch_up='all'; accepted: 'once' or 'skip'"),
        ({"task": "t.b"}, r"entry 'e': t.b\(x.*: missing a required argument: 'x'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_can_not_be_sent_or_stored_is_refused_and_named(
    app: Celery, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadEntry, match=said):
        app.schedule.add(**{"name": "e", "task": "t.a", "schedule": 60, **fields})
    assert app.schedule.entries() == {}


def test_an_expiry_as_a_timedelta_is_stored_in_seconds(app: Celery) -> None:
    app.schedule.add("e", "t.a", 60, options={"expires": timedelta(minutes=2)})
    assert app.schedule.entries()["e"].options == {"expires": 120.0}


@pytest.mark.parametrize("change", ["remove", "enable", "disable", "run"])
def test_an_unknown_name_is_told_with_one_that_is_near(app: Celery, change: str) -> None:
    app.schedule.add("nightly tidy", "t.a", 60)
    with pytest.raises(UnknownEntry, match="no entry is named 'nigtly tidy'; did you mean 'nightly tidy'"):
        getattr(app.schedule, change)("nigtly tidy")


HOSTILE = {
    "no json": b"\xff\xfe{",
    "pickle": b"cos\nsystem\n(S'touch /tmp/x'\ntR.",
    "a list": [1, 2],
    "deep": b"[" * 50_000,
    "too large": b'{"task": "' + b"x" * 200_000 + b'"}',
    "unknown field": {"task": "t.a", "schedule": {"type": "interval", "seconds": 60}, "import": "os"},
    "no schedule": {"task": "t.a"},
    "another type": {"task": "t.a", "schedule": {"type": "os.system"}},
    "an argument": {"task": "t.a", "schedule": {"type": "interval", "seconds": 60, "nowfun": "os.getcwd"}},
    "an app": {"task": "t.a", "schedule": {"type": "interval", "seconds": 60, "app": "x"}},
    "endless": {"task": "t.a", "schedule": {"type": "interval", "seconds": 1e300}},
    "a zone": {"task": "t.a", "schedule": {"type": "interval", "seconds": 60, "tz": "../../etc/passwd"}},
    "never": {"task": "t.a", "schedule": {"type": "crontab", "line": "0 0 30 2 *"}},
    "constant": b'{"task": "t.a", "schedule": {"type": "interval", "seconds": NaN}}',
    "task": {"task": ["t.a"], "schedule": {"type": "interval", "seconds": 60}},
    "args": {"task": "t.a", "schedule": {"type": "interval", "seconds": 60}, "args": {"a": 1}},
    "options": {"task": "t.a", "schedule": {"type": "interval", "seconds": 60}, "options": [1]},
    "enabled": {"task": "t.a", "schedule": {"type": "interval", "seconds": 60}, "enabled": "yes"},
    "since": {"task": "t.a", "schedule": {"type": "interval", "seconds": 60}, "since": -1},
}


def test_hostile_documents_are_named_and_left_out_and_the_others_go_on(
    another: MakeApp, clock: Travel, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    app = another()
    # Each takes some tenths of a second on RabbitMQ.
    hostile = dict(list(HOSTILE.items())[: 4 if app.broker.url.startswith("amqp") else None])
    by_clock(app, clock).add("good", "t.a", 10)
    for name, document in hostile.items():
        put(app, name, document)
    with caplog.at_level(logging.WARNING):
        beat = start(app, clock)
        live(beat, clock, 35)
    assert len(sent.times()) == 3 and list(beat.entries) == ["good"]
    assert {name: caplog.text.count(f"the stored entry {name!r}") for name in hostile} == dict.fromkeys(
        hostile, 1
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert list(app.schedule.entries()) == ["good"]
    assert all(f"the stored entry {name!r}" in caplog.text for name in hostile)
    for name in ("no json", "deep"):
        app.schedule.remove(name)
    assert len(app.schedule.overview()[1]) == len(hostile) - 2


def test_a_corrupt_document_can_be_replaced_and_not_enabled(app: Celery) -> None:
    put(app, "e", b"{")
    with pytest.raises(BadEntry, match="the stored entry 'e'"):
        app.schedule.enable("e")
    app.schedule.add("e", "t.a", 60)
    assert app.schedule.entries()["e"].enabled


# -- a broker that is away -----------------------------------------------------------------------


def test_nothing_is_sent_before_it_is_known_what_is_stored(
    app: Celery, clock: Travel, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.conf.beat_schedule = {"p": {"task": "t.a", "schedule": 10}}
    by_clock(app, clock).disable("p")
    app.schedule.add("e", "t.b", 10, [1])
    follow = StoredSchedule.follow

    def away(self: StoredSchedule) -> Any:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(StoredSchedule, "follow", away)
    beat = start(app, clock)
    live(beat, clock, 60)
    assert sent.runs == []
    monkeypatch.setattr(StoredSchedule, "follow", follow)
    live(beat, clock, 20)
    assert sent.times("t.b") and not sent.times("t.a")


def test_a_change_while_the_broker_is_away_raises(redis_server: Any) -> None:
    with Celery("t", broker="redis://127.0.0.1:1/0", set_as_current=False) as app:
        for change in (lambda: app.schedule.add("e", "t.a", 60), lambda: app.schedule.entries()):
            with pytest.raises(OperationalError, match=r"127\.0\.0\.1:1"):
                change()


def test_a_running_beat_takes_up_what_another_process_changes(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        f"import minicelery\napp = minicelery.Celery('shop', broker={redis_url!r})\n"
    )
    beat = subprocess.Popen(
        [sys.executable, "-m", "minicelery", "-A", "shop", "beat", "-q"],
        cwd=tmp_path, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        with Celery("shop", broker=redis_url, set_as_current=False) as app:
            wait_until(lambda: app.broker.leader("shop@celery"), 25)
            app.schedule.add("e", "shop.tick", 0.2)
            wait_until(lambda: app.broker.size("celery") > 2, 15)
            app.schedule.disable("e")
            wait_until(lambda: app.schedule.entries()["e"].runs > 2, 15)
    finally:
        beat.terminate()
        beat.wait(15)


# -- schedulers ----------------------------------------------------------------------------------


def test_a_scheduler_of_the_programs_own_keeps_to_its_entries(app: Celery, clock: Travel) -> None:
    class Mine(Scheduler):
        def entries(self) -> dict[str, Any]:
            return {"mine": {"task": "t.a", "schedule": 60}}

        def changed(self) -> bool:
            return False

    class Both(Scheduler):
        def entries(self) -> dict[str, Any]:
            return {**super().entries(), "mine": {"task": "t.a", "schedule": 60}}

    by_clock(app, clock).add("stored", "t.a", 60)
    assert list(start(app, clock, scheduler=Mine).entries) == ["mine"]
    assert sorted(start(app, clock, scheduler=Both).entries) == ["mine", "stored"]


def test_to_ask_whether_ten_thousand_entries_have_changed_takes_no_time(app: Celery, clock: Travel) -> None:
    archive = open_archive(app.broker, "schedule.t@celery")
    document = {"task": "t.a", "schedule": {"type": "interval", "seconds": 3600.0, "relative": False}}
    for number in range(10_000):
        archive.swap(f"e{number}", None, json.dumps({**document, "args": [number]}).encode())
    scheduler = Scheduler(app)
    assert len(scheduler.entries()) == 10_000
    took = []
    for _ in range(20):
        began = time.process_time()
        assert not scheduler.changed()
        took.append(time.process_time() - began)
    assert min(took) < 0.003  # 0.1 % of 3 s
    put(app, "e5", {**document, "args": ["new"]})
    assert scheduler.changed()
    assert scheduler.entries()["e5"].args == ["new"]
