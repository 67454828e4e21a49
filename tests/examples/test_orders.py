"""The exercise of the Flask tutorial, end to end, on Redis and on SQLite: orders in a chain of three steps."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from minicelery import Celery
from tests.browser import Browser
from tests.examples.flask_sites import FlaskSite
from tests.examples.project import LIMIT, least, took
from tests.servers import RedisServer
from tests.waiting import wait_until

pytest.importorskip("flask")

pytestmark = pytest.mark.timeout(180)  # a slow machine starts three programs

WORKER = "minicelery -A app.celery worker --beat --loglevel=info --concurrency=4"
FLOWER = "minicelery -A app.celery flower --port=5555"
ON_REDIS = pytest.mark.parametrize("shop", ["redis"], indirect=True)
"""Of tests that say nothing new on another broker."""
CLOSED = "almacen-cerrado"
"""While a file of that name is there, who prepares what is sent waits for a minute."""


class Shop(FlaskSite):
    """The running example."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder, url, "orders")
        self.broker_url = url.replace("sqlite:///", f"sqlite:///{self.folder}/")
        self.flower_log = folder / "flower.log"
        self.environment["PAUSA"] = "0.4"
        work = "time.sleep({})  # Simula el trabajo en el almacén"
        self.replace(
            "tasks.py", work.format("PAUSA"), work.format(f"60 if os.path.exists('{CLOSED}') else PAUSA")
        )

    def order(self, **order: Any) -> str:
        status, answer = self.post("/pedidos", {"email": "ana@example.com", **order})
        assert status == 202
        return str(answer["pedido_id"])

    def stored(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "pedidos" / f"{id}.json").read_text())
        return found

    def runs(self, task: str) -> dict[str, int]:
        """What runs of the task, and in which process."""
        with Celery("asks", broker=self.broker_url, set_as_current=False) as app:
            nodes = app.control.inspect(timeout=10, limit=1).active() or {}
        return {
            run["args"][0]: run["worker_pid"]
            for node in nodes.values()
            for run in node
            if run["name"] == task
        }


@pytest.fixture(scope="module", params=["redis", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The example as its README starts it."""
    server = None
    url = "sqlite:///cola.db"
    if request.param == "redis":
        request.getfixturevalue("redis_server")  # says whether there is a Redis at all
        server = RedisServer().start()
        url = server.url()
    shop = Shop(tmp_path_factory.mktemp("orders"), url)
    try:
        shop.start_worker(shop.documented(WORKER))
        if server is not None and importlib.util.find_spec("flower"):
            shop.start(
                shop.documented(FLOWER, "--address=127.0.0.1").replace("5555", "0"), shop.flower_log, ""
            )
        shop.serve()
        yield shop
    finally:
        shop.close()
        if server is not None:
            server.stop()


def test_an_order_is_taken_at_once_and_seen_in_each_step_and_its_mail_is_tried_again(shop: Shop) -> None:
    ids = []

    def order() -> None:
        ids.append(shop.order(importe=250, correos_que_fallan=2))

    assert least((took(order) for _ in range(5)), 0.3) < 0.3

    seen: set[str] = set()
    for id in ids:
        answers = shop.answers_until("SUCCESS", f"/pedidos/{id}/estado")
        steps = [answer["progreso"] for answer in answers if "progreso" in answer]
        assert [step["actual"] for step in steps] == sorted(step["actual"] for step in steps)
        assert answers[-1]["resultado"] == {"guia": f"MX-{id[:8]}", "intentos": 3, "status": "completado"}
        assert shop.stored(id)["status"] == "completado"
        seen |= {step["paso"] for step in steps}
        # again, where this machine had to wait during a step of this one
        if id == ids[-1] and not seen >= {"validar pago", "preparar envío"} and len(ids) < 10:
            order()
    assert seen >= {"validar pago", "preparar envío"}
    log = shop.logged(f"su envío es MX-{ids[-1][:8]}")
    mails = re.findall(r"notificar_cliente\[([0-9a-f-]{36})\] retry 1/5 in 0\.4s", log)
    again = r"notificar_cliente\[([0-9a-f-]{36})\] retry 2/5 in 0\.8s: ConnectionError\('el servidor de correo no resp"
    assert len(set(mails)) == len(ids)
    assert set(mails) == set(re.findall(again, log))


def test_an_order_that_is_not_paid_for_fails_with_the_reason_and_goes_no_further(shop: Shop) -> None:
    id = shop.order(importe=0)

    failed = shop.answers_until("FAILURE", f"/pedidos/{id}/estado")[-1]
    assert failed["error"] == "pago rechazado: importe 0"
    assert "guia" not in shop.stored(id)
    assert f"MX-{id[:8]}" not in shop.log.read_text()


def test_a_step_whose_process_is_killed_runs_again_and_the_order_is_charged_once(shop: Shop) -> None:
    closed = shop.folder / CLOSED
    closed.touch()
    id = shop.order(importe=99)
    pid = wait_until(lambda: shop.runs("preparar_envio").get(id), LIMIT)
    closed.unlink()
    os.kill(pid, signal.SIGKILL)

    answers = shop.answers_until("SUCCESS", f"/pedidos/{id}/estado")
    assert answers[-1]["resultado"]["guia"] == f"MX-{id[:8]}"
    assert shop.stored(id)["recibo"] == f"R-{id[:8]}"
    assert "runs again (2 of 3): Worker exited prematurely: signal 9 (SIGKILL)" in shop.log.read_text()


@ON_REDIS
def test_each_hour_there_is_an_alert_for_orders_that_have_been_pending_for_a_day(shop: Shop) -> None:
    assert "every hour" in shop.run("minicelery -A app.celery schedule list")
    folder = shop.folder / "pedidos"
    folder.mkdir(exist_ok=True)
    ids = {}
    for name, hours, status in (
        ("late", 25, "pendiente"),
        ("new", 23, "pendiente"),
        ("done", 25, "completado"),
    ):
        ids[name] = str(uuid4())
        order = {"email": f"{name}@example.com", "creado": time.time() - hours * 3600, "status": status}
        (folder / f"{ids[name]}.json").write_text(json.dumps({"id": ids[name], **order}))

    shop.run(shop.documented("minicelery -A app.celery schedule run revisar-pedidos-pendientes"))

    log = shop.logged(f"ALERTA: el pedido {ids['late']} de late@example.com lleva más de 24 horas pendiente")
    shop.logged("{'alertas': 1}")  # by another process, maybe later
    assert ids["new"] not in log
    assert ids["done"] not in log


@ON_REDIS
def test_an_order_can_be_drawn(shop: Shop) -> None:
    id = shop.order(importe=1)
    shop.answers_until("SUCCESS", f"/pedidos/{id}/estado")

    chart = shop.run(f"minicelery -A app.celery graph {id}")
    assert chart.startswith("flowchart LR\n")
    assert chart.count("✓ SUCCESS") == 3


@ON_REDIS
def test_an_order_that_there_is_not_is_not_found(shop: Shop) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        shop.get("/pedidos/00000000-0000-0000-0000-000000000000/estado")


@ON_REDIS
def test_flower_shows_the_steps(shop: Shop, browser: Browser) -> None:
    pytest.importorskip("flower")
    shop.logged("Task events are enabled by remote control")
    url = re.findall(r"Visit me at (http://[\d.:]+)", shop.flower_log.read_text())[0]
    id = shop.order(importe=5)
    shop.answers_until("SUCCESS", f"/pedidos/{id}/estado")

    def shown() -> bool:
        browser.open(f"{url}/tasks")  # which shows what Flower knows when it is opened
        browser.wait_for("document.querySelector('#tasks-table tbody td') !== null")
        text = browser.text()
        return all(task in text for task in ("validar_pago", "preparar_envio", "notificar_cliente"))

    wait_until(shown, LIMIT, 0.3)
