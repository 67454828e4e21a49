"""The tutorial whose broker is amqp://guest:guest@localhost, end to end, and what that URL means."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from minicelery import Celery
from minicelery.exceptions import ImproperlyConfigured, OperationalError
from tests.examples.project import on_rabbit
from tests.proxy import Proxy
from tests.rabbit import RabbitServer
from tests.waiting import wait_until

pytest.importorskip("django")

PRINTED = "amqp://guest:guest@localhost"
AS_PRINTED = f"""\
from minicelery import Celery
from datetime import date

app = Celery('tasks', broker='{PRINTED}')

@app.task
def generate_report():
    # Código para generar el informe diario
    report_data = []
    for user in User.objects.all():
        report_data.append({{'user': user.name, 'sales': user.sales}})
    return report_data

# Ejecutar la tarea de manera asíncrona
report_task = generate_report.delay()
print("Report task has been submitted")
"""


def test_the_sum_is_printed_and_report_and_mail_are_made_by_the_worker(
    rabbit_server: RabbitServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with on_rabbit(rabbit_server, tmp_path_factory, "tutorial_rabbitmq") as project:
        project.run("django migrate --run-syncdb --settings=settings")
        project.run("django loaddata usuarios --settings=settings")
        project.start_worker("minicelery -A tasks worker -l info")

        assert project.run("tasks.py").splitlines() == [
            "5", "Report task has been submitted", "Email task has been submitted"
        ]  # fmt: skip
        assert "[{'user': 'Ana', 'sales': 12}, {'user': 'Luis', 'sales': 7}]" in project.logged(
            "generate_report["
        )
        log = project.logged("tasks.send_email[")
        assert "Subject: Nuevo registro creado" in log and "To: ana@example.com" in log
        assert "results:     rpc://" in log


def test_a_module_that_sends_its_task_as_it_is_imported_can_be_a_workers_module(
    rabbit_server: RabbitServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with on_rabbit(rabbit_server, tmp_path_factory) as project:
        url = project.environment["CELERY_BROKER_URL"]
        (project.folder / "tasks.py").write_text(AS_PRINTED.replace(PRINTED, url), encoding="utf-8")
        project.start_worker("minicelery -A tasks worker -l info")

        log = project.logged("NameError: name 'User' is not defined")
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
