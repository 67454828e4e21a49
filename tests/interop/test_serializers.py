"""Serializers, compression and signatures between the libraries: messages and results, both ways."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

import minicelery
from minicelery import record, serialization
from tests.interop.pair import TIMEOUT, _leave_results_alone, close_connections, fresh
from tests.servers import RedisServer
from tests.waiting import wait_until

celery = pytest.importorskip("celery", reason="real Celery is the other side")
pytest.importorskip("cryptography")
pytest.importorskip("yaml")

pytestmark = [
    pytest.mark.timeout(180),  # the first of them starts a server and workers
    pytest.mark.filterwarnings("ignore:Call to deprecated setex"),  # which Celery's backend does
]

ROOT = Path(__file__).parents[2]
LIBRARIES = ("celery", "minicelery")
SERIALIZERS = ("json", "msgpack", "yaml", "pickle")


class ParcelError(Exception):
    """An exception both sides know."""


class KeywordOnlyError(Exception):
    """One that can be pickled, and not read again."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


def make_app(library: str, kind: str, url: str, folder: str) -> Any:
    """The app of `library`; of the `kind` ``open``: all serializers, pickled results; or ``signed``."""
    module = importlib.import_module(library)
    app = module.Celery(f"{kind}-{library}", broker=url, backend=url, set_as_current=False)
    app.conf.task_default_queue = f"{kind}.{library}"
    if library == "celery":
        app.conf.broker_connection_retry_on_startup = True  # else it warns
    if kind == "open":
        app.conf.update(
            accept_content=[*SERIALIZERS],
            result_serializer="pickle",
            result_compression="zlib",
            result_extended=True,
        )
    else:
        app.conf.update(
            task_serializer="auth", accept_content=["auth"], result_serializer="auth",
            security_key=f"{folder}/{library}.key", security_certificate=f"{folder}/trusted/{library}.pem",
            security_cert_store=f"{folder}/trusted/*.pem",
        )  # fmt: skip
        app.setup_security()

    @app.task(name="echo", shared=False)
    def echo(*args: Any, **kwargs: Any) -> Any:
        return {"args": list(args), "kwargs": kwargs}

    @app.task(name="fail", shared=False)
    def fail(kind: str) -> None:
        exceptions = importlib.import_module(f"{library}.exceptions")
        raise ENDS[kind](exceptions)

    return app


ENDS: dict[str, Callable[[Any], BaseException]] = {
    "plain": lambda _: ValueError("bad", 42),
    "own": lambda _: ParcelError("lost", {"where": ["é"]}),
    "the library's": lambda exceptions: exceptions.MaxRetriesExceededError("enough"),
    "particular": lambda _: KeywordOnlyError(code=7),
    "local": lambda _: type("LocalError", (Exception,), {})("here"),
    "with what can't be carried": lambda _: ValueError("bad", open),
    "with what can't be pickled": lambda _: ValueError("bad", lambda: 1),
}


if "SERIALIZERS_APP" in os.environ:
    app = make_app(*json.loads(os.environ["SERIALIZERS_APP"]))


# -- workers ---------------------------------------------------------------------------------


@dataclass
class Site:
    """A Redis, and workers of both libraries and both kinds on it."""

    url: str
    folder: Path

    def __post_init__(self) -> None:
        self.workers: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self.apps: dict[tuple[str, str, str], Any] = {}

    def start(self) -> Site:
        for library in LIBRARIES:
            for kind in ("open", "signed"):
                with open(self.log(library, kind), "wb") as log:
                    self.workers[library, kind] = subprocess.Popen(
                        [sys.executable, "-m", library, "-A", __name__, "worker", "-P", "solo", "-l", "INFO"],
                        cwd=ROOT,
                        env={
                            **os.environ,
                            "SERIALIZERS_APP": json.dumps([library, kind, self.url, str(self.folder)]),
                            "C_FORCE_ROOT": "1",
                        },
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
        return self

    def await_workers(self) -> None:
        """Return when each of them has run a task."""
        for library, kind in self.workers:
            app = self.client("minicelery", kind, library)
            sent = app.tasks["echo"].delay()
            try:
                wait_until(lambda app=app, sent=sent: app.backend.load([sent.id])[0] is not None, timeout=120)  # type: ignore[misc]
            except AssertionError as error:
                log = self.log(library, kind).read_text()
                raise AssertionError(f"{error}\n{log[-4000:]}") from None

    def log(self, library: str, kind: str) -> Path:
        return self.folder / f"{library}.{kind}.log"

    def client(self, library: str, kind: str, worker: str) -> Any:
        """An app of `library` that sends to the worker of `worker`."""
        if (library, kind, worker) not in self.apps:
            app = make_app(library, kind, self.url, str(self.folder))
            app.conf.task_default_queue = f"{kind}.{worker}"
            self.apps[library, kind, worker] = app
        return self.apps[library, kind, worker]

    def stop(self) -> None:
        try:
            for (library, *_), app in self.apps.items():
                if library == "celery":
                    close_connections(app)
                app.close()
        finally:
            for worker in self.workers.values():
                worker.send_signal(signal.SIGQUIT)
            for worker in self.workers.values():
                try:
                    worker.wait(15)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait(5)


@pytest.fixture(scope="module")
def site(own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from tests.certificates import new_identity

    _leave_results_alone()
    folder = tmp_path_factory.mktemp("serializers")
    for name in LIBRARIES:
        new_identity(folder, name)
    found = Site(own_redis.url(db=3), folder).start()
    try:
        found.await_workers()
        yield found
    finally:
        found.stop()
        serialization.set_signer(None, None)
        kombu = importlib.import_module("kombu.serialization")
        kombu.disable_insecure_serializers()  # all but JSON, as it begins
        kombu.registry._set_default_serializer("json")


def ways(kind: str) -> Callable[[Any], Any]:
    """Run a test for each sender and each worker."""
    return pytest.mark.parametrize(
        ("sender", "worker", "kind"),
        [(sender, worker, kind) for sender in LIBRARIES for worker in LIBRARIES],
        ids=[f"{sender}-to-{worker}" for sender in LIBRARIES for worker in LIBRARIES],
    )


def outcome(app: Any, sent: Any) -> tuple[str, Any]:
    """State and result, as a reader of the sender's library has them."""
    if isinstance(app, minicelery.Celery):
        wait_until(lambda: app.backend.load([sent.id])[0] is not None, timeout=TIMEOUT)
        meta = record.read(app.backend.load([sent.id])[0].document, app.conf)
        return meta["status"], meta["result"]
    sent.get(timeout=TIMEOUT, propagate=False)
    return sent.state, sent.result


VALUES: dict[str, tuple[Any, list[str]]] = {
    "plain": ([1, "é", None, 2.5, {"a": [True]}], ["json", "msgpack", "yaml", "pickle"]),
    "bytes": (b"\xff\x00", ["json", "msgpack", "yaml", "pickle"]),
    "dates": ([datetime(2026, 1, 2, 3, 4, 5), date(2026, 1, 2)], ["json", "yaml", "pickle"]),
    "a set": ({1, 2}, ["yaml", "pickle"]),
    "whatever Python has": ([timedelta(1), Decimal("1.1"), 1j, (1, (2,)), {3: frozenset("a")}], ["pickle"]),
}


@ways("open")
@pytest.mark.parametrize(
    ("value", "serializer"), [(name, one) for name, (_, which) in VALUES.items() for one in which]
)
def test_arguments_arrive_and_come_back(
    site: Site, sender: str, worker: str, kind: str, value: str, serializer: str
) -> None:
    app = site.client(sender, kind, worker)
    argument = VALUES[value][0]
    sent = app.tasks["echo"].apply_async((argument,), {"k": argument}, serializer=serializer)
    assert outcome(app, sent) == ("SUCCESS", {"args": [argument], "kwargs": {"k": argument}})


@ways("open")
@pytest.mark.parametrize("compression", serialization.COMPRESSIONS)
def test_bodies_are_read_in_every_compression(
    site: Site, sender: str, worker: str, kind: str, compression: str
) -> None:
    app = site.client(sender, kind, worker)
    text = "long " * 500
    sent = app.tasks["echo"].apply_async((text,), compression=compression, serializer="pickle")
    assert outcome(app, sent) == ("SUCCESS", {"args": [text], "kwargs": {}})


@ways("open")
@pytest.mark.parametrize(
    "end", ["plain", "own", "the library's", "particular", "local", "with what can't be pickled"]
)
def test_a_pickled_exception_is_read_by_the_other_side(
    site: Site, sender: str, worker: str, kind: str, end: str
) -> None:
    app = site.client(sender, kind, worker)
    sent = app.tasks["fail"].apply_async((end,), serializer="pickle")
    state, found = outcome(app, sent)
    assert state == "FAILURE"
    check_end(found, end, sender, worker)


def check_end(found: BaseException, end: str, reader: str, writer: str) -> None:
    exceptions = importlib.import_module(f"{reader}.exceptions")
    if end == "plain":
        assert type(found) is ValueError and found.args == ("bad", 42)
    elif end == "own":
        assert type(found) is ParcelError and list(found.args) == ["lost", {"where": ["é"]}]
    elif end == "the library's":
        assert type(found) is exceptions.MaxRetriesExceededError and found.args == ("enough",)
    elif end == "particular":
        assert "KeywordOnlyError" in repr(found) and "code 7" in str(found.args)
    elif end == "local":
        assert type(found).__name__ == "LocalError" and found.args == ("here",)
    else:
        assert isinstance(found, Exception) and "bad" in str(found.args)
        if "minicelery" in (reader, writer):
            assert type(found).__name__ == "ValueError"


@ways("open")
def test_a_link_in_a_pickled_message_is_called(site: Site, sender: str, worker: str, kind: str) -> None:
    app = site.client(sender, kind, worker)
    link = app.tasks["echo"].signature((2,)).set(serializer="pickle", task_id=fresh())
    app.tasks["echo"].apply_async(({1},), serializer="pickle", link=link)
    followed = app.AsyncResult(link.options["task_id"])
    assert outcome(app, followed) == ("SUCCESS", {"args": [{"args": [{1}], "kwargs": {}}, 2], "kwargs": {}})


# -- documents, without a worker between -------------------------------------------------------


@contextlib.contextmanager
def stores(url: str, serializer: str, compression: str | None, folder: Path) -> Iterator[tuple[Any, Any]]:
    """An app of each library with results so written."""
    settings = {
        "accept_content": ["json"], "result_accept_content": [serializer],
        "result_serializer": serializer, "result_compression": compression,
    }  # fmt: skip
    apps = [make_app(library, "open", url, str(folder)) for library in LIBRARIES]
    for one in apps:
        one.conf.update(settings)
    try:
        yield apps[0], apps[1]
    finally:
        close_connections(apps[0])
        for one in apps:
            one.close()


@pytest.mark.parametrize("compression", [None, "zlib", "xz"])
@pytest.mark.parametrize("serializer", SERIALIZERS)
@pytest.mark.parametrize("end", ENDS)
def test_failures_are_read_from_each_others_documents(
    own_redis: RedisServer, tmp_path: Path, serializer: str, compression: str | None, end: str
) -> None:
    _leave_results_alone()
    url = own_redis.url(db=4)
    with stores(url, serializer, compression, tmp_path) as (theirs, ours):
        id = fresh()
        error = ENDS[end](importlib.import_module("minicelery.exceptions"))
        ours.backend.store(
            [
                record.encode(
                    id,
                    "FAILURE",
                    record.exception_document(error),
                    serializer=serializer,
                    compression=compression,
                )
            ]
        )
        check_document(theirs.AsyncResult(id).result, end, "celery")
        theirs.backend.store_result(id, ENDS[end](importlib.import_module("celery.exceptions")), "RETRY")
        check_document(
            record.read(ours.backend.load([id])[0].document, ours.conf)["result"], end, "minicelery"
        )


def check_document(found: BaseException, end: str, reader: str) -> None:
    if end == "with what can't be carried":
        assert type(found) is ValueError and found.args[0] == "bad"
        assert found.args[1] is open or found.args[1] == repr(open)
    elif end == "with what can't be pickled":
        assert "bad" in str(found.args) and "<lambda>" in str(found.args)
    elif end == "particular":
        assert "code 7" in str(found.args)
    else:
        check_end(found, end, reader, "minicelery")


@pytest.mark.parametrize(
    "compression", [None, *sorted(set(serialization.COMPRESSIONS) - {"zlib", "bzip", "xz", "zstandard"})]
)
@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_results_are_read_from_each_others_documents(
    own_redis: RedisServer, tmp_path: Path, serializer: str, compression: str | None
) -> None:
    _leave_results_alone()
    value = {"a": [1, "é" * 100, None]}
    with stores(own_redis.url(db=4), serializer, compression, tmp_path) as (theirs, ours):
        id, other = fresh(), fresh()
        ours.backend.store(
            [record.encode(id, "SUCCESS", value, serializer=serializer, compression=compression)]
        )
        theirs.backend.store_result(other, value, "SUCCESS")
        assert theirs.AsyncResult(id).get(timeout=TIMEOUT) == value
        document = ours.backend.load([other])[0].document
        assert record.read(document, ours.conf)["result"] == value
        assert document.startswith(b"\0celery-compressed\0") == (compression is not None)
        mine = ours.backend.load([id])[0].document
        prefix = len(document.split(b"\0")[2]) + 20 if compression else 1
        assert mine[:prefix] == document[:prefix]


def test_results_that_are_not_accepted_are_refused_by_both(own_redis: RedisServer, tmp_path: Path) -> None:
    kombu = importlib.import_module("kombu.exceptions")
    with stores(own_redis.url(db=4), "pickle", None, tmp_path) as (theirs, ours):
        id = fresh()
        ours.backend.store([record.encode(id, "SUCCESS", 1, serializer="pickle")])
        for accepted in (["json"], None):  # None: as accept_content
            theirs.conf.result_accept_content = ours.conf.result_accept_content = accepted
            with stores(own_redis.url(db=4), "pickle", None, tmp_path) as (strict, _):
                strict.conf.result_accept_content = accepted
                with pytest.raises(kombu.ContentDisallowed):
                    strict.AsyncResult(id).get(timeout=TIMEOUT)
            with pytest.raises(minicelery.exceptions.ContentDisallowed, match="result_accept_content="):
                record.read(ours.backend.load([id])[0].document, ours.conf)


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_celerys_clients_read_our_replies_in_every_serializer(rabbit_url: str, serializer: str) -> None:
    settings = {"accept_content": [serializer], "result_serializer": serializer}
    theirs = celery.Celery(broker=rabbit_url, backend="rpc://", set_as_current=False)
    ours = minicelery.Celery(broker=rabbit_url, backend="rpc://", set_as_current=False, **settings)
    theirs.conf.update(settings)
    try:
        sent = theirs.send_task("nobody.serves.it", queue="nobody")
        reply = record.encode(sent.id, "SUCCESS", {"a": ["é", 1]}, serializer=serializer)
        reply.reply_to = theirs.thread_oid
        ours.backend.store([reply])
        assert sent.get(timeout=TIMEOUT) == {"a": ["é", 1]}
    finally:
        close_connections(theirs)
        theirs.close()
        ours.close()


# -- signed ------------------------------------------------------------------------------------


@ways("signed")
def test_signed_messages_and_results_go_there_and_back(
    site: Site, sender: str, worker: str, kind: str
) -> None:
    app = site.client(sender, kind, worker)
    sent = app.tasks["echo"].delay(1, "é", k=[None])
    assert outcome(app, sent) == ("SUCCESS", {"args": [1, "é"], "kwargs": {"k": [None]}})
    with redis.Redis.from_url(site.url) as store:
        assert b"SUCCESS" not in store.get(f"celery-task-meta-{sent.id}"), "it is signed, so in base64"


@ways("signed")
def test_signed_failures_are_read(site: Site, sender: str, worker: str, kind: str) -> None:
    app = site.client(sender, kind, worker)
    state, found = outcome(app, app.tasks["fail"].delay("plain"))
    assert (state, type(found), found.args) == ("FAILURE", ValueError, ("bad", 42))


@ways("signed")
def test_a_signed_message_may_be_compressed(site: Site, sender: str, worker: str, kind: str) -> None:
    app = site.client(sender, kind, worker)
    sent = app.tasks["echo"].apply_async((1,), compression="bzip2")
    assert outcome(app, sent) == ("SUCCESS", {"args": [1], "kwargs": {}})


def dead_letters(app: Any, queue: str, wanted: set[str]) -> dict[str, str]:
    """Why the letters are among the dead, once all that are wanted are: their results are there before."""

    def found() -> dict[str, str]:
        reasons = {letter.id: letter.reason for letter in app.broker.dead_letters(queue)}
        return reasons if wanted <= reasons.keys() else {}

    return wait_until(found, timeout=TIMEOUT)


def test_an_unsigned_or_altered_message_is_kept_with_the_dead_letters(site: Site) -> None:
    app = site.client("minicelery", "signed", "minicelery")
    queue = "signed.minicelery"
    unsigned = app.tasks["echo"].apply_async((1,), serializer="json")
    altered = fresh()
    message = app._sender.message("echo", (1,), {}, {}, app._sender.defaults(app.tasks["echo"]), altered)
    message.body = message.body[:-8] + b"AAAAAA=="
    app.broker.publish([message])
    after = app.tasks["echo"].delay("after")
    assert outcome(app, after)[0] == "SUCCESS"  # the worker goes on
    found = dead_letters(app, queue, {unsigned.id, altered})
    assert "'application/json' is not accepted" in found[unsigned.id]
    assert "does not fit" in found[altered] or "not signed" in found[altered]
    state, error = outcome(app, unsigned)
    assert state == "FAILURE" and "application/json" in str(error)


# -- pickles that nobody has asked for -----------------------------------------------------------


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.close, (TrapFile(self.path),)


class TrapFile:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.open, (self.path, os.O_CREAT | os.O_WRONLY)


def test_a_worker_never_loads_a_pickle_that_it_does_not_accept(site: Site, tmp_path: Path) -> None:
    app = site.client("minicelery", "signed", "minicelery")
    trap = tmp_path / "was-here"
    data = pickle.dumps([[Trap(trap)], {}, {}])
    sent = []
    for content_type in sorted(serialization.CONTENT_TYPES.values()):
        for encoding in ("binary", "utf-8", "pickle"):
            for compression in (None, "zlib", "application/x-python-serialize"):
                message = app._sender.message(
                    "echo", (), {}, {}, app._sender.defaults(app.tasks["echo"]), fresh()
                )
                message.body, message.content_type, message.content_encoding = data, content_type, encoding
                if compression == "zlib":
                    message.body, message.headers["compression"] = serialization.compress(data, "zlib")
                elif compression:
                    message.headers["compression"] = compression
                message.headers_text = ""
                sent.append(message)
    app.broker.publish(sent)
    assert outcome(app, app.tasks["echo"].delay())[0] == "SUCCESS"
    dead_letters(app, "signed.minicelery", {message.id for message in sent})
    assert not trap.exists()
    pickle.loads(data)
    assert trap.exists(), "the trap would have worked"


@pytest.mark.parametrize("serializer", [*SERIALIZERS, "auth"])
def test_a_reader_never_loads_a_pickled_result_that_it_does_not_accept(
    own_redis: RedisServer, tmp_path: Path, serializer: str
) -> None:
    trap = tmp_path / "was-here"
    documents = [pickle.dumps({"status": state, "result": Trap(trap)}) for state in ("SUCCESS", "FAILURE")]
    documents += [
        b"\0celery-compressed\0application/x-gzip\0" + serialization.compress(one, "zlib")[0]
        for one in documents
    ]
    documents += [b"\0celery-compressed\0application/x-python-serialize\0" + documents[0]]
    ours = minicelery.Celery(broker="memory://", backend=own_redis.url(db=4), set_as_current=False)
    ours.conf.update(result_serializer=serializer)
    if serializer != "pickle":
        ours.conf.result_accept_content = [one for one in (*SERIALIZERS, "auth") if one != "pickle"]
    with ours, redis.Redis.from_url(own_redis.url(db=4)) as store:
        for document in documents:
            id = fresh()
            store.set(f"celery-task-meta-{id}", document)
            result = ours.AsyncResult(id)
            for read in (
                lambda r=result: r.get(timeout=1),
                lambda r=result: r.state,
                lambda r=result: r.result,
            ):
                with pytest.raises(minicelery.exceptions.MiniCeleryError):
                    read()
            with pytest.raises(minicelery.exceptions.MiniCeleryError):
                record.read(document, ours.conf)
    assert not trap.exists()
