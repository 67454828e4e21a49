"""rediss://: the same broker and store over TLS, and what a wrong certificate leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from minicelery.exceptions import OperationalError
from minicelery.message import Outcome
from minicelery.record import encode
from tests.servers import RedisServer, free_port

# Made for these tests, for 127.0.0.1 and nothing else.
TLS = Path(__file__).parent.parent / "data" / "tls"


@pytest.fixture
def tls_port(private_redis: RedisServer) -> int:
    port = free_port()
    for name, value in (
        ("tls-cert-file", TLS / "cert.pem"),
        ("tls-key-file", TLS / "key.pem"),
        ("tls-ca-cert-file", TLS / "cert.pem"),
        ("tls-auth-clients", "no"),
        ("tls-port", port),
    ):
        assert private_redis.command("CONFIG", "SET", name, str(value)).startswith(b"+OK")
    return port


def app_at(port: int, **tls: Any) -> Celery:
    url = f"rediss://127.0.0.1:{port}/0"
    app = Celery(
        "tls", broker=url, backend=url, broker_use_ssl=tls, redis_backend_use_ssl=tls, set_as_current=False
    )
    app.task(name="noop")(lambda: None)
    return app


def test_a_task_goes_there_and_its_result_comes_back_over_tls(tls_port: int) -> None:
    app = app_at(tls_port, ssl_ca_certs=str(TLS / "cert.pem"))
    result = app.tasks["noop"].delay()
    consumer = app.broker.consumer(["celery"], "tls", app.backend)
    assert consumer.swap((), 1, 0.05) != []
    assert consumer.swap((), 1, 0.05) == []  # waits for the bell over TLS too
    consumer.close()
    [delivery] = (consumer := app.broker.consumer(["celery"], "again", app.backend)).swap((), 1, 10.0)
    consumer.swap([Outcome(delivery, record=encode(result.id, "SUCCESS", 5))], 0, 0)
    assert result.get(timeout=5) == 5
    consumer.close()
    app.close()


def test_options_in_the_url_choose_the_certificate(tls_port: int) -> None:
    url = f"rediss://127.0.0.1:{tls_port}/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={TLS / 'cert.pem'}"
    app = Celery("tls", broker=url, set_as_current=False)
    app.send_task("noop")
    assert app.broker.size("celery") == 1
    app.close()


def test_a_certificate_that_nobody_vouches_for_is_refused_in_words(tls_port: int) -> None:
    app = app_at(tls_port)
    with pytest.raises(OperationalError, match="certificate"):
        app.tasks["noop"].delay()
    app.close()


def test_a_server_without_tls_is_refused_in_time(private_redis: RedisServer) -> None:
    app = app_at(private_redis.port, ssl_cert_reqs="none")
    with pytest.raises(OperationalError, match="cannot reach Redis"):
        app.tasks["noop"].delay()
    app.close()
