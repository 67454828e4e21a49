"""The Flask tutorial, end to end: a site, a worker and a Redis of its own, and an HTTP client."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.servers import RedisServer
from tests.waiting import wait_until

pytest.importorskip("flask")
Image = pytest.importorskip("PIL.Image")

EXAMPLE = Path(__file__).parents[2] / "examples" / "flask_factory"
PASSWORD = "muy-secreto"


@dataclass
class Site:
    """The running example, seen from outside."""

    address: str
    folder: Path
    environment: dict[str, str]

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.address + path))[1]

    def post(self, path: str, body: bytes, content_type: str) -> tuple[int, Any]:
        return self._ask(
            urllib.request.Request(self.address + path, body, {"Content-Type": content_type}, method="POST")
        )

    def state(self, id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/tarea/{id}")
        return answer

    def answers_until(self, state: str, id: str) -> dict[str, dict[str, Any]]:
        """The first answer with each state that was seen on the way to `state`, in order."""
        seen: dict[str, dict[str, Any]] = {}

        def has_come() -> bool:
            answer = self.state(id)
            seen.setdefault(answer["estado"], answer)
            return state in seen

        wait_until(has_come, 30.0, 0.02)
        return seen

    def command(self, *arguments: str) -> str:
        """What `minicelery -A app.celery …` prints."""
        return subprocess.run(
            [sys.executable, "-m", "minicelery", "-A", "app.celery", *arguments],
            cwd=EXAMPLE, env=self.environment, timeout=30, check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)


@pytest.fixture(scope="module")
def site(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The example as its README starts it; `redis_server` says whether there is a Redis at all."""
    folder = tmp_path_factory.mktemp("flask")
    redis = RedisServer(requirepass=PASSWORD).start()
    port = _free_port()
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CELERY_", "MINICELERY_"))
        },
        "REDIS_URL": redis.url(),
        "UPLOAD_FOLDER": str(folder / "uploads"),
        "PYTHONPATH": str(EXAMPLE.parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    worker = "minicelery -A app.celery worker --loglevel=info --concurrency=4"
    web = f"flask --app app run --host 127.0.0.1 --port {port}"
    processes = [
        _start(worker, folder / "worker.log", environment),
        _start(web, folder / "web.log", environment),
    ]
    site = Site(f"http://127.0.0.1:{port}", folder, environment)
    try:
        wait_until(lambda: " ready" in _alive(processes[0], folder / "worker.log"), 30)
        wait_until(lambda: "Running on" in _alive(processes[1], folder / "web.log"), 30)
        yield site
    finally:
        for process in processes:
            _end(process)
        redis.stop()


def test_a_registration_answers_at_once_and_its_mail_follows(site: Site) -> None:
    status, answer = site.post(
        "/registro", json.dumps({"email": "ana@example.com"}).encode(), "application/json"
    )

    assert status == 201
    answers = site.answers_until("SUCCESS", id := answer["tarea_correo_id"])
    assert list(answers) == ["PENDING", "SUCCESS"]
    assert answers["PENDING"] == {"tarea_id": id, "estado": "PENDING"}
    assert answers["SUCCESS"]["resultado"] == {"destinatario": "ana@example.com", "status": "enviado"}
    assert "Correo enviado a ana@example.com: Bienvenido a nuestra plataforma" in site.log()


def test_an_uploaded_photo_is_there_in_three_sizes_after_its_countdown(site: Site) -> None:
    status, answer = _upload(site, "foto", "mi.foto.jpg", _photo(2400, 1600))

    assert status == 202
    answers = site.answers_until("SUCCESS", answer["tarea_id"])
    assert list(answers) == ["PENDING", "SUCCESS"]
    paths = answers["SUCCESS"]["resultado"]
    sizes = {name: _size(path) for name, path in paths.items()}
    assert sizes == {"thumbnail": (150, 100), "medium": (800, 533), "large": (1620, 1080)}
    assert {Path(path).parent for path in paths.values()} == {site.folder / "uploads"}


def test_a_file_that_is_no_image_fails_and_the_site_says_why(site: Site) -> None:
    _, answer = _upload(site, "foto", "foto.jpg", b"not a photo")

    failure = site.answers_until("FAILURE", answer["tarea_id"])["FAILURE"]
    assert "cannot identify image file" in failure["error"]


def test_an_import_is_seen_in_progress_before_it_is_done(site: Site) -> None:
    table = site.folder / "datos.csv"
    table.write_text("".join(f"{number},nombre {number}\n" for number in range(5000)))
    id = site.command("call", "importar_datos", str(table)).strip()

    answers = site.answers_until("SUCCESS", id)
    progress = answers["PROGRESS"]["progreso"]
    assert progress["total"] == 5000
    assert progress["porcentaje"] == int(progress["actual"] / 50)
    assert answers["SUCCESS"]["resultado"] == {"total_importados": 5000, "status": "completado"}


def test_the_worker_shows_its_tasks_and_masks_the_password(site: Site) -> None:
    log = site.log()

    assert re.search(r"transport:\s+redis://:\*+@127\.0\.0\.1:\d+/0", log)
    assert "concurrency: 4 (prefork)" in log
    assert "America/Mexico_City" in log
    for name in ("enviar_correo", "procesar_imagen", "generar_reporte", "importar_datos"):
        assert f". {name}\n" in log
    assert PASSWORD not in log


def _photo(width: int, height: int) -> bytes:
    picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


def _size(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        width, height = picture.size
    return width, height


def _upload(site: Site, field: str, filename: str, content: bytes) -> tuple[int, Any]:
    boundary = uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return site.post("/procesar-foto", body, f"multipart/form-data; boundary={boundary}")


def _start(command: str, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=EXAMPLE, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip


def _alive(process: subprocess.Popen[bytes], log: Path) -> str:
    text = log.read_text()
    assert process.poll() is None, f"ended with {process.returncode}:\n{text[-3000:]}"
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
