"""minicelery schedule: list, add, remove, enable, disable, run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest

from minicelery import Celery
from minicelery.beat.entries import Entry
from minicelery.beat.ledger import Ledger
from minicelery.schedules import crontab
from tests.cli.conftest import Project, Ran

Run = Callable[..., Ran]

MODULE = """
from minicelery import Celery
from minicelery.schedules import crontab

app = Celery("shop", broker="sqlite:///queue.db", timezone="Europe/Madrid")
app.conf.beat_schedule = {
    "nightly": {"task": "shop.tidy", "schedule": crontab(minute=30, hour=4), "args": ["/archive"]}
}

@app.task(name="shop.tidy")
def tidy(folder, days=30): ...
"""


@pytest.fixture
def schedule(project: Project, run: Run) -> Run:
    """Runs `minicelery -A shop schedule …`, without its note that no beat is there."""
    project.write("shop.py", MODULE)
    return lambda *argv: run("-A", "shop", "-q", "schedule", *argv)


def listed(schedule: Run) -> dict[str, dict[str, object]]:
    ran = schedule("list", "--json")
    assert (ran.code, ran.err) == (0, "")
    return {entry["name"]: entry for entry in json.loads(ran.out)}


def test_the_list_shows_when_entries_run_in_the_apps_zone_in_utc_and_in_words(schedule: Run) -> None:
    before, ran, after = listed(schedule), schedule("list"), listed(schedule)
    while before["nightly"]["next_run"] != after["nightly"]["next_run"]:  # its time has just come
        before, ran, after = after, schedule("list"), listed(schedule)
    header, row = ran.out.splitlines()
    assert (ran.code, ran.err) == (0, "")
    assert header.split("  ")[0] == "name" and "next run" in header and "UTC" in header
    following = datetime.fromisoformat(str(after["nightly"]["next_run"]))
    assert following.strftime("%H:%M") == "04:30"
    assert f"at 04:30  {following:%Y-%m-%d} 04:30:00 CE" in row
    assert f"{following.astimezone(timezone.utc):%m-%d %H:%M:%S}  in " in row
    assert row.split()[-3:] == ["0", "program", "yes"]


def test_that_no_beat_is_there_is_noted(schedule: Run, run: Run) -> None:
    assert "note: no beat is running: minicelery beat" in run("-A", "shop", "schedule", "list").err


def test_an_entry_is_added_with_all_that_it_may_have(schedule: Run) -> None:
    ran = schedule(
        "add", "weekly", "--task", "shop.tidy", "--crontab", "0 4 * * mon-fri", "--tz", "America/Mexico_City",
        "--args", '["/tmp"]', "--kwargs", '{"days": 7}', "--queue", "slow", "--priority", "3",
        "--expires", "1h30m", "--catch-up", "skip",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    assert (
        "Entry 'weekly' is stored, and runs at 04:00 from Monday to Friday (America/Mexico_City); next at "
        in ran.out
    )
    entry = listed(schedule)["weekly"]
    assert {key: entry[key] for key in ("task", "args", "kwargs", "options", "catch_up", "source", "enabled")} == {
        "task": "shop.tidy", "args": ["/tmp"], "kwargs": {"days": 7}, "catch_up": "skip", "source": "stored",
        "options": {"queue": "slow", "priority": 3, "expires": 5400.0}, "enabled": True,
    }  # fmt: skip
    assert entry["form"] == {
        "type": "crontab", "line": "0 4 * * mon-fri", "day_or": False, "tz": "America/Mexico_City",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("30", 30), ("0.5", 0.5), ("5m", 300), ("1h30m", 5400), ("1d", 86400), ("1.5H", 5400), ("90s", 90)],
)
def test_spans_are_read(schedule: Run, span: str, seconds: float) -> None:
    ran = schedule(
        "add", "e", "--task", "shop.tidy", "-a", '["/"]', "--every", span, "--relative", "--disabled"
    )
    assert (ran.code, ran.out) == (0, "Entry 'e' is stored, and disabled.\n")
    entry = listed(schedule)["e"]
    assert entry["form"] == {"type": "interval", "seconds": seconds, "relative": True}
    assert (entry["enabled"], entry["next_run"], entry["next_run_in"]) == (False, None, None)


def test_the_sun_says_when(schedule: Run) -> None:
    pytest.importorskip("ephem")
    ran = schedule(
        "add", "sun", "-t", "shop.tidy", "-a", '["/"]', "--solar", "sunrise", "--lat", "40.4", "--lon", "-3.7"
    )
    assert ran.code == 0 and "runs at sunrise at 40.4 N 3.7 W; next at " in ran.out


def test_an_entry_is_disabled_enabled_sent_and_removed(schedule: Run, project: Project) -> None:
    schedule("add", "e", "--task", "shop.tidy", "-a", '["/"]', "--every", "1h")
    assert schedule("disable", "e") == Ran(0, "Entry 'e' is disabled.\n", "")
    assert listed(schedule)["e"]["enabled"] is False
    ran = schedule("enable", "e")
    assert ran.code == 0 and "Entry 'e' is enabled, and runs every hour; next at " in ran.out
    ran = schedule("run", "e")
    assert (ran.code, len(ran.out.strip())) == (0, 36)
    with Celery("shop", broker=f"sqlite:///{project.path}/queue.db", set_as_current=False) as app:
        assert app.broker.size("celery") == 1
    assert schedule("remove", "e") == Ran(0, "Entry 'e' is removed.\n", "")
    assert list(listed(schedule)) == ["nightly"]


def test_an_entry_that_is_there_is_changed_only_where_that_is_wanted(schedule: Run) -> None:
    add = ("add", "e", "--task", "shop.tidy", "-a", '["/"]', "--every")
    schedule(*add, "1h")
    ran = schedule(*add, "2h")
    assert (ran.code, ran.out) == (2, "")
    assert "error: entry 'e' is stored already\n" in ran.err and "replace it with --replace" in ran.err
    assert schedule(*add, "2h", "--replace").code == 0
    assert listed(schedule)["e"]["schedule"] == "every 2 hours"


def test_an_entry_of_the_program_can_be_disabled_and_not_removed(schedule: Run) -> None:
    ran = schedule("remove", "nightly")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(
        "error: entry 'nightly' is the program's, from beat_schedule or add_periodic_task\n"
    )
    assert "hint: take it out there, or disable it:" in ran.err
    assert schedule("disable", "nightly").code == 0
    assert listed(schedule)["nightly"]["enabled"] is False
    assert (
        schedule("add", "nightly", "--task", "shop.tidy", "-a", '["/"]', "--every", "5", "--replace").code
        == 2
    )


def test_an_unknown_task_is_warned_of_and_stored(schedule: Run) -> None:
    ran = schedule("add", "e", "--task", "shop.tidi", "--every", "5m")
    assert ran.code == 0
    assert ran.err == (
        "warning: no task 'shop.tidi' is known here, did you mean 'shop.tidy'?; only workers that have it can run it\n"
    )
    assert listed(schedule)["e"]["task"] == "shop.tidi"


@pytest.mark.parametrize("change", ["remove", "enable", "disable", "run"])
def test_an_unknown_entry_is_told_with_one_that_is_near(schedule: Run, change: str) -> None:
    assert schedule(change, "nightli") == Ran(
        1, "", "error: no entry is named 'nightli'\nhint: did you mean 'nightly'?\n"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no schedule given\nhint: give exactly one of --every, --crontab, --solar"),
        (["--every", "5", "--crontab", "* * * * *"], "--every and --crontab given"),
        (["--every", "5x"], "'--every': '5x' is no span of time\nhint: accepted: seconds such as 30"),
        (["--every", "0"], "--every: schedule: run_every=0.0 is too short\nhint: accepted: more than 0 s"),
        (["--every", "1e300"], "--every: "),
        (["--crontab", "0 25 * * *"], "hour='25': 25 is out of range\nhint: accepted: 0-23"),
        (["--crontab", "0 4 * * funday"], "day_of_week='funday': 'funday' is no number or name\nhint: did you"),
        (["--crontab", "*/0 * * * *"], "minute='*/0': the step '0' is not a number from 1 on\nhint: accepted: 0-59"),
        (["--crontab", "0 0 30 2 *"], "day_of_month='30' never comes in month_of_year='2'\nhint: accepted: 1-29"),
        (["--crontab", "0 4 * *"], "'0 4 * *' has 4 fields\nhint: accepted: 5, minute, hour, day_of_month"),
        (["--crontab", "0 4 * * *", "--tz", "Europe/Madri"], "no time zone is named 'Europe/Madri'"),
        (["--crontab", "0 4 * * *", "--relative"], "--relative goes with --every only, not with --crontab"),
        (["--every", "5", "--lat", "4"], "--lat goes with --solar only, not with --every"),
        (["--solar", "sunrise", "--lat", "4"], "--lon is missing: --solar needs a place"),
        (["--solar", "sunris", "--lat", "4", "--lon", "4"], "event='sunris' is unknown\nhint: did you mean"),
        (["--solar", "sunrise", "--lat", "91", "--lon", "4"], "lat=91.0 is out of range\nhint: accepted: degrees"),
        (["--every", "5", "--priority", "11"], "'--priority': 11 is not in the range"),
        (["--every", "5", "--catch-up", "all"], "'--catch-up': 'all' is not one of"),
        (["--every", "5", "--args", "{}"], "expected a JSON list"),
        (["--every", "5", "--kwargs", "[]"], "expected a JSON object"),
        (["--every", "5", "--args", "[1, 2, 3]"], "too many positional arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_wrong_is_refused_with_what_is_accepted(schedule: Run, options: list[str], said: str) -> None:
    ran = schedule("add", "e", "--task", "shop.tidy", *options)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ") and said in ran.err, ran.err
    assert list(listed(schedule)) == ["nightly"]


def test_how_far_an_entry_has_come_is_shown_and_a_run_that_was_missed_as_past(
    schedule: Run, project: Project
) -> None:
    last = datetime.now(timezone.utc).replace(hour=3, minute=30, second=0, microsecond=0) - timedelta(days=5)
    noted = Entry("nightly", "shop.tidy", crontab(minute=30, hour=4), runs=4)
    noted.last = noted.ran = last.timestamp()
    with Celery("shop", broker=f"sqlite:///{project.path}/queue.db", set_as_current=False) as app:
        ledger = Ledger(app.broker, "shop@celery", is_stream=False)
        ledger.note([noted])
        ledger.flush()
    entry = listed(schedule)["nightly"]
    assert (entry["runs"], entry["last_run"]) == (4, last.isoformat())
    assert re.fullmatch(r"[34] d( \d+ h)? ago", str(entry["next_run_in"]))


def test_what_others_have_stored_can_not_move_the_cursor(schedule: Run, project: Project) -> None:
    with Celery("shop", broker=f"sqlite:///{project.path}/queue.db", set_as_current=False) as app:
        app.schedule.add("\x1b[2Je\n", "t." + "x" * 500, 60)
    ran = schedule("list")
    assert r"\x1b[2Je\n  t.xxx" in ran.out and "\x1b" not in ran.out
    assert max(map(len, ran.out.splitlines())) < 300


def test_a_step_that_is_too_long_is_warned_of(schedule: Run) -> None:
    ran = schedule("add", "e", "-t", "shop.tidy", "-a", '["/"]', "--crontab", "*/75 * * * *")
    assert ran.code == 0
    assert ran.err.startswith("warning: crontab: minute='*/75': a step of 75 is longer than the range")
    assert ran.err.count("\n") == 1


def test_without_a_command_the_help_is_shown(schedule: Run) -> None:
    ran = schedule()
    assert ran.code == 2 and "disable  Have an entry not sent for now." in ran.out
