"""Every wrong option is refused where it is given: with its name, the task's, and what is accepted.

Each row of a table is an option, what its refusal has to say, and values that can't be.
"""

from __future__ import annotations

import asyncio
import itertools
import warnings
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from functools import partial
from typing import Any

import pytest

from minicelery import Celery, Task
from minicelery.exceptions import MiniCeleryError
from minicelery.worker import Worker

REFUSALS = (TypeError, ValueError, MiniCeleryError)
LONGEST = 400  # characters of a refusal
NAN, INF, HUGE = float("nan"), float("inf"), 10**400
FOREVER = timedelta.max
HALF = "\ud800"  # of a surrogate pair: text that no UTF-8 can carry
SOON = datetime(2040, 1, 31, 12, tzinfo=timezone.utc)


class Level(IntEnum):
    HIGH = 5


class Name(str, Enum):
    MAIL = "mail"


class Odd:
    """Of no kind that an option could be."""


NO_FLAG = ("no", "", 2, -1, 0.5, NAN, [], Odd(), lambda: True)
NO_TEXT = (5, True, b"x", [], {}, 1.5, Odd(), HALF)
NO_COUNT = (-1, 1.5, True, NAN, INF, HUGE, "3", [], timedelta(1))
NO_SECONDS = (True, -1, NAN, INF, HUGE, 1e300, "1m", "", [], 1j, Decimal(3), Odd(), FOREVER)
NO_LIMIT = (0, -1, True, NAN, INF, HUGE, "60", [], timedelta(1), lambda: 3)
NO_EXCEPTION = ("KeyError", 5, True, int, (KeyError, 5), [None], lambda: KeyError, Odd())
NO_ADDRESS = ("", 5, True, b"q", ["q"], {}, Odd())
NO_PRIORITY = (-1, 256, True, 2.5, "3", NAN, INF, HUGE, [])

OF_TASKS: list[tuple[str, str, tuple[Any, ...]]] = [
    *(
        (option, "a boolean", NO_FLAG)
        for option in (
            "acks_late", "acks_on_failure", "acks_on_failure_or_timeout", "acks_on_timeout", "ignore_result",
            "immediate", "mandatory", "reject_on_worker_lost", "retry_jitter", "retry_on_worker_lost",
            "send_events", "store_eager_result", "store_errors_even_if_ignored", "track_started", "trail", "typing",
        )
    ),
    *((option, "an exception class", NO_EXCEPTION) for option in ("autoretry_for", "dont_autoretry_for", "throws")),
    *((option, "a name", NO_ADDRESS) for option in ("queue", "exchange", "routing_key")),
    *((option, "seconds greater than 0", NO_LIMIT) for option in ("time_limit", "soft_time_limit")),
    ("rate_limit_key", "parameter", ("", 5, True, [], {}, {"order"}, ("order", 5), "nothing", ("order", "nothing"))),
    ("max_retries", "an integer >= 0, or None", NO_COUNT),
    ("resultrepr_maxsize", "an integer >= 0", (*NO_COUNT, None)),
    ("default_retry_delay", "a number of seconds >= 0 or a timedelta", (*NO_SECONDS, None, timedelta(-1))),
    ("retry_backoff", "a boolean or a number", (-1, NAN, HUGE, "yes", [], None, timedelta(1))),
    ("retry_backoff_max", "a number of seconds >= 0", (True, -1, NAN, INF, HUGE, "1m", None, timedelta(1))),
    ("retry_kwargs", "a mapping", ("x", 5, [("countdown", 1)], None, lambda: {})),
    ("expires", "seconds >= 0, a timedelta or a datetime", (*NO_SECONDS, timedelta(-1), date(2040, 1, 1))),
    ("priority", "a whole number from 0 to 9", NO_PRIORITY),
    ("rate_limit", "a number of runs per second, or text", ("ten", "", "10/d", "/m", "10/", -1, "-1/s", NAN, INF,
                                                          "nan/s", "inf/m", True, HUGE, 1e-300, [], timedelta(1))),
    ("concurrency_limit", "a whole number of runs", (0, -1, True, 1.5, "3", NAN, INF, HUGE, [])),
    ("unique", "True, seconds greater than 0", (0, -1, "yes", NAN, INF, HUGE, [], timedelta(0), timedelta(-1), FOREVER)),
    ("serializer", "'json'", ("jsno", "", 5, True, [], lambda: "json")),
    ("compression", "'zlib'", ("zilb", "", 5, True, [], lambda: "zlib")),
    ("delivery_mode", "1 or 2", (0, 3, True, "1", "lasting", [])),
    ("exchange_type", "an exchange type", ("topical", "", 5, True, [])),
    ("from_config", "pairs", (5, "ab", ["ab"], [("a", 5)], [("a",)])),
    ("base", "a subclass of minicelery.Task", (5, "Task", Odd, Odd(), dict)),
]  # fmt: skip

OF_CALLS: list[tuple[str, str, tuple[Any, ...]]] = [
    *((option, "True or False", NO_FLAG) for option in ("add_to_parent", "ignore_result", "retry", "throw")),
    *((option, "True or False", NO_FLAG) for option in ("mandatory", "immediate")),
    *(
        (option, "text", NO_TEXT)
        for option in (
            "root_id", "parent_id", "group_id", "reply_to", "argsrepr", "kwargsrepr", "correlation_id",
            "message_id", "content_type", "content_encoding", "type", "app_id", "user_id", "cluster_id", "origin",
        )
    ),
    *((option, "a whole number", NO_COUNT) for option in ("retries", "group_index", "replaced_task_nesting")),
    *((option, "seconds greater than 0", NO_LIMIT) for option in ("time_limit", "soft_time_limit")),
    *((option, "seconds, 0 or greater", (-1, NAN, True, "3", [])) for option in ("timeout", "confirm_timeout")),
    ("countdown", "seconds or a timedelta", (True, NAN, INF, -INF, HUGE, 1e300, "3", "", [], 1j, Decimal(3), FOREVER)),
    ("eta", "a datetime, or its text in ISO 8601", (5, 1.5, True, "", "tomorrow", "12:00", date(2040, 1, 1), timedelta(1), [])),
    ("expires", "a datetime", ("", "soon", True, NAN, INF, HUGE, [], Decimal(3), date(2040, 1, 1), FOREVER)),
    ("priority", "a whole number from 0 to 9 (on RabbitMQ up to 255)", (*NO_PRIORITY, 10)),
    ("queue", "a queue's name or a Queue", NO_ADDRESS),
    ("exchange", "text", (5, True, b"x", [], {}, Odd())),
    ("routing_key", "text", (5, True, b"x", [], {}, Odd())),
    ("exchange_type", "exchange types are direct", ("topical", 5, True, [])),
    ("delivery_mode", "1 or 2", (0, 3, True, False, "", "1", "lasting", [], INF)),
    ("serializer", "", ("", "jsno", 5, True, False, [], Odd())),
    ("compression", "", ("", "zilb", 5, True, False, [], Odd())),
    ("headers", "a dict with text keys", ("x", 5, ["x"], {1: "x"}, {None: 1}, Odd())),
    ("shadow", "", (Odd(), b"x", {1})),
    ("timestamp", "unix seconds", ("now", -1, 1.5, True, SOON, HUGE)),
    ("expiration", "a number >= 0", ("soon", "", -1, NAN, True, SOON, [])),
    ("link", "signatures", ("notify", 5, [5], ["notify"], {}, {"args": [1]}, lambda: 1)),
    ("link_error", "signatures", ("notify", 5, [5], ["notify"], {}, {"args": [1]}, lambda: 1)),
    ("chain", "a list of signatures", ("t", 5, {}, [5], ["t"], [{}], {"t"}, Odd())),
    ("chord", "a signature", ("t", 5, {}, {"args": []}, [], Odd())),
    ("declare", "a list", ("q", 5, True, Odd())),
    ("stamped_headers", "a list of names", ("x", 5, True, {"x": 1})),
    ("stamps", "a mapping", ("x", 5, True, ["x"])),
    ("retry_policy", "a mapping of max_retries", ("x", 5, True, [3])),
    ("router", "None; put routers into task_routes", ("x", Odd(), lambda: 1)),
    *((option, "a connection or producer of the app", ("amqp://", 5, True, Odd())) for option in ("connection", "producer")),
]  # fmt: skip

OF_A_RETRY: list[tuple[str, str, tuple[Any, ...]]] = [
    ("max_retries", "a number >= 0, or None", (-1, "3", True, NAN, [])),
    ("exc", "an exception, its text, or None", (5, [], Odd(), int)),
    ("args", "a list or tuple", (5, "x", {1})),
    ("kwargs", "a mapping with text keys", (5, "x", [1], {1: 2})),
    *(
        row
        for row in OF_CALLS
        if row[0] in ("countdown", "eta", "expires", "priority", "queue", "time_limit")
    ),
]


def row_name(row: Any) -> str:
    return row[0] if isinstance(row, tuple) else str(row)


def refusal(act: Callable[[], Any]) -> str:
    """What is said by the error that `act` must raise."""
    with pytest.raises(REFUSALS) as refused:
        act()
    return str(refused.value)


def assert_said(text: str, *parts: str) -> None:
    missing = [part for part in parts if part not in text]
    assert not missing and len(text) <= LONGEST, f"{missing} not in {text!r:.600}"


def waiting(app: Celery, *queues: str) -> int:
    return sum(app.broker.size(queue) + app.broker.delayed(queue) for queue in (*queues, "celery"))


@pytest.fixture(autouse=True)
def empty(app: Celery) -> Iterator[None]:
    for queue in ("celery", "mail"):
        app.broker.purge(queue)  # the rows of one table share a store
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # addresses as attributes
        yield


@pytest.fixture
def pay(app: Celery) -> Task[..., Any]:
    return app.task(same, name="pay")


def same(order: Any = 1) -> Any:
    return order


def nothing() -> None: ...


# -- tasks and calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("row", OF_TASKS, ids=row_name)
def test_a_wrong_option_of_a_task_is_refused_where_the_task_is_declared(app: Celery, row: Any) -> None:
    option, accepted, values = row
    for value in values:
        text = refusal(partial(app.task(name="pay", **{option: value}), lambda order: order))
        assert_said(text, f"{option}=", "pay", accepted)
        assert "pay" not in app._registry


@pytest.mark.parametrize("row", [row for row in OF_TASKS if row[0] != "base"], ids=row_name)
def test_a_wrong_attribute_of_a_class_is_refused_where_it_is_registered(app: Celery, row: Any) -> None:
    option, accepted, values = row
    for value in values:
        kind = type("Pay", (Task,), {"name": "pay", "run": lambda self, order: order, option: value})
        if callable(value):
            continue  # a function in a class is a method
        assert_said(refusal(partial(app.register_task, kind)), f"{option}=", "pay", accepted)


def ways_to_call(app: Celery, task: Task[..., Any]) -> dict[str, Callable[..., Any]]:
    """Everything that takes the options of a call."""
    return {
        "apply_async": lambda **options: task.apply_async((1,), **options),
        "apply": lambda **options: task.apply((1,), **options),
        "apply_many": lambda **options: task.apply_many([(1,), (2,)], **options),
        "aapply_async": lambda **options: asyncio.run(task.aapply_async((1,), **options)),
        "send_task": lambda **options: app.send_task("pay", (1,), **options),
        "a task known elsewhere": lambda **options: app.send_task("elsewhere.pay", (1,), **options),
        "a signature": lambda **options: task.s(1).set(**options).apply_async(),
        "a signature, at once": lambda **options: task.s(1).set(**options).apply(),
    }


@pytest.mark.parametrize("row", OF_CALLS, ids=row_name)
def test_a_wrong_option_of_a_call_is_refused_by_every_way_to_call(
    app: Celery, pay: Task[..., Any], row: Any
) -> None:
    option, accepted, values = row
    for (way, call), value in itertools.product(ways_to_call(app, pay).items(), values):
        if way == "aapply_async" and value is not values[0]:
            continue  # the same call, in a thread: one of its refusals will do
        assert_said(refusal(partial(call, **{option: value})), option, "pay", accepted)
    assert waiting(app, "q", "x") == 0


@pytest.mark.parametrize("value", [*NO_TEXT, ""], ids=lambda value: type(value).__name__)
def test_a_wrong_task_id_is_refused(app: Celery, pay: Task[..., Any], value: Any) -> None:
    assert_said(refusal(lambda: pay.apply_async(task_id=value)), "task_id=", " of pay: expected text")
    assert_said(refusal(lambda: app.send_task("pay", task_id=value)), "task_id=", " of pay: expected text")
    assert_said(refusal(lambda: pay.apply_many([], task_id="x")), "task_id=", " of pay: ")
    assert waiting(app) == 0


@pytest.mark.parametrize("row", OF_A_RETRY, ids=row_name)
def test_a_wrong_option_of_a_retry_fails_the_attempt_that_gives_it(app: Celery, row: Any) -> None:
    option, accepted, values = row
    given: dict[str, Any] = {}
    again = app.task(lambda self, order=1: self.retry(**given), name="pay", bind=True)
    for value in values:
        given = {option: value}
        assert_said(refusal(lambda: again.apply(throw=True)), f"{option}=", "pay", accepted)
        if option in ("max_retries", "exc", "args", "kwargs", "countdown", "eta"):
            text = refusal(partial(app.task(name="own", retry_kwargs=given), lambda: None))
            assert_said(text, "retry_kwargs= of own", f"{option}=", accepted)
    assert waiting(app) == 0


# -- arguments and combinations --------------------------------------------------------------------


def declared(**options: Any) -> Callable[[Celery], Any]:
    return lambda app: app.task(name="pay", **options)(lambda order=1: order)


def called(*args: Any, **options: Any) -> Callable[[Celery], Any]:
    return lambda app: declared()(app).apply_async(*args, **options)


def delayed(*args: Any, **kwargs: Any) -> Callable[[Celery], Any]:
    return lambda app: declared()(app).delay(*args, **kwargs)


def linked(**options: Any) -> Callable[[Celery], Any]:
    return called(link=[{"task": "notify", "options": options}])


def narrow(app: Celery) -> None:
    app.conf.update(task_queues=["mail", "celery"], task_create_missing_queues=False)


def in_narrow(act: Callable[[Celery], Any]) -> Callable[[Celery], Any]:
    return lambda app: (narrow(app), act(app))


WRONG_TOGETHER: dict[str, tuple[Callable[[Celery], Any], tuple[str, ...]]] = {
    "a soft limit above the hard one": (
        declared(soft_time_limit=20, time_limit=10), ("pay: soft_time_limit=20", "greater than time_limit=10")),
    "a soft limit of a call above the hard one": (
        called(soft_time_limit=20, time_limit=10), ("pay: soft_time_limit=20", "greater than time_limit=10")),
    "a soft limit of a call above the task's hard one": (
        lambda app: declared(time_limit=10)(app).apply_async(soft_time_limit=20), ("pay: soft_time_limit=20",)),
    "a key without unique": (declared(unique_key="order"), ("unique_key='order' of pay needs unique=",)),
    "a key with unique switched off": (declared(unique=False, unique_key="order"), ("of pay needs unique=",)),
    "a key without a concurrency limit": (
        declared(concurrency_limit_key="order"), ("concurrency_limit_key='order' of pay needs concurrency_limit=",)),
    "a key without a rate": (
        lambda app: declared(rate_limit_key="order")(app).delay(),
        ("rate_limit_key='order' of pay needs rate_limit=", "task_default_rate_limit")),
    "a key that is no parameter": (
        declared(unique=True, unique_key="ordr"), ("unique_key='ordr' of pay", "parameters are order")),
    "a queue that is not configured": (
        in_narrow(called(queue="mial")), ("queue 'mial'", "task_queues", "'mail'", "task_create_missing_queues")),
    "a route to a queue that is not configured": (
        lambda app: (narrow(app), app.conf.update(task_routes={"pay": "mial"}), delayed()(app)),
        ("queue 'mial'", "task_queues", "'mail'")),
    "a worker's queue that is not configured": (
        in_narrow(lambda app: Worker(app, queues="mial")), ("--queues", "queue 'mial'", "'mail'")),
    "stamps that are not there": (called(stamped_headers=["tenant"]), ("stamped_headers= of pay", "tenant=")),
    "an id for many calls": (
        lambda app: declared()(app).apply_many([(1,)], task_id="x"), ("task_id='x' of pay",)),
    "text for many calls": (lambda app: declared()(app).apply_many("ab"), ("calls='ab' of pay", "a list")),
    "a mapping for many calls": (lambda app: declared()(app).apply_many({"order": 1}), ("calls=", " of pay")),
    "a number for many calls": (lambda app: declared()(app).apply_many(5), ("calls=5 of pay", "a list")),
    "a number among many calls": (lambda app: declared()(app).apply_many([(1,), 5]), ("args=5 of pay", "list")),
    "too many arguments": (delayed(1, 2), ("pay(order=1)", "too many positional arguments")),
    "an argument by a wrong name": (delayed(ordre=1), ("pay(order=1)", "'ordre'")),
    "an argument given twice": (delayed(1, order=1), ("pay(order=1)", "multiple values for argument 'order'")),
    "one call of many that does not fit": (
        lambda app: declared()(app).apply_many([(1,), (1, 2)]), ("pay(order=1)", "too many positional arguments")),
    "text for arguments": (called("ab"), ("args='ab' of pay", "a list or tuple")),
    "keywords that are no text": (called((), {1: 2}), ("pay(order=1)", "keywords must be strings")),
    "an argument that JSON has not": (delayed({1, 2}), ("argument 'order' of pay is a set", "json", "plain data")),
    "an argument that is an object": (delayed(order=Odd()), ("argument 'order' of pay is a Odd", "json")),
    "an argument that contains itself": (lambda app: delayed((own := [], own.append(own))[0])(app), ("itself",)),
    "an own header that JSON has not": (called(headers={"tenant": {1}}), ("'tenant' of pay is a set", "header")),
    "an own property that JSON has not": (called(tenant=Odd()), ("'tenant' of pay is a Odd", "header")),
    "a link with an option that is not": (
        linked(coutdown=3), ("link= of pay", "coutdown=3 of notify", "did you mean countdown=")),
    "a link with a wrong time": (linked(countdown="3"), ("link= of pay", "countdown='3' of notify", "seconds")),
    "a link with wrong limits": (
        linked(soft_time_limit=2, time_limit=1), ("link= of pay", "notify: soft_time_limit=2")),
    "a link of a link with a wrong time": (
        linked(link={"task": "third", "options": {"eta": 5}}), ("link= of pay", "link= of notify", "eta=5 of third")),
    "a link with wrong arguments": (called(link={"task": "notify", "args": 5}), ("link= of pay", "args=5 of notify")),
    "a link with wrong options": (called(link={"task": "notify", "options": 5}), ("link= of pay", "options=5 of notify")),
    "a handler with a wrong priority": (
        called(link_error={"task": "notify", "options": {"priority": 11}}), ("link_error= of pay", "priority=11 of notify")),
    "a chain with a wrong queue option": (
        called(chain=[{"task": "notify", "options": {"queus": "q"}}]), ("chain= of pay", "queus='q' of notify", "queue=")),
    "a policy with an unknown key": (called(retry_policy={"max_retry": 3}), ("retry_policy= of pay", "'max_retries'")),
    "a policy with a wrong number": (
        called(retry_policy={"max_retries": -1}), ("retry_policy= of pay", "max_retries=-1", "a whole number")),
    "a policy with a wrong pause": (
        called(retry_policy={"interval_max": NAN}), ("retry_policy= of pay", "interval_max=nan", "seconds")),
    "a task's option that is misspelt": (declared(max_retry=3), ("max_retry=3 of pay", "max_retries=")),
    "a call's option that is misspelt": (called(coutdown=3), ("coutdown=3 of pay", "countdown=")),
    "the function of a task as an option": (declared(run=len), ("run= is not an option of a task (pay)",)),
    "a method hidden by a value": (declared(on_failure=5), ("on_failure= is not an option of a task (pay)",)),
    "a state that is no text": (lambda app: declared()(app).update_state("id", 5), ("state=5 of pay", "text")),
    "an end that no signal is": (lambda app: app.control.revoke("id", signal="SIGWINCH"), ("signal='SIGWINCH'", "SIGTERM")),
    "children and threads": (lambda app: Worker(app, pool="threads", autoscale=(3, 1)), ("autoscale", "threads pool")),
    "children and coroutines": (lambda app: Worker(app, pool="asyncio", autoscale=(3, 1)), ("autoscale", "asyncio pool")),
    "more processes than tasks at once": (
        lambda app: Worker(app, pool="threads", concurrency=2, processes=3), ("processes=3", "1 to 2")),
    "processes of a pool that has no other": (lambda app: Worker(app, processes=2), ("processes=2", "prefork pool")),
    "a pool that is not": (lambda app: Worker(app, pool="thread"), ("pool='thread'", "threads", "asyncio", "solo")),
    "all queues excluded": (lambda app: Worker(app, exclude_queues="celery"), ("--exclude-queues",)),
    "a worker's soft limit above its hard one": (
        lambda app: Worker(app, soft_time_limit=2, time_limit=1), ("soft_time_limit=2", "time_limit=1")),
    "a hard limit and the solo pool": (
        lambda app: (declared(time_limit=10)(app), Worker(app, pool="solo").prepare()),
        ("solo pool can't enforce time_limit, which pay (10 s) has", "prefork")),
    "a soft limit and the threads pool": (
        lambda app: (declared(soft_time_limit=10)(app), Worker(app, pool="threads").prepare()),
        ("threads pool can't enforce soft_time_limit, which pay (10 s) has", "prefork")),
    "a limit of a function and the asyncio pool": (
        lambda app: (declared(time_limit=10)(app), Worker(app, pool="asyncio").prepare()),
        ("asyncio pool can't enforce time_limit for plain functions, which pay (10 s) has", "prefork")),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_TOGETHER)
def test_what_does_not_go_together_is_refused_and_nothing_is_sent(app: Celery, what: str) -> None:
    act, said = WRONG_TOGETHER[what]
    assert_said(refusal(lambda: act(app)), *said)
    assert waiting(app, "mail") == 0


# -- what is right --------------------------------------------------------------------------------

RIGHT_FOR_TASKS: dict[str, tuple[Any, ...]] = {
    "max_retries": (0, 5, None), "default_retry_delay": (0, 1.5, timedelta(minutes=1)),
    "autoretry_for": ((KeyError, OSError), [KeyError], ()), "throws": (KeyError, (KeyError,)),
    "retry_backoff": (True, False, 2, 0.5), "retry_backoff_max": (0, 60), "retry_jitter": (True, False),
    "retry_kwargs": ({}, {"max_retries": 5, "countdown": 3}, {"countdown": timedelta(1)}, {"eta": SOON}),
    "rate_limit": (None, 0, 10, 0.5, "10", "10/s", "100/m", "3.5/h"), "acks_late": (True, False, None, 1),
    "time_limit": (None, 60, 0.5), "soft_time_limit": (None, 60, 0.5), "ignore_result": (True, False, None),
    "expires": (None, 60, 1.5, timedelta(1), SOON, SOON.replace(tzinfo=None)), "trail": (True, False),
    "serializer": (None, "json", "pickle", "msgpack"), "compression": (None, "zlib", "gzip", "bzip2"),
    "priority": (None, 0, 9, Level.HIGH), "queue": (None, "mail"), "typing": (True, False),
    "delivery_mode": (None, 1, 2, "transient", "persistent"), "resultrepr_maxsize": (0, 10),
}  # fmt: skip
RIGHT_FOR_CALLS: dict[str, tuple[Any, ...]] = {
    "countdown": (None, 0, 3, 1.5, -1), "eta": (None, SOON, SOON.replace(tzinfo=None), SOON.isoformat()),
    "expires": (None, 60, 1.5, SOON, SOON.replace(tzinfo=None), SOON.isoformat()),
    "queue": (None, "mail", Name.MAIL), "priority": (None, 0, 9, Level.HIGH), "task_id": (None, "x", "é"),
    "serializer": (None, "json"), "compression": (None, "zlib", "gzip"), "shadow": (None, "x"),
    "headers": (None, {}, {"tenant": "ada"}), "ignore_result": (None, True, False), "retry": (None, True, False),
    "retry_policy": (None, {}, {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1}),
    "time_limit": (None, 60, 0.5), "soft_time_limit": (None, 60, 0.5), "delivery_mode": (None, 1, 2),
    "link": (None, [], {"task": "notify", "args": (), "kwargs": {}, "options": {"countdown": 3}}),
    "link_error": (None, [], [{"task": "notify", "args": (), "kwargs": {}, "options": {}}]),
    "add_to_parent": (True, False), "root_id": (None, "x"), "parent_id": (None, "x"), "group_id": (None, "x"),
    "group_index": (None, 0, 3), "reply_to": (None, "x"), "retries": (0, 3), "app_id": ("shop",), "user_id": ("x",),
    "tenant": ("ada", 5, ["x"], {"x": 1}), "message_id": ("x",), "replaced_task_nesting": (0, 1),
}  # fmt: skip


@pytest.fixture
def theirs() -> Any:
    celery = pytest.importorskip("celery", reason="real Celery is the oracle")
    return celery.Celery("theirs", broker="memory://", set_as_current=False)


@pytest.mark.parametrize("option", RIGHT_FOR_TASKS)
def test_what_celery_takes_for_an_option_of_a_task_is_taken(app: Celery, theirs: Any, option: str) -> None:
    for number, value in enumerate(RIGHT_FOR_TASKS[option]):
        theirs_made, ours = (
            each.task(name=f"pay{number}", shared=False, **{option: value})(nothing) for each in (theirs, app)
        )
        assert theirs_made.name == ours.name  # theirs is made when it is looked at
        ours.delay()
    assert waiting(app, "mail") == len(RIGHT_FOR_TASKS[option])


@pytest.mark.parametrize("option", RIGHT_FOR_CALLS)
def test_what_celery_takes_for_an_option_of_a_call_is_taken(
    app: Celery, pay: Task[..., Any], theirs: Any, option: str
) -> None:
    counterpart = theirs.task(same, name="pay", shared=False)
    for value in RIGHT_FOR_CALLS[option]:
        counterpart.apply_async((1,), **{option: value})
        pay.apply_async((1,), **{option: value})
    assert waiting(app, "mail") == len(RIGHT_FOR_CALLS[option])
    for value in RIGHT_FOR_CALLS[option]:
        assert pay.apply((1,), **{option: value}).get() == 1


def test_more_than_celery_takes_is_taken_where_it_can_mean_one_thing_only(
    app: Celery, pay: Task[..., Any]
) -> None:
    pay.apply_async(countdown=timedelta(hours=1), expires=timedelta(hours=2))
    pay.apply_async(countdown=1, eta=SOON)  # the countdown counts
    app.task(name="caught", autoretry_for=KeyError, dont_autoretry_for=OSError)(nothing).delay()
    app.task(name="limited", unique=timedelta(1), concurrency_limit=3, rate_limit="1/s")(lambda: None).delay()
