"""The admin in a browser, on a project with a server, a worker and a beat: results, and the schedule."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django")

from tests.browser import Browser, opened
from tests.contrib.django.conftest import Site
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(150)  # the first test waits for a browser and three programs to start

RESULTS = "/admin/minicelery/taskresult/"
SCHEDULE = "/admin/minicelery/periodictask/"
USER = {"username": "ana", "password": "of-a-test"}
SETTINGS = """
INSTALLED_APPS += [
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.messages",
    "django.contrib.sessions", "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
ROOT_URLCONF = "mysite.urls"
STATIC_URL = "static/"
CELERY_RESULT_BACKEND = "django-db"
CELERY_TASK_TRACK_STARTED = True
CELERY_BEAT_SCHEDULER = "django"
DATABASES["default"]["OPTIONS"] = {"timeout": 20}
"""
URLS = """
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
"""
TASKS = """
import time
from pathlib import Path

from minicelery import shared_task

@shared_task
def price(article, *, count=1):
    return {"article": article, "cents": 250 * count}

@shared_task
def order(article):
    if not Path("open").exists():
        raise ValueError("the shop is <closed>")
    return f"{article} ordered"

@shared_task
def hold():
    time.sleep(600)

@shared_task
def tidy(folder):
    return f"{folder} tidied"
"""
COLOURS = {"SUCCESS": "rgb(26, 127, 55)", "FAILURE": "rgb(207, 34, 46)", "STARTED": "rgb(11, 107, 203)"}

OUTCOMES = {"polls.tasks.price": "SUCCESS", "polls.tasks.order": "FAILURE", "polls.tasks.hold": "STARTED"}
SOON = r"\((in \d+ (s|min)|now\)|\d+ s ago)"  # the minute may have ended while the page was made
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@dataclass
class Desk:
    """An administrator's browser, logged in."""

    site: Site
    url: str
    page: Browser

    def open(self, path: str) -> Browser:
        self.page.open(f"{self.url}{path}")
        return self.page

    def rows(self, query: str = "") -> list[dict[str, str]]:
        """The results that the list shows: columns by their names, and the colour of the state."""
        self.open(RESULTS + query)
        return self.shown()

    def shown(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.page.run(
            "[...document.querySelectorAll('#result_list tbody tr')].map(row => ({"
            "...Object.fromEntries([...row.querySelectorAll('[class^=field-]')]"
            ".map(cell => [cell.className.split(' ')[0].slice(6), cell.innerText.trim()])),"
            "colour: getComputedStyle(row.querySelector('.minicelery-state')).color,"
            "id: row.querySelector('.field-short_id span').title}))"
        )
        for row in found:
            row["state"] = row["state"].lstrip("● \xa0")
        return found

    def states(self, task: str) -> list[str]:
        return [row["state"] for row in self.rows() if row["name"] == task]

    def outcomes(self) -> dict[str, str]:
        """The state of each task that was called."""
        return {row["name"]: row["state"] for row in self.rows() if row["name"] in OUTCOMES}

    def act(self, action: str, task: str) -> str:
        """Choose the results of a task in the list and do something with them; what the page says then."""
        self.rows(f"?q={task}")
        self.page.click("#action-toggle")
        self.page.choose("select[name=action]", action)
        self.page.follow("button[name=index]")
        return self.page.text(".messagelist")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from opened()


@pytest.fixture(scope="module")
def desk(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    site = Site(tmp_path_factory.mktemp("admin"))
    site.use_app()
    site.set(SETTINGS)
    site.write("mysite/urls.py", URLS)
    site.write("polls/tasks.py", TASKS)
    site.migrate()
    site.run(
        "manage.py", "createsuperuser", "--noinput", "--email", "ana@example.com",
        **{f"DJANGO_SUPERUSER_{name.upper()}": value for name, value in USER.items()},
    )  # fmt: skip
    try:
        web = site.start_worker("manage.py", "runserver", "--noreload", "127.0.0.1:0", sign="Quit the")
        site.start_worker("manage.py", "minicelery", "worker", "-l", "info", "-c", "2", "-n", "w1@shop")
        found = re.search(r"http://127\.0\.0\.1:\d+", web.read_text())
        assert found is not None, web.read_text()
        desk = Desk(site, found[0], browser)
        desk.open("/admin/")
        for name, value in USER.items():
            browser.type(f"#id_{name}", value)
        browser.follow("[type=submit]")
        yield desk
    finally:
        site.close()


@pytest.fixture(scope="module")
def called(desk: Desk) -> Desk:
    """A task has succeeded, one has failed, and one runs."""
    desk.site.python(
        """
        from polls.tasks import hold, order, price
        print(price.delay("apple", count=3), order.delay("pear"), hold.delay())
        """
    )
    wait_until(lambda: desk.outcomes() == OUTCOMES, 30, interval=0.2)
    return desk


@pytest.fixture(scope="module")
def scheduled(desk: Desk) -> Desk:
    """A crontab, and a task that it sends, made in their forms, and a beat."""
    page = desk.open("/admin/minicelery/crontabschedule/add/")
    page.type("#id_minute", "*")
    page.type("#id_hour", "*")
    page.choose("#id_timezone", "Europe/Madrid")
    page.follow("[name=_save]")
    assert "was added successfully" in page.text(".messagelist")
    page = desk.open(f"{SCHEDULE}add/")
    page.type("#id_name", "each minute")
    page.choose("#id_task", "polls.tasks.tidy")
    page.choose("#id_crontab", "every minute (Europe/Madrid)")
    page.type("#id_args", '["/tmp"]')
    page.follow("[name=_continue]")
    assert "was added successfully" in page.text(".messagelist")
    # Nobody waits for the minute to end: it was saved before this one began, so beat has a run to make up for.
    desk.site.python(
        """
        from datetime import timedelta
        from django.utils.timezone import now
        from minicelery.contrib.django.models import PeriodicTask
        PeriodicTask.objects.update(date_changed=now() - timedelta(minutes=1))
        """
    )
    desk.site.start_worker("manage.py", "minicelery", "beat", "-l", "info", sign="leading")
    return desk


def test_a_periodic_task_is_made_in_the_form_which_shows_its_next_runs(scheduled: Desk) -> None:
    (row,) = _listed(scheduled)
    assert (row["name"], row["task"], row["when"]) == (
        "each minute",
        "polls.tasks.tidy",
        "every minute (Europe/Madrid)",
    )
    assert re.search(SOON, row["next_run"]), row["next_run"]
    scheduled.page.follow("#result_list .field-name a")
    runs = scheduled.page.run(
        "[...document.querySelectorAll('.field-next_runs li')].map(run => run.innerText)"
    )
    assert len(runs) == 5 and all(re.search(SOON, run) for run in runs), runs


def test_what_beat_would_leave_out_is_refused_in_the_form(desk: Desk) -> None:
    page = desk.open(f"{SCHEDULE}add/")
    page.type("#id_name", "never")
    page.choose("#id_task", "polls.tasks.tidy")
    page.follow("[name=_save]")
    assert page.text("#content").count("One of interval, crontab, solar, clocked must be set.") == 1
    assert page.run("location.pathname") == f"{SCHEDULE}add/"


def test_the_list_has_each_result_with_the_colour_of_its_state(called: Desk) -> None:
    rows = {row["name"]: row for row in called.rows()}
    for name, state in OUTCOMES.items():
        row = rows[name]
        assert row["state"] == state
        assert row["colour"] == COLOURS[row["state"]]
        assert row["worker"] == "w1@shop"
        assert re.fullmatch(MOMENT, row["created"]) and re.fullmatch(MOMENT, row["changed"])
    assert re.fullmatch(MOMENT, rows["polls.tasks.hold"]["started"])


def test_the_list_is_narrowed_by_a_filter_and_by_a_search(called: Desk) -> None:
    called.open(RESULTS)
    called.page.follow("#changelist-filter a[href='?status=FAILURE']")
    assert {row["name"] for row in called.shown()} == {"polls.tasks.order"}
    called.open(RESULTS)
    called.page.type("#searchbar", "apple")
    called.page.follow("#changelist-search [type=submit]")
    assert [row["name"] for row in called.shown()] == ["polls.tasks.price"]


def test_the_page_of_a_result_has_arguments_result_and_traceback(called: Desk) -> None:
    page = called.page
    called.rows("?q=polls.tasks.price")
    page.follow("#result_list .field-name a")
    assert page.text(".field-arguments pre").split() == ["[", '"apple"', "]"]
    assert page.text(".field-keyword_arguments pre").split() == ["{", '"count":', "3", "}"]
    assert '"cents": 750' in page.text(".field-pretty_result pre")
    called.rows("?q=polls.tasks.order&status=FAILURE")
    page.follow("#result_list .field-name a")
    assert page.text(".field-pretty_result pre") == "ValueError: the shop is <closed>"
    assert 'raise ValueError("the shop is <closed>")' in page.text(".field-pretty_traceback pre")


def test_a_task_that_runs_is_revoked_and_ended(called: Desk) -> None:
    assert "1 task revoked" in called.act("Revoke: don't run it, and end it if it runs", "polls.tasks.hold")
    wait_until(lambda: called.states("polls.tasks.hold") == ["REVOKED"], 30, interval=0.2)


def test_a_task_that_failed_is_called_again(called: Desk) -> None:
    Path(called.site.folder, "open").touch()
    said = called.act("Retry: call again with the same arguments", "polls.tasks.order")
    assert "1 task called again: " in said
    id = said.partition("again: ")[2].strip()
    wait_until(lambda: {"SUCCESS", "FAILURE"} == set(called.states("polls.tasks.order")), 30, interval=0.2)
    (again,) = called.rows(f"?q={id}")
    assert (again["name"], again["state"], again["id"]) == ("polls.tasks.order", "SUCCESS", id)


def test_what_was_scheduled_in_the_browser_is_sent_and_run(scheduled: Desk) -> None:
    wait_until(lambda: "SUCCESS" in scheduled.states("polls.tasks.tidy"), 30, interval=0.2)
    scheduled.rows("?q=polls.tasks.tidy")
    page = scheduled.page
    page.follow("#result_list .field-name a")
    assert page.text(".field-pretty_result pre") == '"/tmp tidied"'
    assert page.text(".field-periodic_task_name .readonly") == "each minute"
    # Beat writes it after some seconds.
    row = wait_until(lambda: next((row for row in _listed(scheduled) if row["last_run_at"] != "-"), None), 30)
    assert int(row["total_run_count"]) >= 1


def _listed(desk: Desk) -> list[Any]:
    """The periodic tasks in the list."""
    found: list[Any] = desk.open(SCHEDULE).run(
        "[...document.querySelectorAll('#result_list tbody tr')].map(row =>"
        " Object.fromEntries([...row.querySelectorAll('[class*=field-]')]"
        ".map(cell => [cell.className.match(/field-(\\w+)/)[1], cell.innerText.trim()])))"
    )
    return found
