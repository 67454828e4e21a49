"""Signed messages beside Celery's, what is refused of them, and who may read pickles."""

from __future__ import annotations

import base64
import inspect
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, record, security, serialization, states
from minicelery.exceptions import (
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
    SecurityError,
)
from minicelery.message import Delivery, Message, Verdict
from minicelery.security import check_content, load_store, refuse_pickle_as_root
from minicelery.serialization import accepted, dumps, loads
from minicelery.settings.table import TABLE
from minicelery.worker.executor import Executor

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric import ec

from tests.certificates import Identity, new_identity, new_key, write_certificate, write_key

SIGNED = accepted(["auth"])
VALUE = [[1, "é", {"a": None}], {"k": [2.5]}, {}]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identities")


@pytest.fixture(scope="session")
def alice(folder: Path) -> Identity:
    return new_identity(folder, "alice")


@pytest.fixture(scope="session")
def bob(folder: Path) -> Identity:
    return new_identity(folder, "bob")


@pytest.fixture(autouse=True)
def unsigned_afterwards() -> Iterator[None]:
    yield
    serialization.set_signer(None, None)
    security._signed_types = frozenset()


@pytest.fixture
def app(alice: Identity, bob: Identity, folder: Path) -> Celery:
    """An app that signs as alice and trusts her and bob."""
    app = Celery("signed", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        task_serializer="auth", accept_content=["auth"], result_serializer="auth", result_backend=None,
        security_key=alice.key, security_certificate=alice.certificate, security_cert_store=folder / "trusted",
    )  # fmt: skip
    return app


def oracle(who: Identity, store: Path, digest: str = "sha256", serializer: str = "json") -> Any:
    """What Celery signs and verifies with."""
    found = pytest.importorskip("celery.security.serialization")
    key = found.PrivateKey(who.key.read_text())
    certificate = found.Certificate(who.certificate.read_text())
    return found.SecureSerializer(key, certificate, found.FSCertStore(str(store)), digest, serializer)


def parts(data: bytes) -> list[bytes]:
    return base64.b64decode(data).split(b"\0\1", 4)


def packed(fields: list[bytes]) -> bytes:
    return base64.b64encode(b"\0\1".join(fields))


# -- beside Celery -----------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "pickle"])
@pytest.mark.parametrize("digest", ["sha256", "sha512", "sha3_256"])
def test_celery_reads_what_we_sign_and_we_read_what_celery_signs(
    app: Celery, bob: Identity, folder: Path, serializer: str, digest: str
) -> None:
    app.setup_security(digest=digest, serializer=serializer)
    theirs = oracle(bob, folder / "trusted", digest, serializer)
    data, content_type, encoding = dumps(VALUE, "auth")
    assert (content_type, encoding) == ("application/data", "utf-8")
    assert theirs.deserialize(data) == VALUE
    assert loads(theirs.serialize(VALUE).encode(), content_type, encoding, SIGNED) == VALUE


def test_the_fields_are_celerys_to_the_byte_but_for_the_signature(
    app: Celery, alice: Identity, folder: Path
) -> None:
    app.setup_security()
    ours = parts(dumps(VALUE, "auth")[0])
    theirs = parts(oracle(alice, folder / "trusted").serialize(VALUE).encode())
    assert ours[0] == theirs[0] and ours[2:] == theirs[2:]
    assert len(ours[1]) == len(theirs[1])


def test_a_body_may_hold_what_separates_the_fields(app: Celery) -> None:
    app.setup_security(serializer="msgpack")
    value = [b"\0\1\0\1", "\0\1"]
    assert loads(*dumps(value, "auth"), SIGNED)[1] == value[1]


def test_the_arguments_of_setup_security_are_celerys() -> None:
    celery = pytest.importorskip("celery")
    assert list(inspect.signature(Celery.setup_security).parameters) == list(
        inspect.signature(celery.Celery.setup_security).parameters
    )


# -- what is refused of messages -----------------------------------------------------------------


def refused(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        loads(data, "application/data", "utf-8", SIGNED)
    assert isinstance(caught.value.__cause__, SecurityError)
    return str(caught.value)


def test_an_altered_message_is_refused(app: Celery) -> None:
    app.setup_security()
    fields = parts(dumps(["pay", 10], "auth")[0])
    assert "does not fit" in refused(packed([*fields[:4], fields[4].replace(b"10", b"99")]))
    other = parts(dumps(["pay", 11], "auth")[0])
    assert "does not fit" in refused(packed([fields[0], other[1], *fields[2:]]))
    assert "does not fit" in refused(packed([fields[0], base64.b64encode(b"junk"), *fields[2:]]))
    assert "does not fit" in refused(packed([fields[0], b"", *fields[2:]]))


def test_a_message_signed_with_another_digest_is_refused(app: Celery, bob: Identity, folder: Path) -> None:
    app.setup_security()
    assert "another security_digest than sha256" in refused(
        oracle(bob, folder / "trusted", "sha512").serialize(VALUE).encode()
    )


def test_a_message_of_somebody_unknown_is_refused(app: Celery, tmp_path: Path) -> None:
    app.setup_security()
    mallory = new_identity(tmp_path, "mallory")
    forged = oracle(mallory, tmp_path / "trusted").serialize(VALUE).encode()
    assert "Tests mallory" in refused(forged) and "not in security_cert_store" in refused(forged)
    as_alice = packed([parts(dumps(VALUE, "auth")[0])[0], *parts(forged)[1:]])
    assert "does not fit" in refused(as_alice)


def test_a_certificate_that_expires_while_the_worker_runs_is_refused(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.setup_security()
    data = dumps(VALUE, "auth")[0]

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=2)

    monkeypatch.setattr(security, "datetime", Later)
    assert "expired on" in refused(data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"***", b"abc", base64.b64encode(b"a"), base64.b64encode(b"\0\1".join([b"a"] * 4)),
        base64.b64encode(b"\0\1" * 4), base64.b64encode(b"\xff\0\1\xff\0\1\xff\0\1\xff\0\1\xff"),
        json.dumps(VALUE).encode(), pickle.dumps(VALUE), bytes(1000),
    ],
)  # fmt: skip
def test_what_is_not_signed_is_refused(app: Celery, data: bytes) -> None:
    app.setup_security()
    assert "SecurityError" in refused(data)


def test_another_content_type_cannot_be_put_on_a_signed_body(
    app: Celery, bob: Identity, folder: Path
) -> None:
    app.setup_security()
    fields = parts(dumps(VALUE, "auth")[0])
    for content_type in (
        b"application/x-yaml",
        b"application/x-python-serialize",
        b"application/data",
        b"\0",
    ):
        said = refused(packed([*fields[:2], content_type, *fields[3:]]))
        assert "allows application/json" in said
    assert "allows application/json" in refused(
        oracle(bob, folder / "trusted", serializer="msgpack").serialize(VALUE).encode()
    )


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@pytest.mark.parametrize("allowed", [None, ["json"], ["msgpack", "yaml"]])
def test_a_signed_pickle_is_not_loaded_unless_it_is_allowed(
    app: Celery, bob: Identity, folder: Path, tmp_path: Path, allowed: Any
) -> None:
    app.setup_security(allowed)
    trap = tmp_path / "was-here"
    data = oracle(bob, folder / "trusted", serializer="pickle").serialize([Trap(trap)]).encode()
    assert "application/x-python-serialize" in refused(data)
    assert not trap.exists()
    app.setup_security(["pickle"])
    loads(data, "application/data", "utf-8", SIGNED)[0].close()
    assert trap.exists(), "the trap would have worked"


def test_other_serializers_are_read_where_they_are_allowed(app: Celery, bob: Identity, folder: Path) -> None:
    app.setup_security(["application/x-msgpack", "yaml"])
    for serializer in ("json", "msgpack", "yaml"):
        data = oracle(bob, folder / "trusted", serializer=serializer).serialize(VALUE)
        assert loads(data.encode(), "application/data", "utf-8", SIGNED) == VALUE


def test_an_argument_that_cannot_be_carried_is_named(app: Celery) -> None:
    app.setup_security()

    @app.task(name="pay")
    def pay(amount: Any) -> None: ...

    with pytest.raises(EncodeError, match=r"argument 'amount' of pay is a set.*not JSON serializable"):
        pay.delay({1})


def test_a_worker_keeps_what_it_refuses_with_the_reason_and_goes_on(app: Celery) -> None:
    app.setup_security()
    ran: list[int] = []
    app.task(name="note")(ran.append)
    executor = Executor(app)
    body, content_type, encoding = dumps(([1], {}, {}), "auth")
    fields = parts(body)

    def outcome(body: bytes, content_type: str = content_type, **headers: Any) -> Any:
        message = Message("id", "note", body, headers, content_type=content_type, content_encoding=encoding)
        return executor.run(Delivery(message, 1))

    altered = outcome(packed([*fields[:4], fields[4].replace(b"1", b"2")]))
    assert altered.verdict is Verdict.REJECT and "does not fit" in altered.reason
    bare = outcome(b"[[1], {}, {}]", "application/json")
    assert bare.verdict is Verdict.REJECT and "application/json" in bare.reason
    assert ran == []
    assert outcome(body).verdict is Verdict.ACK
    small, header = serialization.compress(body, "zlib")
    assert outcome(small, compression=header).verdict is Verdict.ACK
    assert ran == [1, 1]


# -- results ---------------------------------------------------------------------------------


def test_a_signed_result_comes_back_and_an_altered_one_is_refused(app: Celery) -> None:
    app.setup_security()
    stored = record.encode("i", states.SUCCESS, 5, serializer="auth").document
    assert record.read(stored, app.conf)["result"] == 5
    fields = parts(stored)
    with pytest.raises(SecurityError, match="does not fit"):
        record.read(packed([*fields[:4], fields[4].replace(b"5", b"6")]), app.conf)
    with pytest.raises(SecurityError, match="not signed"):
        record.read(record.encode("i", states.SUCCESS, 5).document, app.conf)


def test_a_signed_failure_holds_the_exception(app: Celery) -> None:
    app.setup_security()
    document = record.exception_document(ValueError("bad", {1}))
    stored = record.encode("i", states.FAILURE, document, serializer="auth").document
    found = record.read(stored, app.conf)["result"]
    assert type(found) is ValueError and found.args == ("bad", "{1}")


# -- what is wrong at the start ------------------------------------------------------------------


def fails(app: Celery, words: str, kind: type[Exception] = ImproperlyConfigured, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        app.setup_security(**options)
    with pytest.raises(ImproperlyConfigured):
        dumps(1, "auth")


@pytest.mark.parametrize(
    "settings",
    [{"task_serializer": "json"}, {"accept_content": ["json"]}, {"accept_content": ["auth", "json"]}],
)
def test_it_must_be_the_only_serializer_as_in_celery(app: Celery, settings: dict[str, Any]) -> None:
    app.conf.update(settings)
    fails(app, r"needs task_serializer='auth' and accept_content=\['auth'\]")


@pytest.mark.parametrize("name", ["security_key", "security_certificate", "security_cert_store"])
def test_a_missing_path_is_named(app: Celery, name: str) -> None:
    app.conf[name] = None
    fails(app, f"needs {name}")
    app.conf[name] = "/no/such/file"
    fails(app, f"{name}.*/no/such/file")


def test_a_key_with_a_password_needs_it(app: Celery, alice: Identity, tmp_path: Path) -> None:
    key = new_key()
    locked = write_key(key, tmp_path / "locked.key", b"s3cret")
    own = write_certificate(key, tmp_path / "own.pem", "own")
    fails(app, "needs security_key_password", key=locked, cert=own)
    fails(app, "security_key_password is wrong", key=locked, cert=own, key_password="wrong")
    fails(app, "has no password, and security_key_password is set", key_password=b"s3cret")
    for password in ("s3cret", b"s3cret"):
        app.setup_security(key=locked, cert=own, key_password=password)
    app.conf.security_key_password = "s3cret"
    app.setup_security(key=locked, cert=own)
    assert dumps(1, "auth")[0]
    assert "s3cret" not in app.conf.humanize()


def test_files_that_are_something_else_are_named(app: Celery, alice: Identity, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    fails(app, "junk.pem' is not a private key", key=junk)
    fails(app, "junk.pem is not a certificate", cert=junk)
    fails(app, "junk.pem is not a certificate", store=junk)
    curve = ec.generate_private_key(ec.SECP256R1())
    fails(app, "not an RSA key", key=write_key(curve, tmp_path / "ec.key"))
    fails(app, "not of an RSA key", cert=write_certificate(curve, tmp_path / "ec.pem", "ec"))


def test_a_key_of_another_certificate_is_refused(app: Celery, bob: Identity) -> None:
    fails(app, "not the key that security_certificate was made for", key=bob.key)


def test_an_expired_certificate_in_the_store_is_named(app: Celery, tmp_path: Path) -> None:
    write_certificate(new_key(), tmp_path / "old.pem", "old", ends=timedelta(days=-1))
    fails(app, r"Tests old .*old\.pem\) expired on", SecurityError, store=tmp_path)


def test_one_certificate_twice_is_refused(app: Celery, alice: Identity, tmp_path: Path) -> None:
    for name in ("one.pem", "two.pem"):
        (tmp_path / name).write_bytes(alice.certificate.read_bytes())
    fails(app, r"(one|two).pem and .*(one|two)\.pem are both of", SecurityError, store=tmp_path)


def test_a_store_is_a_folder_a_pattern_or_a_file(alice: Identity, bob: Identity, folder: Path) -> None:
    ids = {one for who in (alice, bob) for one in load_store(who.certificate)}
    assert len(ids) == 2
    assert set(load_store(folder / "trusted")) == ids
    assert set(load_store(str(folder / "trusted" / "*.pem"))) == ids
    assert len(load_store(str(folder / "trusted" / "a*"))) == 1
    with pytest.raises(ImproperlyConfigured, match=r"fits no file.*\*\.pem"):
        load_store(str(folder / "nothing" / "*.pem"))


@pytest.mark.parametrize(
    ("digest", "words"), [("md5", "too weak"), ("sha1", "too weak"), ("sha", "sha512"), (5, "5")]
)
def test_a_digest_that_is_unknown_or_weak_is_refused(app: Celery, digest: Any, words: str) -> None:
    fails(app, f"security_digest must be one of sha256, .*{words}", digest=digest)
    with pytest.raises(ImproperlyConfigured, match="security_digest: expected 'sha256'"):
        app.conf.security_digest = digest


def test_the_setting_and_the_signer_know_the_same_digests() -> None:
    for name in security.DIGESTS:
        assert TABLE["security_digest"].kind.convert(name) == name
    assert TABLE["security_digest"].kind.expected == " or ".join(map(repr, security.DIGESTS))


def test_the_digest_of_the_settings_is_used(app: Celery, alice: Identity, folder: Path) -> None:
    app.conf.security_digest = "sha512"
    app.setup_security()
    theirs = oracle(alice, folder / "trusted", "sha512")
    assert theirs.deserialize(dumps(VALUE, "auth")[0]) == VALUE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"serializer": "jsno"}, "'jsno'"),
        ({"serializer": "auth"}, "by 'auth' itself"),
        ({"allowed_serializers": ["auth"]}, "by 'auth' itself"),
        ({"allowed_serializers": ["jsno"]}, "allowed_serializers .* lists 'jsno'"),
    ],
)
def test_a_serializer_that_cannot_be_signed_is_named(
    app: Celery, options: dict[str, Any], words: str
) -> None:
    fails(app, words, **options)


def test_without_cryptography_it_says_what_to_install(alice: Identity, folder: Path) -> None:
    script = f"""
import sys
sys.modules["cryptography"] = None
from minicelery import Celery
app = Celery(task_serializer="auth", accept_content=["auth"])
app.setup_security(key={str(alice.key)!r}, cert={str(alice.certificate)!r}, store={str(folder / "trusted")!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert "ImproperlyConfigured" in done.stderr and "pip install minicelery[auth]" in done.stderr


def test_a_signer_is_of_use_in_a_forked_child(app: Celery) -> None:
    app.setup_security()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads
        pid = os.fork()
    if pid == 0:
        os._exit(0 if loads(*dumps(VALUE, "auth"), SIGNED) == VALUE else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- pickle as root ------------------------------------------------------------------------------


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("C_FORCE_ROOT", raising=False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"accept_content": ["json", "pickle"]}, "accept_content lists pickle"),
        ({"accept_content": ["application/x-python-serialize"]}, "accept_content lists pickle"),
        ({"result_accept_content": ["pickle"]}, "result_accept_content lists pickle"),
    ],
)
def test_root_may_not_read_pickles_unless_it_is_forced(
    as_root: None, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], named: str
) -> None:
    conf = Celery(set_as_current=False).conf
    conf.update(settings)
    with pytest.raises(SecurityError, match=f"{named}.*as root.*C_FORCE_ROOT=1"):
        refuse_pickle_as_root(conf)
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    refuse_pickle_as_root(conf)
    monkeypatch.delenv("C_FORCE_ROOT")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    refuse_pickle_as_root(conf)


def test_root_may_not_read_signed_pickles_either(as_root: None, app: Celery) -> None:
    app.setup_security()
    refuse_pickle_as_root(app.conf)
    app.setup_security(["pickle"])
    with pytest.raises(SecurityError, match="allowed_serializers"):
        refuse_pickle_as_root(app.conf)


def test_root_may_read_everything_else(as_root: None) -> None:
    conf = Celery(set_as_current=False).conf
    conf.accept_content = ["json", "yaml", "msgpack"]
    refuse_pickle_as_root(conf)
    check_content(conf)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"accept_content": ["json", "pickle"]}, SecurityError, "as root"),
        ({"accept_content": ["json", "auth"]}, ImproperlyConfigured, r"accept_content names 'auth'.*setup_security"),
        ({"task_serializer": "auth"}, ImproperlyConfigured, r"task_serializer names 'auth'.*setup_security"),
        ({"accept_content": ["json", "text/x-own"]}, ImproperlyConfigured, "lists 'text/x-own'.*there are json"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:accept_content. 'text/x-own'")
def test_a_worker_that_could_not_read_its_messages_is_told_so_at_its_start(
    as_root: None, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    conf = Celery(set_as_current=False).conf
    conf.update(settings)
    with pytest.raises(error, match=words):
        check_content(conf)
