"""The Django tutorial with a form and mails, end to end: Redis, a site, a worker and a browser."""

from __future__ import annotations

import email
import email.policy
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from email.message import EmailMessage

import pytest

from tests.browser import Browser
from tests.examples.project import least
from tests.examples.sites import Site, Visitor
from tests.servers import RedisServer
from tests.waiting import wait_until

pytest.importorskip("django")

pytestmark = pytest.mark.timeout(180)  # a slow machine starts four programs

PRINTED = "redis://localhost:6379"


@pytest.fixture(scope="module")
def site(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The example's worker and server, as its README starts them."""
    redis_server.command("FLUSHALL")
    url = redis_server.url()
    with closing(Site(tmp_path_factory.mktemp("example"), url, "django_redis_feedback")) as site:
        for setting in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
            line = f'{setting} = "%s"\n'
            site.replace("django_celery/settings.py", line % PRINTED, line % url)
        site.run(site.documented("python manage.py migrate"))
        worker = site.documented("python -m minicelery -A django_celery worker")
        site.start(worker, site.log, "redis://")  # which says no more than its settings
        site.serve()
        yield site


def mails(site: Site, address: str) -> list[EmailMessage]:
    """What has been sent to the address."""
    files = (site.folder / "sent_emails").glob("*.log")
    found = [email.message_from_bytes(file.read_bytes(), policy=email.policy.default) for file in files]
    return [mail for mail in found if isinstance(mail, EmailMessage) and mail["To"] == address]


def test_the_form_is_filled_in_and_the_mail_sent_by_the_worker(site: Site, browser: Browser) -> None:
    browser.open(f"{site.url}/")
    browser.type("#id_email", "ana@example.com")
    browser.type("#id_message", "The queue is short.\nI like it.")
    browser.follow("button")
    assert browser.run("location.pathname") == "/success/"
    assert browser.text("h1") == "Thank you!"

    (mail,) = wait_until(lambda: mails(site, "ana@example.com"), 30)
    assert mail["Subject"] == "Your feedback"
    assert "You wrote:\n\nThe queue is short.\nI like it.\n" in mail.get_content().replace("\r", "")
    browser.follow(".button")
    assert browser.run("location.pathname") == "/"


def test_what_is_no_address_is_sent_back_with_the_reason(site: Site, browser: Browser) -> None:
    browser.open(f"{site.url}/")
    browser.run("document.querySelector('form').noValidate = true")
    browser.type("#id_email", "ana")
    browser.type("#id_message", "Hello")
    browser.follow("button")
    assert browser.run("location.pathname") == "/"
    assert browser.text(".errorlist") == "Enter a valid email address."


def test_the_view_answers_at_once_though_a_mail_takes_three_seconds(site: Site) -> None:
    visitor = Visitor(site.url)
    fields = {"email": "luis@example.com", "message": "Hello"}
    assert least((visitor.submit("/", **fields) for _ in range(8)), 0.3) < 0.3
    wait_until(lambda: mails(site, "luis@example.com"), 30)


def test_the_worker_says_that_it_uses_redis_for_both(site: Site) -> None:
    port = os.path.basename(site.environment["CELERY_BROKER_URL"].rpartition("/")[0])
    wait_until(lambda: site.log.read_text().count(f"redis://{port}") == 2)


def test_redis_is_started_and_asked_as_the_tutorial_does(site: Site, redis_server: RedisServer) -> None:
    site.documented("redis-server")
    command = site.documented("redis-cli ping").split()
    command[1:1] = ["-p", str(redis_server.port)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=30).stdout == "PONG\n"


def test_the_listings_are_as_printed(site: Site) -> None:
    assert site.prints("django_celery/celery.py", APP)
    assert site.prints("django_celery/settings.py", SETTINGS)


APP = """\
# django_celery/celery.py

import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_celery.settings")
app = Celery("django_celery")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""
SETTINGS = """\
# Celery settings
CELERY_BROKER_URL = "redis://localhost:6379"
CELERY_RESULT_BACKEND = "redis://localhost:6379"
"""
