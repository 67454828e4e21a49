"""Entries: how they are written, and what is said of those that can't be."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest

from minicelery import Celery
from minicelery.beat import BadEntry, BeatLazyFunc
from minicelery.beat.choosing import open_scheduler
from minicelery.beat.entries import read_entry, run_id, unknown_tasks
from minicelery.beat.scheduler import Scheduler
from minicelery.exceptions import ImproperlyConfigured
from minicelery.schedules import crontab, schedule
from tests.beat.conftest import Travel, start


@pytest.mark.parametrize("timing", [30, 30.0, timedelta(seconds=30), schedule(30)])
def test_an_interval_is_a_number_a_timedelta_or_a_schedule(app: Celery, timing: Any) -> None:
    assert read_entry(app, "e", {"task": "t.a", "schedule": timing}).timing == schedule(30)


def test_an_entry_has_arguments_options_and_celerys_names(app: Celery) -> None:
    given = {
        "task": "t.b", "schedule": crontab(minute=0), "args": (1,), "kwargs": {"y": 2},
        "options": {"queue": "slow", "expires": 60, "priority": 3}, "relative": True,
    }  # fmt: skip
    entry = read_entry(app, "e", given)
    assert (entry.args, entry.kwargs, entry.options) == ((1,), {"y": 2}, given["options"])
    assert (entry.schedule, entry.total_run_count, entry.catch_up) == (crontab(minute=0), 0, "once")
    assert entry.timing.app is app


WRONG: list[tuple[Any, str]] = [
    (None, "is None; accepted: a mapping with task, schedule"),
    ({"schedule": 1}, "task=None; accepted: the name of a task"),
    ({"task": "t.a"}, "schedule is missing; accepted: a number of seconds"),
    ({"task": "t.a", "schedule": None}, "schedule=None; accepted: a number"),
    ({"task": "t.a", "schedule": 0}, "schedule=0: .*more than 0 s"),
    ({"task": "t.a", "schedule": "0 2 * * *"}, r"did you mean crontab.from_string\('0 2 \* \* \*'\)"),
    ({"task": "t.a", "schedul": 1}, "'schedul' is unknown, did you mean 'schedule'"),
    ({"task": "t.a", "schedule": 1, "catch_up": "all"}, "catch_up='all'; accepted: 'once' or 'skip'"),
    ({"task": "t.a", "schedule": 1, "args": 3}, "args=3 of t.a: expected a list or tuple"),
    ({"task": "t.a", "schedule": 1, "options": 3}, "options=3; accepted: a mapping"),
    ({"task": "t.a", "schedule": 1, "options": {"priorty": 3}}, "priorty=3 of t.a is not an option"),
    ({"task": "t.a", "schedule": 1, "options": {"task_id": "x"}}, "task_id='x'; accepted: none"),
    ({"task": "t.b", "schedule": 1}, r"t.b\(x"),
    ({"task": "celery.chain", "schedule": 1}, "a single task; have one call the composition"),
]


@pytest.mark.parametrize(("given", "words"), WRONG, ids=[words[:30] for _, words in WRONG])
def test_a_wrong_entry_is_named_with_its_field_and_what_is_accepted(
    app: Celery, given: Any, words: str
) -> None:
    with pytest.raises(BadEntry, match=words) as caught:
        read_entry(app, "nightly", given)
    assert str(caught.value).startswith("beat_schedule['nightly']: ")


def test_a_wrong_entry_leaves_the_others_going(app: Celery, clock: Travel) -> None:
    app.conf.beat_schedule = {"good": {"task": "t.a", "schedule": 1}, "bad": {"task": "t.a"}}
    beat = start(app, clock)
    assert list(beat.entries) == ["good"] and "'bad'" in str(beat.errors[0])


def test_a_task_that_is_not_registered_here_is_named_once_with_the_nearest_name(app: Celery) -> None:
    entries = [
        read_entry(app, f"e{n}", {"task": task, "schedule": 1})
        for n, task in enumerate(["t.aa", "t.a", "t.aa"])
    ]
    (line,) = unknown_tasks(app, entries)
    assert line == ("entry 'e0' and 1 more: no task named 't.aa' is registered here; did you mean 't.a'?")


def test_a_lazy_argument_is_computed_at_each_run(app: Celery) -> None:
    numbers = iter(range(9))
    entry = read_entry(
        app, "e", {"task": "t.a", "schedule": 1, "args": (BeatLazyFunc(lambda: next(numbers)),)}
    )
    assert [entry.arguments()[0] for _ in range(2)] == [[0], [1]]


def test_the_id_of_a_run_is_that_of_entry_and_due_time() -> None:
    id = run_id("app@q", "e", 1.5)
    assert id == run_id("app@q", "e", 1.5) and uuid.UUID(id).version == 5
    others = [run_id("other@q", "e", 1.5), run_id("app@q", "f", 1.5), run_id("app@q", "e", 1.500001)]
    assert len({id, *others}) == 4


# -- app.add_periodic_task -----------------------------------------------------------------


def test_entries_are_added_when_the_app_is_configured_as_celerys_documentation_does() -> None:
    app = Celery("t", set_as_current=False)

    @app.task
    def say(text: str) -> None: ...

    @app.on_after_configure.connect
    def set_up(sender: Celery, **_: Any) -> None:
        sender.add_periodic_task(10.0, say.s("hello"), name="add every 10")
        sender.add_periodic_task(crontab(hour=7, minute=30, day_of_week=1), say.s("Monday"), expires=10)

    found = app.periodic_entries()
    assert found["add every 10"]["args"] == ("hello",)
    monday = found["tests.beat.test_entries.say('Monday')"]
    assert monday["options"] == {"expires": 10}
    assert app.conf.beat_schedule == found


def test_entries_are_added_when_the_app_is_finalized_too(clock: Travel) -> None:
    with Celery("t", broker="memory://finalized", set_as_current=False) as app:

        @app.task(name="t.say")
        def say(text: str) -> None: ...

        @app.on_after_finalize.connect
        def set_up(sender: Celery, **_: Any) -> None:
            sender.add_periodic_task(10.0, say.s("hello"), name="hello")

        app.import_task_modules()
        assert list(start(app, clock).entries) == ["hello"]


def test_entries_that_were_added_outlive_a_schedule_assigned_later(app: Celery) -> None:
    assert app.add_periodic_task(1, app.tasks["t.a"].s(), name="added") == "added"
    app.conf.beat_schedule = {"written": {"task": "t.a", "schedule": 1}}
    assert set(app.periodic_entries()) == {"added", "written"}


def test_adding_does_not_configure_the_app() -> None:
    app = Celery("t", config_source="there.is.no.such.module", set_as_current=False)
    app.add_periodic_task(1, app.signature("x"), name="e")
    assert app._settings is None


def test_what_is_no_signature_is_refused(app: Celery) -> None:
    with pytest.raises(TypeError, match=r"add.s\(2, 2\); not the function"):
        app.add_periodic_task(1, lambda: None)


# -- schedulers ----------------------------------------------------------------------------


class Table(Scheduler):
    rows: dict[str, Any] = {}

    def entries(self) -> dict[str, Any]:
        return self.rows


@pytest.mark.parametrize(
    "name", ["celery.beat:PersistentScheduler", "celery.beat.Scheduler", "minicelery.beat:Scheduler"]
)
def test_celerys_own_schedulers_are_ours(app: Celery, name: str) -> None:
    assert type(open_scheduler(app, name)) is Scheduler


def test_a_scheduler_of_the_programs_own_says_what_the_entries_are(app: Celery, clock: Travel) -> None:
    Table.rows = {"row": {"task": "t.a", "schedule": 1}}
    assert list(start(app, clock, scheduler=f"{__name__}:Table").entries) == ["row"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:Class", "No module named 'nowhere'"),
        (f"{__name__}:WRONG", "expected a subclass of minicelery.beat.Scheduler"),
        (
            "django_celery_beat.schedulers:DatabaseScheduler",
            "pip install django-celery-beat, or use 'minicelery.contrib.django'",
        ),
    ],
)
def test_a_scheduler_that_can_not_work_is_refused(app: Celery, name: str, words: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=words):
        open_scheduler(app, name)
