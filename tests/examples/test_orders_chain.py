"""The chain of the tutorial and the orders of its exercise, end to end, on Redis and on SQLite."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.examples.project import Project
from tests.servers import RedisServer
from tests.waiting import wait_until

pytest.importorskip("flask")
Image = pytest.importorskip("PIL.Image")

AS_PRINTED = """\
import app
from tasks import enviar_correo, procesar_imagen
from minicelery import chain
cadena = chain(
    procesar_imagen.s('otra.jpg'),
    enviar_correo.s('admin@site.com', 'Imagen procesada', 'Listo')
)
resultado = cadena.apply_async()
print(resultado.get(timeout=20, propagate=False))
"""


class Shop:
    """The running example: its site seen from outside, its folder and its worker's log."""

    def __init__(self, project: Project, address: str) -> None:
        self.project = project
        self.address = address

    def order(self, **order: Any) -> str:
        body = json.dumps({"email": "ana@example.com", **order}).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/pedidos", body, kind, method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 202
            id: str = json.load(answer)["pedido_id"]
            return id

    def answers_until(self, state: str, id: str) -> list[dict[str, Any]]:
        """The answers that differ from the one before, up to that with `state`."""
        seen: list[dict[str, Any]] = []

        def has_come() -> bool:
            with urllib.request.urlopen(f"{self.address}/pedidos/{id}/estado", timeout=10) as answer:
                found = json.load(answer)
            if seen[-1:] != [found]:
                seen.append(found)
            assert found["estado"] in ("PENDING", "STARTED", "PROGRESS", "RETRY", state), found
            return bool(found["estado"] == state)

        wait_until(has_come, 20, 0.02)
        return seen


@pytest.fixture(scope="module", params=["redis", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The example as its README starts it."""
    server = None
    url = "sqlite:///cola.db"
    if request.param == "redis":
        request.getfixturevalue("redis_server")  # says whether there is a Redis at all
        server = RedisServer().start()
        url = server.url()
    folder = tmp_path_factory.mktemp("orders")
    project = Project(folder, url, "orders_chain")
    project.environment |= {"PAUSA": "0.15", "PYTHONDONTWRITEBYTECODE": "1"}
    port = _free_port()
    try:
        project.start_worker("minicelery -A app.celery worker --loglevel=info --concurrency=4")
        project.start(f"flask --app app run --host 127.0.0.1 --port {port}", folder / "web.log", "Running on")
        Image.linear_gradient("L").resize((2400, 1600)).convert("RGB").save(project.folder / "foto.jpg")
        project.start("fotos.py foto.jpg", folder / "fotos.log", "")  # its mail takes three seconds
        yield Shop(project, f"http://127.0.0.1:{port}")
    finally:
        project.close()
        if server is not None:
            server.stop()


def test_the_chain_as_it_was_printed_fails_and_says_why(shop: Shop) -> None:
    Image.new("RGB", (8, 8)).save(shop.project.folder / "otra.jpg")
    (shop.project.folder / "as_printed.py").write_text(AS_PRINTED)

    assert "enviar_correo() takes 3 positional arguments but 4 were given" in shop.project.run(
        "as_printed.py"
    )


def test_an_order_is_seen_in_each_step_and_its_mail_is_tried_again(shop: Shop) -> None:
    id = shop.order(importe=250, correos_que_fallan=2)

    answers = shop.answers_until("SUCCESS", id)
    steps = [answer["progreso"] for answer in answers if "progreso" in answer]
    assert [step["actual"] for step in steps] == sorted(step["actual"] for step in steps)
    assert {"validar pago", "preparar envío"} <= {step["paso"] for step in steps}
    assert answers[-1]["resultado"] == {"guia": f"MX-{id[:8]}", "intentos": 3, "status": "completado"}
    assert f"Correo enviado a ana@example.com: su envío es MX-{id[:8]}" in shop.project.logged(f"MX-{id[:8]}")


def test_an_order_that_is_not_paid_for_fails_with_the_reason_and_goes_no_further(shop: Shop) -> None:
    id = shop.order(importe=0)

    failed = shop.answers_until("FAILURE", id)[-1]
    assert failed["error"] == "pago rechazado: importe 0"
    assert f"MX-{id[:8]}" not in shop.project.log.read_text()


def test_an_order_can_be_drawn(shop: Shop) -> None:
    id = shop.order(importe=1)
    shop.answers_until("SUCCESS", id)

    chart = shop.project.run(f"minicelery -A app.celery graph {id}")
    assert chart.startswith("flowchart LR\n")
    assert chart.count("✓ SUCCESS") == 3


def test_an_order_that_there_is_not_is_not_found(shop: Shop) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        shop.answers_until("SUCCESS", "00000000-0000-0000-0000-000000000000")


def test_a_photo_is_there_in_three_sizes_and_then_a_mail_is_sent(shop: Shop) -> None:
    printed = shop.project.folder.parent / "fotos.log"

    sizes, mail = wait_until(lambda: _lines(printed, 2), 20)
    assert sizes == str({name: f"foto_{name}.jpg" for name in ("thumbnail", "medium", "large")})
    assert mail == str({"destinatario": "admin@site.com", "status": "enviado"})
    assert (shop.project.folder / "foto_medium.jpg").exists()
    log = shop.project.logged("Correo enviado a admin@site.com: Imagen procesada")
    assert log.index("Task procesar_imagen[") < log.index("Task enviar_correo[")


def _lines(file: Path, count: int) -> list[str] | None:
    lines = file.read_text().splitlines()
    return lines if len(lines) >= count else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
