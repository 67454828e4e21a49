"""Schedulers that were written for Celery, and that minicelery's beat calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from minicelery import Celery
from minicelery.alias import beat as celery_beat
from minicelery.beat import Beat
from minicelery.beat.choosing import open_scheduler
from minicelery.exceptions import BrokerUnavailable, ImproperlyConfigured
from minicelery.schedules import crontab, schedstate, schedule
from tests.waiting import wait_until


class Table(celery_beat.Scheduler):
    """Has its entries from a table, as schedulers on a database do."""

    rows: dict[str, dict[str, Any]] = {}
    made: list[Table] = []
    ran: list[str] = []
    closed = 0
    refuse: Exception | None = None
    max_interval = 0.05

    def setup_schedule(self) -> None:
        self.made.append(self)
        self._seen: Any = None
        self._read()

    def _read(self) -> None:
        if self.rows != self._seen:
            self._seen = dict(self.rows)
            self.data = {name: self.Entry(name=name, app=self.app, **row) for name, row in self.rows.items()}

    @property
    def schedule(self) -> Any:
        self._read()
        return self.data

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        if self.refuse is not None:
            error, Table.refuse = self.refuse, None
            raise error
        self.ran.append(entry.name)
        return super().apply_async(entry, producer, advance, **kwargs)

    def close(self) -> None:
        super().close()
        Table.closed += 1


@pytest.fixture(autouse=True)
def empty() -> None:
    Table.rows, Table.made, Table.ran, Table.closed, Table.refuse = {}, [], [], 0, None


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Celery]:
    app = Celery("shop", broker=sqlite_url, set_as_current=False)

    @app.task(name="shop.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    yield app
    app.close()


PATH = f"{__name__}:Table"
SOON = {"task": "shop.add", "schedule": 0.05, "args": (1,)}


def until_sent(beat: Beat, count: int) -> None:
    end = time.monotonic() + 20
    while len(Table.ran) < count:
        assert time.monotonic() < end
        time.sleep(min(beat.turn(), 0.02))


def test_what_is_due_is_sent_while_its_beat_leads(app: Celery) -> None:
    Table.rows = {"often": SOON}
    beat = Beat(app, scheduler=PATH)
    assert Table.made == []  # which waits until it leads
    until_sent(beat, 3)
    assert len(Table.made) == 1
    assert app.broker.size("celery") == 3
    (message,) = app.broker.consumer(["celery"], "me", None).swap([], 1, 0)
    assert message.message.headers["celery_beat_task"] is True
    beat.close()
    assert Table.closed == 1


def test_another_beat_goes_on_when_the_first_one_ends(app: Celery) -> None:
    Table.rows = {"often": SOON}
    first, second = Beat(app, scheduler=PATH), Beat(app, scheduler=PATH)
    until_sent(first, 1)
    second.turn()
    assert len(Table.made) == 1
    first.close()
    count = len(Table.ran)
    until_sent(second, count + 2)
    assert len(Table.made) == 2
    second.close()


def test_entries_that_change_are_taken_up_and_a_bad_one_keeps_no_other(app: Celery) -> None:
    class Broken(schedule):
        def is_due(self, last_run_at: Any) -> Any:
            raise ZeroDivisionError

    Table.rows = {"bad": {**SOON, "schedule": Broken(1)}}
    beat = Beat(app, scheduler=PATH)
    beat.turn()
    Table.rows = {**Table.rows, "often": SOON}
    until_sent(beat, 2)
    Table.rows = {}
    beat.turn()
    count = len(Table.ran)
    for _ in range(10):
        time.sleep(min(beat.turn(), 0.05))
    assert len(Table.ran) == count and set(Table.ran) == {"often"}
    beat.close()


def test_a_run_is_due_still_after_the_broker_was_away(app: Celery) -> None:
    Table.rows = {
        "once": {**SOON, "schedule": 3600, "last_run_at": datetime.now(timezone.utc) - timedelta(days=1)}
    }
    beat = Beat(app, scheduler=PATH)
    Table.refuse = BrokerUnavailable("gone")
    until_sent(beat, 1)
    assert Table.refuse is None and app.broker.size("celery") == 1
    beat.close()


def test_a_scheduler_that_fails_is_called_again(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Table):
        left = 1

        def tick(self) -> float:
            if Failing.left:
                Failing.left -= 1
                raise ZeroDivisionError("not now")
            return super().tick()

    Table.rows = {"often": SOON}
    beat = Beat(app, scheduler=Failing)
    until_sent(beat, 1)
    assert "Failing has failed, and is called again in 1 s" in caplog.text
    beat.close()


def test_the_programs_entries_reach_it_and_so_do_lazy_arguments(app: Celery) -> None:
    app.conf.beat_schedule = {
        "lazy": {"task": "shop.add", "schedule": 0.05, "args": (celery_beat.BeatLazyFunc(lambda: 7),)}
    }
    app.add_periodic_task(crontab(minute=5), app.tasks["shop.add"].s(1), name="added")
    beat = Beat(app, scheduler=celery_beat.Scheduler)
    found: list[Any] = []

    class Seen(celery_beat.Scheduler):
        max_interval = 0.05

        def apply_async(self, entry: Any, **kwargs: Any) -> Any:
            found.append(entry)
            return super().apply_async(entry, **kwargs)

    beat = Beat(app, scheduler=Seen)
    wait_until(lambda: (time.sleep(min(beat.turn(), 0.02)), found)[1], 20)
    theirs: Any = beat.scheduler
    assert sorted(theirs.theirs.schedule) == ["added", "lazy"]
    consumer = app.broker.consumer(["celery"], "me", None)
    (delivery,) = consumer.swap([], 1, 1)
    assert delivery.message.body.startswith(b"[[7], {}")
    beat.close()


def test_a_persistent_one_remembers_in_its_file(app: Celery, tmp_path: Path) -> None:
    app.conf.beat_schedule = {"daily": {"task": "shop.add", "schedule": crontab(hour=3), "args": (1,)}}
    file = str(tmp_path / "schedule")
    first = celery_beat.PersistentScheduler(app, schedule_filename=file)
    ran = first.reserve(first.schedule["daily"])
    first.close()
    second = celery_beat.PersistentScheduler(app, schedule_filename=file)
    again = second.schedule["daily"]
    assert (again.last_run_at, again.total_run_count) == (ran.last_run_at, 1)
    second.close()
    Path(file).write_bytes(b"torn")
    assert list(celery_beat.PersistentScheduler(app, schedule_filename=file).schedule) == ["daily"]


def test_an_entry_of_celerys_has_what_schedulers_ask_of_it(app: Celery) -> None:
    entry = celery_beat.ScheduleEntry(name="a", task="shop.add", schedule=1000, args=(1,), app=app)
    assert entry.is_due() == schedstate(False, pytest.approx(1000, abs=500))
    later = next(entry)
    assert (later.total_run_count, later.last_run_at >= entry.last_run_at) == (1, True)
    assert later == entry and entry.editable_fields_equal(later)
    other = celery_beat.ScheduleEntry(name="a", task="shop.add", schedule=20, app=app)
    assert other != entry
    entry.update(other)
    assert entry == other and dict(entry)["task"] == "shop.add"
    assert entry.__reduce__()[0] is celery_beat.ScheduleEntry


def test_a_crontab_keeps_the_zone_that_a_subclass_has_set_before() -> None:
    class InZone(crontab):
        """As django-celery-beat's is made: it gives its zone to nobody."""

        def __init__(self, minute: str, hour: str, tz: Any) -> None:
            self.tz = tz
            super().__init__(minute, hour, nowfun=lambda: NOON.astimezone(self.tz))

    NOON = datetime(2026, 5, 13, 12, tzinfo=timezone.utc)  # noqa: N806
    tokyo = InZone("0", "22", ZoneInfo("Asia/Tokyo"))
    assert tokyo.is_due(NOON - timedelta(minutes=1)) == schedstate(False, 3600.0)


def test_a_beat_in_a_thread_ends_when_it_is_told(app: Celery) -> None:
    Table.rows = {"often": SOON}
    beat = Beat(app, scheduler=Table, embedded=True)
    thread = threading.Thread(target=beat.run)
    thread.start()
    wait_until(lambda: Table.ran, 20)
    beat.stop()
    thread.join(20)
    assert not thread.is_alive() and Table.closed == 1


def test_a_class_that_builds_on_the_installed_celery_is_refused(app: Celery) -> None:
    import celery.beat

    class Theirs(celery.beat.Scheduler):  # type: ignore[misc]
        """Not ours."""

    with pytest.raises(
        ImproperlyConfigured, match=r"builds on the installed Celery; call install_as_celery\(force"
    ):
        open_scheduler(app, Theirs)
