"""The Flask tutorial, end to end: a site, workers, beat, Flower and a Redis of its own, and an HTTP client."""

from __future__ import annotations

import http.server
import importlib.util
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from minicelery import Celery
from minicelery.beat.lease import lead_of
from tests.browser import Browser
from tests.examples.flask_sites import FlaskSite
from tests.examples.project import LIMIT, least, took
from tests.servers import RedisServer
from tests.waiting import wait_until

pytest.importorskip("flask")
pytest.importorskip("requests")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.timeout(180)  # a slow machine starts four programs

PASSWORD = "muy-secreto"
PRINTED = "redis://localhost:6379/0"
WORKER = "minicelery -A app.celery worker --loglevel=info --concurrency=4"
BEAT = "minicelery -A app.celery beat --loglevel=info"
WORKER_WITH_BEAT = "minicelery -A app.celery worker --beat --loglevel=info"
FLOWER = "minicelery -A app.celery flower --port=5555"
ENTRIES = {
    "limpiar-sesiones-expiradas": "limpiar_sesiones",
    "backup-diario": "backup_base_datos",
    "reporte-semanal": "generar_reporte",
    "facturacion-mensual": "generar_facturas",
}
A_MONTH = 32 * 86400.0
PG_DUMP = '#!/bin/sh\necho "$@" >> "$0.calls"\n'


class Site(FlaskSite):
    """The running example."""

    photo = broken = ""  # ids of tasks: photos that were uploaded before the tests began

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        super().__init__(folder, redis.url(), "flask_factory")
        self.redis = redis
        self.flower_log = folder / "flower.log"
        self.photos_log = folder / "fotos.log"
        self.replace("app.py", PRINTED, redis.url())
        self.uploads = folder / "uploads"
        self.pg_dump = folder / "bin" / "pg_dump"  # stands in for the database's program
        self.pg_dump.parent.mkdir()
        self.pg_dump.write_text(PG_DUMP)
        self.pg_dump.chmod(0o755)
        del self.environment["CELERY_BROKER_URL"]
        self.environment |= {
            "UPLOAD_FOLDER": str(self.uploads),
            "PATH": f"{self.pg_dump.parent}:{self.environment['PATH']}",
        }

    def state(self, id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/tarea/{id}")
        return answer

    def call(self, *words: str) -> str:
        """What `minicelery call` prints: the id of the task that it sends."""
        return self.run(f"minicelery -A app.celery call {' '.join(words)}").strip()

    def upload(self, filename: str, content: bytes) -> str:
        """Post the photo; the id of its task."""
        boundary = uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="foto"; filename="{filename}"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        began = time.monotonic()
        status, answer = self.post("/procesar-foto", body, f"multipart/form-data; boundary={boundary}")
        assert status == 202
        state = self.state(answer["tarea_id"])["estado"]
        assert state == "PENDING" or time.monotonic() - began > 5  # its countdown
        return str(answer["tarea_id"])


@pytest.fixture(scope="module")
def site(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The example as its README starts it; `redis_server` says whether there is a Redis at all."""
    redis = RedisServer(requirepass=PASSWORD).start()
    site = Site(tmp_path_factory.mktemp("flask"), redis)
    try:
        site.start_worker(site.documented(WORKER))
        if importlib.util.find_spec("flower"):  # it switches the events of tasks on after some seconds
            command = site.documented(FLOWER, "--address=127.0.0.1").replace("5555", "0")
            site.start(command, site.flower_log, "")
        site.serve()
        site.photo = site.upload("mi.foto.jpg", _photo(2400, 1600))
        site.broken = site.upload("foto.jpg", b"not a photo")
        (site.folder / "foto.jpg").write_bytes(_photo(2400, 1600))
        site.start("fotos.py foto.jpg", site.photos_log, "")  # its mail takes three seconds
        yield site
    finally:
        site.close()
        redis.stop()


def inspected_at_work(site: Site) -> str:
    """What `inspect active` prints while a report is made: more of them where ten seconds are too few."""
    command = site.documented("minicelery -A app.celery inspect active")
    with Celery("app", broker=site.redis.url(), set_as_current=False) as app:
        for more in (0, 4, 8):
            for _ in range(more):
                app.send_task("generar_reporte", ("semanal", {"semana": "actual"}))
            printed = site.run(command)
            if "generar_reporte" in printed:
                break
    return printed


def test_each_entry_of_the_schedule_is_sent_when_its_time_has_come(site: Site) -> None:
    """In a month that never was: beat is told that it has run each entry a month ago, and begins again."""
    log = site.log.with_name("beat.log")
    with Celery("app", broker=site.redis.url(), set_as_current=False) as app:
        topic = f"beat.{lead_of(app)}"
        site.start_and_end(
            site.documented(BEAT),
            log,
            "beat: leading",
            lambda: app.broker.recall(topic).keys() == ENTRIES.keys(),
        )
        assert "Sending due task" not in log.read_text()
        for when in (
            "every 30 minutes",
            "at 02:00;",
            "at 09:00 on Mondays",
            "at 06:00 on the 1st of the month",
        ):
            assert when in log.read_text()
        kept = {name: json.loads(text) for name, text in app.broker.recall(topic).items()}
        past = {
            name: json.dumps({**one, "last": one["last"] - A_MONTH}).encode() for name, one in kept.items()
        }
        app.broker.remember_all(topic, past, A_MONTH)
    site.start(site.documented(BEAT), log, "beat: leading")

    wait_until(lambda: {name: task for name, task, _ in _sent(log)} == ENTRIES, LIMIT)
    ids = {task: id for _, task, id in _sent(log)}
    for task, result in (
        ("limpiar_sesiones", {"eliminadas": 42}),
        ("backup_base_datos", {"status": "backup completado"}),
        ("generar_facturas", {"status": "facturado"}),
    ):
        assert site.answers_until("SUCCESS", f"/tarea/{ids[task]}")[-1]["resultado"] == result
    assert "-U usuario -d mi_app -f /backups/backup_" in Path(f"{site.pg_dump}.calls").read_text()
    assert "generar_reporte" in inspected_at_work(site)


def test_a_registration_answers_at_once_and_its_mail_follows(site: Site) -> None:
    answers = []

    def register() -> None:
        answers.append(site.post("/registro", {"email": "ana@example.com"}))

    assert least((took(register) for _ in range(5)), 0.3) < 0.3

    for _ in range(5):  # again, where the page was read when the mail had been sent
        status, answer = answers[-1]
        assert (status, answer["mensaje"]) == (201, "Usuario registrado")
        id = answer["tarea_correo_id"]
        seen = site.answers_until("SUCCESS", f"/tarea/{id}")
        if pending := seen[0] == {"tarea_id": id, "estado": "PENDING"}:
            break
        register()
    assert pending
    assert seen[-1]["resultado"] == {"destinatario": "ana@example.com", "status": "enviado"}
    log = site.logged(f"Task enviar_correo[{id}] succeeded in 3.")
    assert "Correo enviado a ana@example.com: Bienvenido a nuestra plataforma" in log


def test_an_import_is_seen_in_progress_before_it_is_done(site: Site) -> None:
    table = site.folder / "datos.csv"
    for rows in (5000, 20000, 80000):  # more, where the command has taken longer to end than the import
        table.write_text("".join(f"{number},nombre {number}\n" for number in range(rows)))
        id = site.call("importar_datos", str(table))
        seen = site.answers_until("SUCCESS", f"/tarea/{id}")
        assert seen[-1]["resultado"] == {"total_importados": rows, "status": "completado"}
        # the page reads the store up to five times, so that its last reading may know of the end
        if progress := [one["progreso"] for one in seen if "actual" in one.get("progreso", {})]:
            break
    assert progress[0]["total"] == rows
    assert progress[0]["porcentaje"] == int(progress[0]["actual"] / rows * 100)


def test_an_api_that_is_away_is_called_again_after_one_and_two_seconds(site: Site) -> None:
    with _Api() as api:
        id = site.call("llamar_api_externa", f"{api.url}/alta", '{"nombre":"Ana"}')
        log = site.logged(f"Task llamar_api_externa[{id}] retry 2/5 in 2s: ConnectionError(")
        assert f"Task llamar_api_externa[{id}] retry 1/5 in 1s: ConnectionError(" in log
        assert site.state(id)["estado"] == "RETRY"
        api.begin()
        answer = site.answers_until("SUCCESS", f"/tarea/{id}")[-1]
        assert answer["resultado"] == {"recibido": {"nombre": "Ana"}}


def test_an_error_of_the_servers_is_tried_again_in_a_minute_and_one_of_the_clients_is_not(site: Site) -> None:
    with _Api() as api:
        api.begin()
        theirs = site.call("llamar_api_externa", f"{api.url}/503", "{}")
        ours = site.call("llamar_api_externa", f"{api.url}/404", "{}")
        site.logged(f"Task llamar_api_externa[{theirs}] retry 1/5 in 60s: HTTPError('503 Server Error")
        answer = site.answers_until("FAILURE", f"/tarea/{ours}")[-1]
        assert answer["error"].startswith("404 Client Error")


def test_the_chain_as_it_is_printed_fails_and_the_worker_says_what_to_write(site: Site) -> None:
    (site.folder / "una.jpg").write_bytes(_photo(8, 8))
    site.run("cadena.py una.jpg")

    log = site.logged("enviar_correo() takes 3 positional arguments but 4 were given\nhint: ")
    hint = "as a link of a chain it is called with the result of the one before; enviar_correo.si(…)"
    assert hint in log
    assert hint in (site.folder / "README.md").read_text(encoding="utf-8")
    assert (site.folder / "una_large.jpg").exists()  # the link before it has run


def test_the_chain_with_si_makes_three_sizes_and_then_sends_a_mail(site: Site) -> None:
    sizes, mail = wait_until(lambda: _lines(site.photos_log, 2), LIMIT)
    assert sizes == str({name: f"foto_{name}.jpg" for name in ("thumbnail", "medium", "large")})
    assert mail == str({"destinatario": "admin@site.com", "status": "enviado"})
    site.logged("Correo enviado a admin@site.com: Imagen procesada")


def test_an_uploaded_photo_is_there_in_three_sizes_after_its_countdown(site: Site) -> None:
    paths = site.answers_until("SUCCESS", f"/tarea/{site.photo}")[-1]["resultado"]
    sizes = {name: _size(path) for name, path in paths.items()}
    assert sizes == {"thumbnail": (150, 100), "medium": (800, 533), "large": (1620, 1080)}
    assert {Path(path).parent for path in paths.values()} == {site.uploads}


def test_a_file_that_is_no_image_fails_and_the_site_says_why(site: Site) -> None:
    answer = site.answers_until("FAILURE", f"/tarea/{site.broken}")[-1]
    assert "cannot identify image file" in answer["error"]


def test_the_worker_shows_its_tasks_and_masks_the_password(site: Site) -> None:
    log = site.log.read_text()

    assert re.search(r"transport:\s+redis://:\*+@127\.0\.0\.1:\d+/0", log)
    assert "concurrency: 4 (prefork)" in log
    assert "America/Mexico_City" in log
    for name in (
        *ENTRIES.values(),
        "enviar_correo",
        "procesar_imagen",
        "importar_datos",
        "llamar_api_externa",
    ):
        assert f". {name}\n" in log
    assert PASSWORD not in log


def test_flower_shows_the_mail_in_a_browser(site: Site, browser: Browser) -> None:
    pytest.importorskip("flower")
    site.logged("Task events are enabled by remote control")
    url = re.findall(r"Visit me at (http://[\d.:]+)", site.flower_log.read_text())[0]
    _, answer = site.post("/registro", {"email": "eva@example.com"})
    id = answer["tarea_correo_id"]

    def shown() -> bool:
        browser.open(f"{url}/task/{id}")
        return "SUCCESS" in browser.text("dl")

    wait_until(shown, LIMIT, 0.2)
    assert "enviar_correo" in browser.text()
    assert "eva@example.com" in browser.text()
    browser.open(f"{url}/workers")
    browser.wait_for("document.body.innerText.includes('celery@')")


def test_one_command_runs_a_worker_and_beat(site: Site) -> None:
    log = site.log.with_name("both.log")
    site.start(site.documented(WORKER_WITH_BEAT), log, " ready")
    wait_until(lambda: "beat: starting with 4 entries" in log.read_text(), LIMIT)
    assert "generar_facturas" in site.run(site.documented("minicelery -A app.celery schedule list"))
    assert "online" in site.run(site.documented("minicelery -A app.celery status"))


class _Api:
    """An API at a port of its own, where nothing answers until it begins."""

    def __enter__(self) -> _Api:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers, bind_and_activate=False)
        self._server.server_bind()  # who connects is refused: it does not listen yet
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        return self

    def begin(self) -> None:
        self._server.server_activate()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join(10)
        self._server.server_close()


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code = int(self.path[1:]) if self.path[1:].isdigit() else 200
        text = json.dumps({"recibido": body}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _sent(log: Path) -> list[tuple[str, str, str]]:
    """Entry, task and id of each run in beat's log."""
    return re.findall(r"Sending due task (\S+) \((\w+)\)\[([0-9a-f-]{36})\]", log.read_text())


def _lines(file: Path, count: int) -> list[str] | None:
    lines = file.read_text().splitlines()
    return lines if len(lines) >= count else None


def _photo(width: int, height: int) -> bytes:
    picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


def _size(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        width, height = picture.size
    return width, height
