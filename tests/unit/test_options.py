"""Options of tasks and of calls: each is served, or refused in words that name it."""

from __future__ import annotations

import json
import warnings
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from minicelery import Celery, Task, options
from minicelery.exceptions import ImproperlyConfigured, QueueNotFound
from minicelery.message import Message


def sent(app: Celery, queue: str = "celery") -> list[Message]:
    """The messages that wait on the queue, taken off it."""
    consumer = app.broker.consumer([queue], "reader", None)
    return [delivery.message for delivery in consumer.swap([], 1000, 0)]


def nothing() -> None: ...


# -- options of a task -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("max_retry", "max_retries"), ("max_retires", "max_retries"), ("ack_late", "acks_late"),
        ("acksLate", "acks_late"), ("ignore_results", "ignore_result"), ("timelimit", "time_limit"),
        ("auto_retry_for", "autoretry_for"), ("retry_back_off", "retry_backoff"), ("rate_limt", "rate_limit"),
        ("serialiser", "serializer"), ("binds", "bind"), ("queu", "queue"), ("concurency_limit", "concurrency_limit"),
        ("default_retry_delays", "default_retry_delay"), ("throw", "throws"), ("trac_started", "track_started"),
    ],
)  # fmt: skip
def test_an_option_that_is_nearly_a_known_one_is_refused_with_its_name(
    app: Celery, wrong: str, right: str
) -> None:
    with pytest.raises(TypeError, match=f"{wrong}=3 of t is not an option of a task; did you mean {right}="):
        app.task(name="t", **{wrong: 3})(lambda: None)
    assert "t" not in app._registry


@pytest.mark.parametrize(
    "own", ["tenant", "feature_flag", "owner", "cache_key", "alert_channel", "sla", "_private"]
)
def test_an_option_of_ones_own_becomes_an_attribute(app: Celery, own: str) -> None:
    assert getattr(app.task(name="t", **{own: 3})(lambda: None), own) == 3


def test_an_option_that_the_base_has_is_its_own_affair(app: Celery) -> None:
    class Base(Task):
        max_retry = 1  # whatever that may mean to it

    assert app.task(name="t", base=Base, max_retry=3)(lambda: None).max_retry == 3


@pytest.mark.parametrize(
    ("option", "wrong", "accepted"),
    [
        ("max_retries", -1, "an integer >= 0, or None"),
        ("max_retries", "3", "an integer >= 0, or None"),
        ("max_retries", True, "an integer >= 0, or None"),
        ("default_retry_delay", -1, "a number of seconds >= 0 or a timedelta"),
        ("default_retry_delay", "1m", "a number of seconds >= 0 or a timedelta"),
        ("autoretry_for", "KeyError", "an exception class, or a tuple of them"),
        ("autoretry_for", (KeyError, 5), "an exception class, or a tuple of them"),
        ("dont_autoretry_for", 5, "an exception class"),
        ("throws", int, "an exception class"),
        ("retry_kwargs", [("countdown", 1)], "a mapping"),
        ("retry_backoff", "yes", "a boolean or a number of seconds"),
        ("retry_backoff", -1, "a boolean or a number of seconds"),
        ("retry_backoff_max", None, "a number of seconds"),
        ("retry_jitter", "no", "a boolean"),
        ("ignore_result", "no", "a boolean, or None"),
        ("acks_late", 2, "a boolean, or None"),
        ("acks_on_failure", "x", "a boolean, or None"),
        ("reject_on_worker_lost", "x", "a boolean, or None"),
        ("track_started", "x", "a boolean, or None"),
        ("store_errors_even_if_ignored", "x", "a boolean, or None"),
        ("typing", "x", "a boolean, or None"),
        ("trail", None, "a boolean"),
        ("send_events", "x", "a boolean"),
        ("resultrepr_maxsize", -1, "an integer >= 0"),
        ("time_limit", 0, "seconds greater than 0"),
        ("time_limit", True, "seconds greater than 0"),
        ("soft_time_limit", "60", "seconds greater than 0"),
        ("expires", "soon", "a number of seconds >= 0, a timedelta or a datetime"),
        ("priority", 256, "a whole number from 0 to 9"),
        ("priority", "high", "a whole number from 0 to 9"),
        ("serializer", "jsno", "'json'"),
        ("compression", "zilb", "'zlib'"),
        ("delivery_mode", 3, "1 or 2"),
        ("exchange_type", "topical", "an exchange type"),
        ("queue", 5, "a name, or an object that has one"),
        ("rate_limit", "ten", "a number of runs per second"),
        ("concurrency_limit", 0, "a whole number of runs greater than 0"),
        ("unique", "yes", "True, seconds"),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_the_declaration(
    app: Celery, option: str, wrong: Any, accepted: str
) -> None:
    with pytest.raises(ValueError) as refused:
        app.task(name="t", **{option: wrong})(lambda: None)
    assert f"{option}={wrong!r}"[:80] in str(refused.value) and " of t: expected " in str(refused.value)
    assert accepted in str(refused.value) and "t" not in app._registry


def test_values_of_a_base_are_checked_with_the_options(app: Celery) -> None:
    class Base(Task):
        soft_time_limit = 60

    with pytest.raises(ValueError, match="t: soft_time_limit=60 must not be greater than time_limit=10"):
        app.task(name="t", base=Base, time_limit=10)(lambda: None)

    class Wrong(Base):
        acks_late = "no"

        def run(self) -> None: ...

    with pytest.raises(ValueError, match=r"acks_late='no' of .*Wrong: expected a boolean"):
        app.register_task(Wrong)


def test_a_priority_that_the_broker_has_not_is_refused_before_the_first_call(app: Celery) -> None:
    with pytest.warns(DeprecationWarning, match="priority= of t"):
        task = app.task(name="t", priority=10)(lambda: None)
    with pytest.raises(
        ValueError, match=r"priority=10 of t: expected a whole number from 0 to 9 \(on RabbitMQ"
    ):
        task.delay()
    rabbit = Celery("rabbit", broker="amqp://", set_as_current=False)
    assert options.most_priority(rabbit.conf) == 255 and options.most_priority(app.conf) == 9


@pytest.mark.parametrize(
    "option", ["queue", "exchange", "routing_key", "exchange_type", "delivery_mode", "priority"]
)
def test_addresses_as_attributes_work_and_warn_as_in_celery(app: Celery, option: str) -> None:
    celery = pytest.importorskip("celery", reason="real Celery is the oracle")
    value = {"exchange_type": "direct", "delivery_mode": 1, "priority": 3}.get(option, "q")
    theirs = celery.Celery("theirs", broker="memory://", set_as_current=False)
    with pytest.warns(DeprecationWarning, match=f"The '{option}' task attribute is deprecated"):
        _ = theirs.task(name="t", shared=False, **{option: value})(nothing).name
    with pytest.warns(DeprecationWarning, match=f"the task attribute {option}= of t is deprecated"):
        task = app.task(name="t", **{option: value})(lambda: None)
    assert getattr(task, option) == value
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Base(Task): ...

        setattr(Base, option, value)  # a base may have it, for Celery too
        app.task(name="based", base=Base)(lambda: None)


# -- options of a call -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("coutdown", "countdown"), ("count_down", "countdown"), ("countDown", "countdown"), ("expire", "expires"),
        ("taskid", "task_id"), ("queues", "queue"), ("prioriy", "priority"), ("serialiser", "serializer"),
        ("link_errors", "link_error"), ("header", "headers"), ("ignore_results", "ignore_result"),
        ("timelimit", "time_limit"), ("soft_limit", "soft_time_limit"), ("retrypolicy", "retry_policy"),
        ("route_key", "routing_key"),
    ],
)  # fmt: skip
def test_a_misspelt_option_of_a_call_is_refused_with_the_right_name(
    app: Celery, wrong: str, right: str
) -> None:
    task = app.task(lambda: None, name="t")
    said = f"{wrong}=3 of t is not an option of a call; did you mean {right}="
    for call in (task.apply_async, task.apply, task.s().set(**{wrong: 3}).apply_async):
        with pytest.raises(TypeError, match=said):
            call(**({} if call.__self__ != task else {wrong: 3}))
    with pytest.raises(TypeError, match=said):
        task.apply_many([()], **{wrong: 3})
    with pytest.raises(TypeError, match=said):
        app.send_task("t", **{wrong: 3})
    assert sent(app) == []


@pytest.mark.parametrize(("wrong", "right"), [("coutdown", "countdown"), ("max_retry", "max_retries")])
def test_a_misspelt_option_of_a_retry_is_refused_with_the_right_name(
    app: Celery, wrong: str, right: str
) -> None:
    task = app.task(lambda self: self.retry(**{wrong: 3}), name="t", bind=True)
    with pytest.raises(TypeError, match=f"did you mean {right}="):
        task.apply(throw=True)
    with pytest.raises(TypeError, match=f"{wrong}=3 of u .*did you mean {right}="):
        app.task(name="u", retry_kwargs={wrong: 3})(lambda: None)
    app.task(name="v", retry_kwargs={"max_retries": 5, "countdown": 3, "queue": "q"})(lambda: None)


@pytest.mark.parametrize(
    "own", ["app_id", "user_id", "message_id", "type", "tenant", "x-trace", "customer_id"]
)
def test_other_options_are_properties_of_the_message_as_in_celery(app: Celery, own: str) -> None:
    app.task(lambda: None, name="t").apply_async(**{own: "shop"})
    assert sent(app)[0].properties[own] == "shop"


def test_an_option_that_only_tasks_have_is_said_to_have_no_effect(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    with pytest.warns(
        UserWarning, match=r"max_retries=5 has no effect on one call of t.*@app\.task\(max_retries="
    ) as said:
        task.apply_async(max_retries=5)
    assert said[0].filename == __file__


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"retry": "no"}, "retry='no' of t: expected True or False"),
        ({"ignore_result": "no"}, "ignore_result='no' of t: expected True or False"),
        ({"add_to_parent": 2}, "add_to_parent=2 of t: expected True or False"),
        ({"root_id": 5}, "root_id=5 of t: expected text"),
        ({"parent_id": 5}, "parent_id=5 of t: expected text"),
        ({"group_id": 5}, "group_id=5 of t: expected text"),
        ({"group_index": -1}, "group_index=-1 of t: expected a whole number"),
        ({"retries": "2"}, "retries='2' of t: expected a whole number"),
        ({"reply_to": 5}, "reply_to=5 of t: expected text"),
        ({"chain": "t"}, "chain='t' of t: expected a list of signatures"),
        ({"chord": "t"}, "chord='t' of t: expected a signature"),
        (
            {"priority": 10},
            r"priority=10 of t: expected a whole number from 0 to 9 \(on RabbitMQ up to 255\)",
        ),
        ({"countdown": True}, "countdown=True of t: expected seconds or a timedelta"),
        ({"eta": "tomorrow"}, "eta='tomorrow' of t: expected a datetime, or its text in ISO 8601"),
        ({"expires": []}, r"expires=\[\] of t: expected seconds, a timedelta or a datetime"),
        ({"retry_policy": 3}, "retry_policy=3 of t: expected a mapping of max_retries"),
        ({"retry_policy": {"max_retry": 3}}, "has no key 'max_retry'; did you mean 'max_retries'"),
        ({"retry_policy": {"wait": 3}}, "has no key 'wait'; there are max_retries, interval_start"),
        (
            {"retry_policy": {"max_retries": -1}},
            "retry_policy= of t: max_retries=-1: expected a whole number",
        ),
        ({"retry_policy": {"interval_step": "1"}}, "interval_step='1': expected seconds"),
        ({"timeout": "3"}, "timeout='3' of t: expected seconds"),
        ({"declare": "q"}, "declare='q' of t: expected a list"),
        ({"router": object()}, "router=.* of t: expected None; put routers into task_routes"),
        ({"connection": "amqp://"}, "connection=.* of t: expected a connection or producer of the app"),
        ({"stamped_headers": "a"}, "stamped_headers='a' of t: expected a list of names"),
        ({"stamped_headers": ["a"]}, "stamped_headers= of t names 'a', and there is no option a="),
        ({"stamps": 3}, "stamps=3 of t: expected a mapping"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_a_value_that_cannot_work_is_refused_by_every_way_to_call(app: Celery, wrong: Any, said: str) -> None:
    task = app.task(lambda: None, name="t")
    for call in (task.apply_async, task.apply, lambda **given: app.send_task("t", **given)):
        with pytest.raises(ValueError, match=said):
            call(**wrong)
    app.conf.task_always_eager = True
    with pytest.raises(ValueError, match=said):
        task.apply_async(**wrong)
    assert sent(app) == []


@pytest.mark.parametrize(
    ("args", "kwargs"), [("abc", None), ({1}, None), ({"x": 1}, None), (None, [1]), (None, {1: 2})]
)
def test_arguments_of_another_shape_are_refused_as_in_celery(app: Celery, args: Any, kwargs: Any) -> None:
    task = app.task(lambda *a, **k: None, name="t")
    for call in (task.apply_async, task.apply, lambda *given: app.send_task("t", *given)):
        with pytest.raises(TypeError, match=r"args=.* of t: expected a (list|mapping)|keywords must be"):
            call(args, kwargs)
    with pytest.raises(TypeError, match="args='abc' of t"):
        task.apply_many(["abc"])


@pytest.mark.parametrize(
    "text", ["2036-01-31T12:00:00+00:00", "2036-01-31T12:00:00Z", "2036-01-31T14:00:00+02:00"]
)
def test_times_may_be_given_as_text(app: Celery, text: str) -> None:
    task = app.task(lambda: None, name="t")
    task.apply_async(expires=text)
    (message,) = sent(app)
    expected = datetime(2036, 1, 31, 12, tzinfo=timezone.utc).timestamp()
    assert message.expires == expected
    task.apply_async(eta=text)
    assert sent(app) == [] and app.broker.delayed("celery") == 1 == app.broker.purge("celery")


def test_stamps_travel_as_celery_sends_them(app: Celery) -> None:
    app.task(lambda: None, name="t").apply_async(stamped_headers=["tenant", "queue"], tenant="a", queue="q")
    (message,) = sent(app, "q")
    assert message.headers["stamps"] == {"tenant": "a", "queue": "q"}
    assert message.headers["stamped_headers"] == ["tenant", "queue"] and "tenant" not in message.properties


def test_a_queue_that_there_is_not_is_refused_where_none_are_made(app: Celery) -> None:
    app.conf.task_queues = ["celery", "mail"]
    app.conf.task_create_missing_queues = False
    task = app.task(lambda: None, name="t")
    with pytest.raises(QueueNotFound, match=r"queue 'mial' is not in task_queues.*did you mean 'mail'"):
        task.apply_async(queue="mial")


def test_links_must_be_signatures(app: Celery) -> None:
    task = app.task(lambda x=0: None, name="t")
    for wrong in ("t", [task.s(), 5], task):
        with pytest.raises(ImproperlyConfigured, match="link= of t takes signatures"):
            task.apply_async(link=wrong)
    task.apply_async(link=(task.s(), {"task": "elsewhere"}))
    assert len(json.loads(sent(app)[0].body)[2]["callbacks"]) == 2


def test_a_soft_limit_above_the_hard_one_is_refused_wherever_they_come_from(app: Celery) -> None:
    task = app.task(lambda: None, name="t", time_limit=10)
    for wrong in ({"soft_time_limit": 20}, {"soft_time_limit": 5, "time_limit": 3}):
        with pytest.raises(ValueError, match="must not be greater than time_limit"):
            task.apply_async(**wrong)
        with pytest.raises(ValueError, match="must not be greater than time_limit"):
            task.apply(**wrong)


def test_what_has_no_meaning_here_is_accepted_as_celery_does(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    task.apply_async(
        mandatory=True, immediate=False, declare=[], timeout=3, confirm_timeout=1, exchange_type="direct",
        delivery_mode=2, retry=True, router=None, connection=None, countdown=timedelta(0),
        retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 1},
    )  # fmt: skip
    assert len(sent(app)) == 1
