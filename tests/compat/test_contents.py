"""How arguments and results are written: serializers, compression, and what is accepted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from minicelery import security
from minicelery.exceptions import ContentDisallowed, EncodeError, ImproperlyConfigured, SecurityError
from minicelery.message import Record
from minicelery.serialization import compression, set_signer
from minicelery.worker import Worker
from tests.compat.stage import Stage, each


def accept(stage: Stage, *names: str) -> None:
    stage.app.conf.accept_content = list(names)


def echo(stage: Stage, **options: Any) -> Any:
    return stage.app.task(lambda x: x, name="echo", **options)


# -- serializers -----------------------------------------------------------------------------------------

DATA: list[Any] = [1, 2.5, None, True, "é☃", {"a": [1, {"b": None}]}]
JSON_TYPES: list[Any] = [
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc), date(2026, 1, 2), time(3, 4, 5),
    Decimal("1.10"), UUID(int=7), b"bytes", b"\xff\x00",
]  # fmt: skip


@each({
    "json": ("json", "application/json", [*DATA, *JSON_TYPES]),
    "msgpack": ("msgpack", "application/x-msgpack", [*DATA, b"\xff\x00"]),
    "yaml": ("yaml", "application/x-yaml", DATA),
})  # fmt: skip
def test_arguments_and_results_go_through_a_serializer_and_back(stage: Stage, case: Any) -> None:
    name, content_type, value = case
    accept(stage, name)
    stage.app.conf.task_serializer = stage.app.conf.result_serializer = name
    task = echo(stage)
    assert stage.message(task, value).content_type == content_type
    assert stage.run(task, value).get(timeout=1) == value


def test_pickle_is_for_who_asks_for_it(stage: Stage) -> None:
    accept(stage, "pickle")
    stage.app.conf.task_serializer = stage.app.conf.result_serializer = "pickle"
    task = echo(stage)
    assert stage.message(task, {1, 2}).content_type == "application/x-python-serialize"
    assert stage.run(task, {1, 2}).get(timeout=1) == {1, 2}


def test_pickle_is_not_read_where_it_is_not_accepted(stage: Stage) -> None:
    found = stage.run(echo(stage), 1, serializer="pickle")
    assert found.state == "FAILURE" and stage.app.broker.dead("celery") == 1
    assert "pickle" in str(found.result) or "python-serialize" in str(found.result)


def test_a_worker_that_is_root_refuses_pickle(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("C_FORCE_ROOT", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    accept(stage, "json", "pickle")
    with pytest.raises(
        (SecurityError, ImproperlyConfigured, RuntimeError), match=r"(?i)root.*C_FORCE_ROOT|C_FORCE_ROOT"
    ):
        Worker(stage.app, pool="solo", quiet=True).run()


@pytest.fixture(autouse=True)
def unsigned_afterwards() -> Iterator[None]:
    yield
    set_signer(None, None)
    security._signed_types = frozenset()


def signed(stage: Stage, folder: Any) -> None:
    """Have the app sign its messages, with a key and certificate made here."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "compat")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1000)
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(2100, 1, 1))
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    stage.app.conf.update(
        security_key=str(folder / "key.pem"), security_certificate=str(folder / "cert.pem"),
        security_cert_store=str(folder / "cert*.pem"),
        task_serializer="auth", accept_content=["auth"], result_accept_content=["json"],
    )  # fmt: skip
    stage.app.setup_security()


def test_signed_messages_are_run_and_altered_ones_are_not(stage: Stage, tmp_path: Any) -> None:
    pytest.importorskip("cryptography", reason="the extra `auth`")
    signed(stage, tmp_path)
    task = echo(stage)
    message = stage.message(task, 7)
    assert message.content_type == "application/data"
    assert stage.run(task, 7).get(timeout=1) == 7
    message.body = message.body[:-12] + b"AAAAAAAAAAA="
    stage.app.broker.publish([message])
    [outcome] = stage.work()
    assert outcome.record is not None and outcome.record.state == "FAILURE"
    assert stage.app.broker.dead("celery") == 1


def test_an_unknown_serializer_is_refused_with_those_there_are(stage: Stage) -> None:
    with pytest.raises((ValueError, EncodeError, ImproperlyConfigured), match=r"jsno.*json"):
        echo(stage).apply_async((1,), serializer="jsno")


def test_what_json_cannot_carry_is_refused_at_the_call(stage: Stage) -> None:
    task = echo(stage)
    for value in ({1, 2}, 1j, object()):
        with pytest.raises(EncodeError, match="argument 'x' of echo"):
            task.delay(value)
    assert not stage.sent()


# -- what is accepted --------------------------------------------------------------------------------------


@each({"accept_content": ["json"], "accept_content, MIME type": ["application/json"]})
def test_a_message_of_another_content_is_kept_and_not_run(stage: Stage, case: list[str]) -> None:
    accept(stage, *case)
    task = echo(stage)
    bad, good = task.apply_async((1,), serializer="msgpack"), task.delay(2)
    stage.work()
    assert (bad.state, good.get(timeout=1)) == ("FAILURE", 2)
    assert stage.app.broker.dead("celery") == 1


def test_a_result_of_another_content_is_not_read(stage: Stage) -> None:
    stage.app.conf.result_accept_content = ["json"]
    stage.app.conf.result_serializer = "msgpack"
    found = stage.run(echo(stage), 1)
    with pytest.raises((ContentDisallowed, ImproperlyConfigured), match="msgpack"):
        found.get(timeout=1)


def test_a_stored_error_that_is_no_exception_class_is_not_made(stage: Stage) -> None:
    meta = {"exc_type": "system", "exc_message": ["echo hacked"], "exc_module": "os"}
    stored = {"status": "FAILURE", "result": meta, "traceback": None, "children": [], "task_id": "an-id"}
    stage.app.backend.store([Record("an-id", json.dumps(stored).encode(), "FAILURE")])
    with pytest.raises(SecurityError, match=r"os\.system"):
        stage.app.AsyncResult("an-id").get(timeout=1)


# -- compression -------------------------------------------------------------------------------------------

COMPRESSIONS = {
    "gzip": "application/x-gzip", "zlib": "application/x-gzip",
    "bzip2": "application/x-bz2", "bzip": "application/x-bz2",
    "lzma": "application/x-lzma", "xz": "application/x-lzma",
    "zstd": "application/zstd", "zstandard": "application/zstd",
    "brotli": "application/x-brotli",
}  # fmt: skip


@each({name: (name, content_type) for name, content_type in COMPRESSIONS.items()})
def test_a_body_may_be_compressed(stage: Stage, case: Any) -> None:
    name, content_type = case
    task = echo(stage)
    message = stage.message(task, "long " * 2000, compression=name)
    assert message.headers["compression"] == content_type and len(message.body) < 1000
    assert stage.run(task, "long " * 2000, compression=name).get(timeout=1) == "long " * 2000


def test_a_body_that_unpacks_to_far_too_much_is_kept_and_not_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "LARGEST_BODY", 1 << 20)  # of 512 MiB
    message = stage.message(echo(stage), "x" * (1 << 22), compression="gzip")
    stage.app.broker.publish([message])
    [outcome] = stage.work()
    assert stage.app.broker.dead("celery") == 1 and "beyond 1048576 bytes" in str(outcome.reason)
