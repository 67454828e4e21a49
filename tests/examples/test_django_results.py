"""The tutorial with results in Django's admin, end to end, and what its URL amqp://guest:guest@localhost means."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from minicelery import Celery
from minicelery.exceptions import ImproperlyConfigured, OperationalError
from tests.browser import Browser
from tests.examples.project import Project, least, on_rabbit
from tests.examples.sites import ANN, Site, Visitor
from tests.proxy import Proxy
from tests.rabbit import RabbitServer
from tests.waiting import wait_until

pytest.importorskip("django")

pytestmark = pytest.mark.timeout(180)  # a slow machine starts four programs, and sends some mails after another

LIST = "/admin/minicelery/taskresult/"
PRINTED = "amqp://guest:guest@localhost"
SETTINGS = """\
CELERY_BROKER_URL = 'amqp://guest:guest@localhost'
CELERY_RESULT_BACKEND = 'django-db'
"""
ADD = """\
@app.task
def add(x, y):
    return x + y
"""
REPORT = """\
@app.task
def generate_report():
    # Código para generar el informe diario
    report_data = []
    for user in User.objects.all():
        report_data.append({'user': user.name, 'sales': user.sales})
    return report_data
"""
MAIL = """\
@app.task
def send_email(user_id):
    # Código para enviar el correo electrónico
    user = User.objects.get(id=user_id)
    send_mail(subject='Nuevo registro creado', message='Se ha creado un nuevo registro.', from_email='your_email@example.com', recipient_list=[user.email])
"""  # noqa: E501
AS_PRINTED = f"""\
from minicelery import Celery
from datetime import date

app = Celery('tasks', broker='{PRINTED}')

{REPORT}
# Ejecutar la tarea de manera asíncrona
report_task = generate_report.delay()
print("Report task has been submitted")
"""


@pytest.fixture(scope="module")
def site(rabbit_server: RabbitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The example's tables, worker and server, as its README makes and starts them."""
    make = partial(Site, example="django_results")
    with on_rabbit(rabbit_server, tmp_path_factory, make) as site:
        url = site.environment["CELERY_BROKER_URL"]
        site.replace("tasks.py", f"broker='{PRINTED}'", f"broker='{url}'")
        site.replace("proyecto/settings.py", f"CELERY_BROKER_URL = '{PRINTED}'", f"CELERY_BROKER_URL = '{url}'")
        for command in ("migrate", "loaddata usuarios"):
            site.run(site.documented(f"python manage.py {command}"))
        site.add_administrator()
        site.start_worker(site.documented("minicelery -A tasks worker -l info"))
        site.serve()
        yield site


@pytest.fixture(scope="module")
def admin(site: Site, browser: Browser) -> Browser:
    """The browser, with an administrator logged in."""
    browser.open(f"{site.url}/admin/")
    for name, value in ANN.items():
        browser.type(f"#id_{name}", value)
    browser.follow("[type=submit]")
    return browser


def mails(site: Site, address: str) -> list[str]:
    """What has been sent to the address."""
    sent = [file.read_text() for file in (site.folder / "correos").glob("*.log")]
    return [mail for mail in sent if f"To: {address}" in mail]


def inspected_at_work(site: Site) -> str:
    """What `inspect active` prints while a mail is sent: more of them where three seconds are too few."""
    command = site.documented("minicelery -A tasks inspect active")
    with Celery("tasks", broker=site.environment["CELERY_BROKER_URL"], set_as_current=False) as app:
        for more in (0, 4, 12):
            for _ in range(more):
                app.send_task("tasks.send_email", (1,))
            printed = site.run(command)
            if "tasks.send_email" in printed:
                break
    return printed


def results(site: Site, admin: Browser) -> dict[str, str]:
    """The states of tasks by their names, as the list in the admin shows them."""
    admin.open(f"{site.url}{LIST}")
    return {
        str(name): str(state)
        for state, name in admin.run(
            "[...document.querySelectorAll('#result_list tbody tr')].map(row =>"
            " ['.field-state', '.field-name'].map(cell => row.querySelector(cell).innerText.trim()))"
        )
    }


def test_sum_report_and_mail_are_made_inspected_and_seen_in_the_admin(site: Site, admin: Browser) -> None:
    assert site.run(site.documented("python tasks.py")).splitlines() == [
        "5", "Report task has been submitted", "Email task has been submitted"
    ]  # fmt: skip
    assert re.search(r"->  celery@\S+: OK\n( +\* .*\n)* +\* .*tasks\.send_email", inspected_at_work(site))

    mail = wait_until(lambda: mails(site, "ana@example.com"), 30)[0]
    assert "Subject: Nuevo registro creado" in mail
    wanted = dict.fromkeys(("tasks.add", "tasks.generate_report", "tasks.send_email"), "SUCCESS")
    wait_until(lambda: results(site, admin) == wanted, 90, interval=0.2)
    admin.open(f"{site.url}/admin/celery/task/?q=generate_report")
    assert admin.run("location.pathname") == LIST
    admin.follow("#result_list .field-name a")
    report = json.loads(admin.text(".field-pretty_result pre"))
    assert report == [{"user": "Ana", "sales": 12}, {"user": "Luis", "sales": 7}]


def test_a_user_who_is_added_in_the_admin_gets_a_mail(site: Site, admin: Browser) -> None:
    admin.open(f"{site.url}/admin/usuarios/user/add/")
    admin.type("#id_name", "Eva")
    admin.type("#id_email", "eva@example.com")
    admin.follow("[name=_save]")
    assert "was added successfully" in admin.text(".messagelist")
    assert "Nuevo registro creado" in wait_until(lambda: mails(site, "eva@example.com"), 90)[0]
    assert "DoesNotExist" not in site.log.read_text()


def test_the_page_that_adds_a_user_answers_at_once_though_a_mail_takes_three_seconds(site: Site) -> None:
    visitor = Visitor(site.url)
    visitor.submit("/admin/login/", **ANN)
    user = {"name": "Leo", "email": "leo@example.com", "sales": "3"}
    assert least((visitor.submit("/admin/usuarios/user/add/", **user) for _ in range(8)), 0.3) < 0.3
    wait_until(lambda: mails(site, "leo@example.com"), 90)


def test_the_listings_are_as_printed(site: Site) -> None:
    printed = ["app = Celery('tasks', broker='amqp://guest:guest@localhost')\n", ADD, REPORT, MAIL]
    assert [listing for listing in printed if not site.prints("tasks.py", listing)] == []
    assert site.prints("proyecto/settings.py", SETTINGS)


def test_a_module_that_sends_its_task_as_it_is_imported_can_be_a_workers_module(
    rabbit_server: RabbitServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with on_rabbit(rabbit_server, tmp_path_factory, Project) as empty:
        url = empty.environment["CELERY_BROKER_URL"]
        (empty.folder / "tasks.py").write_text(AS_PRINTED.replace(PRINTED, url), encoding="utf-8")
        empty.start_worker("minicelery -A tasks worker -l info")

        log = empty.logged("NameError: name 'User' is not defined")
        assert "Report task has been submitted" in log


def test_a_result_asked_of_an_app_without_a_store_says_what_to_write(rabbit_url: str) -> None:
    with Celery("tasks", broker=rabbit_url, set_as_current=False) as app:
        result = app.send_task("tasks.add", (2, 3))
        with pytest.raises(ImproperlyConfigured, match=r'set result_backend.* RabbitMQ, backend="rpc://"'):
            result.get()


# -- the URL as printed, and none at all -------------------------------------------------------


@pytest.fixture
def port_5672(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The port that no URL need name, held by this test: refused until it listens."""
    for name in ("CELERY_BROKER_URL", "MINICELERY_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket(socket.AF_UNIX) as turn, socket.socket() as port:
        wait_until(lambda: _bound(turn, "\0minicelery-tests-5672"), 30)  # one test at a time
        with contextlib.suppress(OSError), socket.create_connection(("localhost", 5672), 2):
            pytest.skip("a RabbitMQ that is not ours is on port 5672")
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(("127.0.0.1", 5672))
        yield port


@pytest.mark.parametrize("broker", [PRINTED, None], ids=["as printed", "none"])
def test_the_broker_is_the_root_of_the_rabbitmq_on_port_5672(
    broker: str | None, rabbit_server: RabbitServer, port_5672: socket.socket
) -> None:
    port_5672.listen()
    with (
        _LedFrom(port_5672, rabbit_server.port),
        Celery("tasks", broker=broker, set_as_current=False) as app,
        Celery("tasks", broker=rabbit_server.url("/"), set_as_current=False) as same,
    ):
        app.send_task("tasks.add", (2, 3), queue="tutorial")
        assert same.broker.purge("tutorial") == 1


@pytest.mark.parametrize(
    ("broker", "named"),
    [(PRINTED, "amqp://guest:**@localhost"), (None, "amqp://")],
    ids=["as printed", "none"],
)
def test_where_no_rabbitmq_listens_the_error_names_the_url_and_a_way_without_a_server(
    broker: str | None, named: str, port_5672: socket.socket
) -> None:
    with (
        Celery("tasks", broker=broker, set_as_current=False) as app,
        pytest.raises(OperationalError) as caught,
    ):
        app.send_task("tasks.add", (2, 3), retry=False)
    text = str(caught.value)
    assert f"cannot reach RabbitMQ at {named}" in text and "connection refused" in text
    assert 'broker="sqlite:///' in text
    assert "guest:guest" not in text


class _LedFrom(Proxy):
    """A proxy on a port that the test has bound."""

    def __init__(self, listener: socket.socket, target: int) -> None:
        super().__init__(target)
        self._listener.close()
        self._listener = listener


def _bound(lock: socket.socket, address: str) -> bool:
    try:
        lock.bind(address)
    except OSError:
        return False
    return True
