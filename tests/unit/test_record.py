"""Result documents: ours beside those that Celery 5.7 stored, and exceptions there and back."""

from __future__ import annotations

import base64
import json
import pickle
import sys
import types
from collections.abc import Iterator
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from minicelery import Celery, exceptions, record, serialization, states
from minicelery.exceptions import (
    BackendGetMetaError,
    ContentDisallowed,
    EncodeError,
    ImproperlyConfigured,
    NotRegistered,
    Reject,
    SecurityError,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from minicelery.message import Delivery
from minicelery.worker.executor import Executor
from tests import golden

GOLDEN = golden.load("results")
PLAIN, EXTENDED = GOLDEN["plain"], GOLDEN["extended"]


class CustomError(Exception):
    def __init__(self, code: int, detail: object) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


class Outer:
    class NestedError(ValueError):
        pass


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


@pytest.fixture(autouse=True)
def wireapp() -> Iterator[types.ModuleType]:
    """The module that the captured exceptions name, with their classes in it."""
    module = types.ModuleType("wireapp")
    for kind in (CustomError, Outer.NestedError):
        kind.__module__ = "wireapp"
    Outer.NestedError.__qualname__ = "Outer.NestedError"
    module.CustomError, module.Outer = CustomError, Outer  # type: ignore[attr-defined]
    sys.modules["wireapp"] = module
    yield module
    del sys.modules["wireapp"]


JSON_TYPES = {
    "dt_naive": datetime(2026, 1, 2, 3, 4, 5, 678901),
    "dt_utc": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    "date": date(2026, 1, 2),
    "time": time(3, 4, 5, 6),
    "decimal": Decimal("1.10"),
    "uuid": UUID("12345678-1234-5678-1234-567812345678"),
    "bytes_utf8": b"abc",
    "bytes_bin": b"\xff\x00",
    "tuple": (1, 2),
    "none": None,
    "nan": float("nan"),
    "unicode": "hé☃",
    "int_keys": {1: "a"},
}


def unserialisable(value: Any) -> EncodeError:
    with pytest.raises(EncodeError) as caught:
        record.encode("id", states.SUCCESS, value)
    return caught.value


# Case -> what the task returned or raised.
VALUES: dict[str, Any] = {
    "SUCCESS int": 5,
    "SUCCESS kwargs, priority, queue": {"args": [1], "kwargs": {"b": [2, {"c": None}]}},
    "SUCCESS None": None,
    "SUCCESS json types": JSON_TYPES,
    "PROGRESS (update_state)": {"done": 1, "total": 2},
    "PROGRESS then SUCCESS": "finished",
    "STARTED (track_started)": {"pid": 26438, "hostname": "w1@host1"},
    "RETRY with exc": KeyError("try 0"),
    "RETRY without exc": None,
    "FAILURE ValueError": ValueError("bad value", 42),
    "FAILURE KeyError": KeyError("missing"),
    "FAILURE custom": CustomError(7, {"why": "x"}),
    "FAILURE nested": Outer.NestedError("inner class"),
    "FAILURE noargs": RuntimeError(),
    "FAILURE chained": ValueError("wrapped"),
    "FAILURE unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "FAILURE oserror": FileNotFoundError(2, "No such file", "x.txt"),
    "FAILURE sysexit": WorkerLostError("Worker exited prematurely: exitcode 3."),
    "FAILURE unserialisable result": object(),
    "FAILURE set result": {1, 2},
    "FAILURE wrong arguments": TypeError("add() missing 1 required positional argument: 'y'"),
    "FAILURE hard time limit": TimeLimitExceeded(1),
    "FAILURE soft time limit": SoftTimeLimitExceeded(),
    "REJECTED (Reject raised)": Reject("no thanks", requeue=False),
    "REVOKED scheduled": TaskRevokedError("revoked"),
    "REVOKED expired": TaskRevokedError("expired"),
    "NotRegistered": NotRegistered("no.such.task"),
    "chain last": 6,
    "chain first (children)": 3,
    "children of spawner": 2,
    "child of spawner": 0,
    "group member": 3,
    "chord body": 10,
    "link: parent": 5,
}


def ours(theirs: str, value: Any, **options: Any) -> str:
    """The document we write of `value` where Celery wrote `theirs`."""
    meta = json.loads(theirs)
    state = meta["status"]
    if state == states.FAILURE and not isinstance(value, BaseException):
        value = unserialisable(value)
    if isinstance(value, BaseException):
        value = record.exception_document(value)
    stored = record.encode(
        meta["task_id"], state, value, traceback=meta["traceback"], children=meta["children"],
        group_id=meta.get("group_id"), parent_id=meta.get("parent_id"), **options,
    )  # fmt: skip
    assert (stored.id, stored.state) == (meta["task_id"], state)
    return stored.document.decode()


@pytest.mark.parametrize("case", VALUES)
def test_our_document_is_celerys_character_for_character(case: str) -> None:
    theirs = PLAIN[case]
    assert golden.comparable(ours(theirs, VALUES[case])) == golden.comparable(theirs)


@pytest.mark.parametrize(
    "case", ["SUCCESS int", "FAILURE ValueError", "STARTED", "chain last", "group member", "SUCCESS stamped"]
)
def test_our_extended_document_is_celerys_character_for_character(case: str) -> None:
    theirs = EXTENDED[case]
    meta = json.loads(theirs)
    names = ("name", "args", "kwargs", "worker", "retries", "queue", "stamped_headers", "cust")
    extra = {name: meta[name] for name in names if name in meta}
    value = ValueError("bad value", 42) if meta["status"] == states.FAILURE else meta["result"]
    assert golden.comparable(ours(theirs, value, extra=extra)) == golden.comparable(theirs)


def test_date_done_has_the_workers_offset() -> None:
    theirs = GOLDEN["timezone Europe/Paris"]["SUCCESS"]
    document = ours(theirs, 5, zone=ZoneInfo("Europe/Paris"))
    done = datetime.fromisoformat(json.loads(document)["date_done"])
    assert done.utcoffset() == done.astimezone(ZoneInfo("Europe/Paris")).utcoffset()
    assert golden.comparable(document)[:-9] == golden.comparable(theirs)[:-9] or done.utcoffset()


def test_a_msgpack_document_has_the_same_fields_in_the_same_order() -> None:
    import msgpack

    theirs = msgpack.unpackb(base64.b64decode(GOLDEN["serializer msgpack"]["SUCCESS"]["base64"]))
    stored = record.encode(theirs["task_id"], states.SUCCESS, 5, serializer="msgpack")
    mine = msgpack.unpackb(stored.document)
    assert list(mine.items())[:4] == list(theirs.items())[:4]
    assert list(mine) == list(theirs)
    assert record.decode(stored.document, "msgpack") == mine


def test_a_msgpack_and_a_json_document_hold_the_same() -> None:
    options: dict[str, Any] = {
        "traceback": "text", "children": [[["c", None], None]], "group_id": "g", "parent_id": "p",
        "extra": {"name": "t", "args": [1]},
    }  # fmt: skip
    documents = [
        record.decode(record.encode("i", states.SUCCESS, 1, serializer=name, **options).document, name)
        for name in ("json", "msgpack")
    ]
    for document in documents:
        document.pop("date_done")
    assert list(documents[0].items()) == list(documents[1].items())


@pytest.mark.parametrize("section", ["plain", "extended"])
def test_every_captured_document_is_read(section: str) -> None:
    for case, raw in GOLDEN[section].items():
        meta = record.decode(raw.encode())
        assert meta["task_id"], case
        is_error = meta["status"] in states.EXCEPTION_STATES and json.loads(raw)["result"] is not None
        assert isinstance(meta["result"], BaseException) == is_error, case


@pytest.mark.parametrize(
    "case",
    [
        case for case, value in VALUES.items()
        if isinstance(value, BaseException) and not isinstance(value, (UnicodeError, OSError))
    ],
)  # fmt: skip
def test_celerys_exceptions_are_rebuilt_as_the_same_class_with_the_same_arguments(case: str) -> None:
    found = record.decode(PLAIN[case].encode())["result"]
    assert type(found) is type(VALUES[case])
    assert found.args == VALUES[case].args


def test_exceptions_whose_constructor_is_particular_are_rebuilt() -> None:
    unicode = record.decode(PLAIN["FAILURE unicode"].encode())["result"]
    assert isinstance(unicode, UnicodeDecodeError) and unicode.object == b"\xff"
    missing = record.decode(PLAIN["FAILURE oserror"].encode())["result"]
    assert isinstance(missing, FileNotFoundError) and missing.errno == 2


def test_a_class_of_a_module_that_is_not_imported_is_made_anew_and_nothing_is_imported() -> None:
    before = set(sys.modules)
    error = record.rebuild_exception(
        {"exc_type": "Oops", "exc_message": ["a", 1], "exc_module": "this.module.is.not.there"}
    )
    lazily = record.rebuild_exception(
        {"exc_type": "PyZipFile", "exc_message": [], "exc_module": "xmlrpc.server"}
    )
    assert type(error).__name__ == "Oops" and type(error).__module__ == "this.module.is.not.there"
    assert error.args == ("a", 1) and isinstance(error, Exception) and isinstance(lazily, Exception)
    assert set(sys.modules) == before


def test_a_modules_getattr_is_not_asked(wireapp: types.ModuleType) -> None:
    asked = []
    wireapp.__getattr__ = lambda name: asked.append(name)  # type: ignore[method-assign]
    error = record.rebuild_exception({"exc_type": "Lazy", "exc_message": [], "exc_module": "wireapp"})
    assert type(error).__name__ == "Lazy" and asked == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "int"),
        ("sys", "modules"),
        ("subprocess", "Popen"),
        ("wireapp", "Outer"),
        ("minicelery.exceptions", "WIRE_MODULES"),
        ("celery.exceptions", "datetime"),
    ],
)
def test_what_is_not_an_exception_class_is_a_security_error(module: str, name: str) -> None:
    __import__(module) if module in ("os", "subprocess") else None
    with pytest.raises(SecurityError, match="not an exception class"):
        record.rebuild_exception({"exc_type": name, "exc_message": ["true"], "exc_module": module})


def test_the_exceptions_that_end_a_process_are_not_raised_in_the_client(wireapp: types.ModuleType) -> None:
    class Quit(SystemExit):
        pass

    wireapp.Quit = Quit  # type: ignore[attr-defined]
    for module, name in (
        ("builtins", "SystemExit"),
        ("builtins", "KeyboardInterrupt"),
        ("builtins", "GeneratorExit"),
        ("wireapp", "Quit"),
    ):
        error = record.rebuild_exception({"exc_type": name, "exc_message": [3], "exc_module": module})
        assert isinstance(error, Exception) and type(error).__name__ == name
        assert error.args == (3,)


@pytest.mark.parametrize("module", ["celery.exceptions", "billiard.exceptions", "kombu.exceptions"])
def test_our_exceptions_go_by_celerys_modules_and_come_back_as_ours(module: str) -> None:
    for name in exceptions.__all__:
        kind = getattr(exceptions, name)
        if exceptions.WIRE_MODULES[name] != module or issubclass(kind, Warning):
            continue
        document = record.exception_document(kind("text"))
        assert (document["exc_type"], document["exc_module"]) == (name, module)
        assert type(record.rebuild_exception(document)) is kind


def test_a_constructor_that_refuses_the_arguments_is_quoted(wireapp: types.ModuleType) -> None:
    wireapp.KeywordOnlyError = KeywordOnlyError  # type: ignore[attr-defined]
    KeywordOnlyError.__module__ = "wireapp"
    error = record.rebuild_exception(record.exception_document(KeywordOnlyError(code=5)))
    assert type(error) is Exception
    assert "KeywordOnlyError" in str(error) and "code 5" in str(error)


def test_a_local_class_goes_by_its_own_name() -> None:
    class LocalError(Exception):
        pass

    document = record.exception_document(LocalError("x"))
    assert document["exc_type"] == "LocalError"
    assert type(record.rebuild_exception(document)).__name__ == "LocalError"


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no repr either")


def test_arguments_that_cannot_be_carried_become_their_representation() -> None:
    plain = object()
    document = record.exception_document(ValueError("text", {1}, plain, Rude(), "x" * 5000))
    assert document["exc_message"][:3] == ["text", "{1}", repr(plain)]
    assert "Rude" in document["exc_message"][3]
    assert document["exc_message"][4] == "x" * 5000


@pytest.mark.parametrize(
    "document",
    [
        None,
        "text",
        5,
        [],
        {},
        {"exc_type": 5},
        {"exc_type": None, "exc_message": []},
        {"exc_type": "ValueError"},
        {"exc_type": "ValueError", "exc_message": "one text", "exc_module": "builtins"},
        {"exc_type": "ValueError", "exc_message": {"a": 1}, "exc_module": ["x"]},
        {"exc_type": "", "exc_message": [], "exc_module": ""},
        {"exc_type": "a.b.c", "exc_message": [], "exc_module": "os"},
        {"exc_type": "nul\0", "exc_message": [], "exc_module": "builtins"},
        {"exc_type": "\ud800", "exc_message": [], "exc_module": "builtins"},
        {"exc_type": "UnicodeDecodeError", "exc_message": [1], "exc_module": "builtins"},
    ],
    ids=repr,
)
def test_whatever_a_document_holds_an_exception_comes_of_it(document: Any) -> None:
    assert isinstance(record.rebuild_exception(document), Exception)


@pytest.mark.parametrize("raw", [b"", b"5", b"[]", b"{}", b'{"status": 5}', b"\xff", b"[" * 100_000])
def test_what_is_no_result_document_is_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(BackendGetMetaError):
        record.decode(raw)


def test_a_document_with_nothing_but_a_status_is_read() -> None:
    assert record.decode(b'{"status": "SUCCESS"}')["result"] is None
    assert record.decode(b'{"status": "FAILURE"}')["result"] is None


def test_a_document_of_another_serializer_names_the_setting() -> None:
    packed = record.encode("i", states.SUCCESS, 1, serializer="msgpack").document
    with pytest.raises(BackendGetMetaError, match="result_serializer"):
        record.decode(packed, "json")


@pytest.mark.parametrize("state", sorted(states.ALL_STATES))
def test_only_final_states_have_a_date(state: str) -> None:
    meta = json.loads(record.encode("i", state, None).document)
    assert (meta["date_done"] is not None) == (state in states.READY_STATES)


def test_text_in_any_field_is_escaped() -> None:
    odd = 'a"\\\n\u2028é\x00'
    stored = record.encode(odd, odd, odd, traceback=odd, group_id=odd, parent_id=odd, extra={odd: odd})
    meta = json.loads(stored.document)
    assert {
        meta[name] for name in ("status", "result", "traceback", "group_id", "parent_id", "task_id", odd)
    } == {odd}


# -- other serializers -------------------------------------------------------------------------


def failure(error: BaseException, serializer: str) -> bytes:
    document = record.exception_document(error)
    return record.encode("i", states.FAILURE, document, serializer=serializer).document


def rebuilt(error: BaseException, serializer: str) -> BaseException:
    document = failure(error, serializer)
    found = record.decode(document, serializer, serialization.accepted([serializer]))["result"]
    assert isinstance(found, BaseException)
    return found


def test_pickle_carries_the_exception_itself() -> None:
    error = CustomError(7, {1, 2})
    error.hint = "kept"  # type: ignore[attr-defined]
    found = rebuilt(error, "pickle")
    assert type(found) is CustomError and found.args == (7, {1, 2})
    assert found.hint == "kept"  # type: ignore[attr-defined]
    assert type(pickle.loads(failure(error, "pickle"))["result"]) is CustomError


@pytest.mark.parametrize(
    "error",
    [KeywordOnlyError(code=7), type("LocalError", (Exception,), {})("x"), ValueError("x", lambda: 1)],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_that_cannot_be_pickled_is_described(error: Exception) -> None:
    found = rebuilt(error, "pickle")
    assert type(found).__name__ == type(error).__name__ or type(error).__name__ in str(found)
    assert str(error.args[0]) in str(found.args)


def test_our_own_exceptions_are_described_in_a_pickle_so_that_celery_reads_them() -> None:
    document = failure(WorkerLostError("gone"), "pickle")
    assert pickle.loads(document)["result"]["exc_module"] == "billiard.exceptions"
    assert b"minicelery" not in document
    assert type(rebuilt(WorkerLostError("gone"), "pickle")) is WorkerLostError


def test_celerys_pickled_exceptions_are_ours_when_they_are_read() -> None:
    theirs = pytest.importorskip("celery.exceptions")
    billiard = pytest.importorskip("billiard.exceptions")
    wrapper = pytest.importorskip("celery.utils.serialization").UnpickleableExceptionWrapper
    accept = serialization.accepted(["pickle"])

    def read(error: BaseException) -> Any:
        document = pickle.dumps({"status": "FAILURE", "result": error, "task_id": "i"})
        return record.decode(document, "pickle", accept)["result"]

    assert type(read(theirs.MaxRetriesExceededError("x"))) is exceptions.MaxRetriesExceededError
    assert type(read(billiard.TimeLimitExceeded(3))) is TimeLimitExceeded
    found = read(theirs.Retry("later", ValueError("x"), 5))
    assert type(found) is exceptions.Retry and found.when == 5
    found = read(wrapper("shop.errors", "PaymentError", ["no", 1], "text"))
    assert (type(found).__module__, type(found).__name__) == ("shop.errors", "PaymentError")
    assert list(found.args) == ["no", 1]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_pickled_end_of_the_process_is_not_raised_in_the_client(kind: type[BaseException]) -> None:
    found = rebuilt(kind("x"), "pickle")
    assert isinstance(found, Exception) and type(found).__name__ == kind.__name__


def test_each_serializer_keeps_the_arguments_that_it_can_carry() -> None:
    arguments = (datetime(2026, 1, 2), {1}, 1j)
    assert rebuilt(ValueError(*arguments), "json").args == (datetime(2026, 1, 2), "{1}", "1j")
    assert rebuilt(ValueError(*arguments), "msgpack").args == (datetime(2026, 1, 2), "{1}", "1j")
    assert rebuilt(ValueError(*arguments), "yaml").args == (datetime(2026, 1, 2), {1}, "1j")
    assert rebuilt(ValueError(*arguments), "pickle").args == arguments


# -- what is accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serializer", "accept_content", "result_accept_content", "named"),
    [
        ("msgpack", ["json"], None, r"accept_content=\['json'\]"),
        ("json", ["msgpack"], None, r"accept_content=\['msgpack'\]"),
        ("json", ["json"], ["msgpack"], r"result_accept_content=\['msgpack'\]"),
        ("pickle", ["pickle"], ["json", "yaml"], r"result_accept_content=\['json', 'yaml'\]"),
    ],
)
def test_results_are_read_only_in_what_is_accepted(
    serializer: str, accept_content: list[str], result_accept_content: list[str] | None, named: str
) -> None:
    conf = Celery(set_as_current=False).conf
    conf.update(
        result_serializer=serializer,
        accept_content=accept_content,
        result_accept_content=result_accept_content,
    )
    document = record.encode("i", states.SUCCESS, 5, serializer=serializer).document
    with pytest.raises(ContentDisallowed, match=rf"results are written in '{serializer}'.*{named}"):
        record.read(document, conf)
    conf.result_accept_content = ["json", serializer]
    assert record.read(document, conf)["result"] == 5
    conf.update(result_accept_content=None, accept_content=[serialization.CONTENT_TYPES[serializer]])
    assert record.read(document, conf)["result"] == 5


def test_no_pickle_is_read_without_being_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ContentDisallowed, match="application/x-python-serialize"):
        record.decode(pickle.dumps({"status": "SUCCESS"}), "pickle")


# -- compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "pickle"])
def test_a_compressed_document_says_so_itself(serializer: str) -> None:
    plain = record.encode("i", states.SUCCESS, "x" * 999, serializer=serializer).document
    stored = record.encode("i", states.SUCCESS, "x" * 999, serializer=serializer, compression="gzip")
    assert (
        stored.document.startswith(b"\0celery-compressed\0application/x-gzip\0")
        and len(stored.document) < 400
    )
    accept = serialization.accepted([serializer])
    found = record.decode(stored.document, serializer, accept)
    assert found["result"] == record.decode(plain, serializer, accept)["result"] == "x" * 999


@pytest.mark.parametrize(
    "rest", [b"", b"application/x-gzip", b"application/x-gzip\0junk", b"nothing\0junk", b"\xff\0\xff", b"\0"]
)
def test_a_compressed_document_that_cannot_be_unpacked_is_said_to_be_none(rest: bytes) -> None:
    with pytest.raises(BackendGetMetaError, match="compression"):
        record.decode(b"\0celery-compressed\0" + rest)


# -- a worker's -----------------------------------------------------------------------------------


def run(settings: dict[str, Any], function: Any, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The outcome of one call in a worker with these settings, and what a client reads of it."""
    app = Celery(broker="memory://", backend="memory://", set_as_current=False, **settings)
    task = app.task(function, name="shop.total", shared=False)
    sender = app._sender
    message = sender.message(task.name, args, {}, options, sender.defaults(task), "an-id")
    outcome = Executor(app).run(Delivery(message, 1))
    return outcome, record.read(outcome.record.document, app.conf)


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "pickle"])
def test_a_result_that_cannot_be_carried_names_the_task_the_type_and_the_serializer(serializer: str) -> None:
    settings = {"result_serializer": serializer, "accept_content": ["json", serializer]}
    _, meta = run(settings, lambda: lambda: 1)
    words = f"the result of shop.total is of type function, which the {serializer} serializer cannot carry"
    assert type(meta["result"]) is EncodeError and words in str(meta["result"])
    assert "return plain data" in str(meta["result"])


def test_arguments_that_the_results_serializer_cannot_carry_are_kept_as_their_repr() -> None:
    settings = {"result_extended": True, "accept_content": ["json", "pickle"]}
    _, meta = run(settings, lambda basket: len(basket), {1, 2}, serializer="pickle")
    assert (meta["status"], meta["result"], meta["args"], meta["kwargs"]) == ("SUCCESS", 2, "[{1, 2}]", {})
    _, meta = run(settings, lambda basket: basket.missing, {1, 2}, serializer="pickle")
    assert (type(meta["result"]), meta["args"]) == (AttributeError, "[{1, 2}]")


def test_a_workers_results_are_compressed_where_it_is_asked_to() -> None:
    outcome, meta = run({"result_compression": "bzip2"}, lambda: "x" * 5000)
    assert outcome.record.document.startswith(b"\0celery-compressed\0application/x-bz2\0")
    assert meta["result"] == "x" * 5000
    _, meta = run({"result_compression": "bzip2"}, lambda: 1 / 0)
    assert type(meta["result"]) is ZeroDivisionError


def test_a_worker_whose_results_cannot_be_written_is_told_so_before_it_runs_a_task() -> None:
    app = Celery(broker="memory://", backend="memory://", set_as_current=False, result_serializer="auth")
    with pytest.raises(ImproperlyConfigured, match=r"result_serializer names 'auth'.*setup_security"):
        Executor(app)


@pytest.mark.parametrize("extra", [None, {"args": [{"a": 1}]}])
def test_values_are_read_from_plain_documents_as_from_whole_ones(app: Celery, extra: Any) -> None:
    hostile = ', "traceback": null, "children": [], "date_done": "2026'
    values = [1, None, "x" + hostile, {"a": [hostile, {"b": 2.5}]}, [], "é\n", datetime(2026, 1, 2)]
    ids = ["1", "2" + hostile, 'a"b', "c", "d", "e", "f"]
    documents = [
        record.encode(id, "SUCCESS", value, group_id="g", parent_id=hostile, extra=extra).document
        for id, value in zip(ids, values, strict=True)
    ]
    whole = [meta["result"] for meta in record.read_all(documents, app.conf)]
    assert whole == values
    found = [record.returned([document], app.conf) for document in documents]
    assert all(one in (None, [value]) for one, value in zip(found, values, strict=True))
    if extra is None:
        assert record.returned(documents[3:], app.conf) is None  # a quote in the parent's id
        plain = [
            record.encode(id, "SUCCESS", value).document for id, value in zip("abcdefg", values, strict=True)
        ]
        assert record.returned(plain, app.conf) == values


def test_only_documents_of_what_has_returned_are_read_so(app: Celery) -> None:
    good = record.encode("1", "SUCCESS", 1).document
    for other in (
        record.encode("2", "FAILURE", record.exception_document(ValueError(1))).document,
        record.encode("2", "SUCCESS", 1, children=[[["a", None], None]]).document,
        record.encode("2", "SUCCESS", 1, compression="zlib").document,
        good[:-1], good + b" ", b"", b"{}", good.replace(b": 1,", b": 1, 2,"), good.replace(b": 1,", b": ,"),
    ):  # fmt: skip
        assert record.returned([good, other], app.conf) is None
    assert record.returned([], app.conf) == []
