"""Where calls go: routes, queues, exchanges and priorities."""

from __future__ import annotations

import re
from typing import Any

import pytest

from minicelery import Broadcast, Celery, Exchange, Queue, binding
from minicelery.exceptions import ImproperlyConfigured, QueueNotFound
from minicelery.message import Outcome
from minicelery.worker import Worker
from tests.compat.stage import Stage, each


def pick(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **more: Any) -> Any:
    """A router: by the task's name, and by its first argument."""
    if name == "shop.send":
        return {"queue": "mail"} if args and args[0] == "letter" else None
    return None


ROUTES: dict[str, Any] = {
    "dict, exact name": {"shop.send": {"queue": "mail"}},
    "dict, glob": {"shop.*": {"queue": "mail"}},
    "dict, compiled regex": {re.compile(r"shop\.(send|post)"): {"queue": "mail"}},
    "dict, name of a queue": {"shop.send": "mail"},
    "list of pairs": [("other.*", {"queue": "other"}), ("shop.*", {"queue": "mail"})],
    "list of routers": [{"other": "other"}, pick],
    "function": pick,
    "dotted path": "tests.compat.test_routing.pick",
}


@each(ROUTES)
def test_a_route_sends_a_task_to_its_queue(stage: Stage, case: Any) -> None:
    stage.app.conf.task_routes = case
    found = stage.app.task(lambda *_: 1, name="shop.send").apply_async(("letter",))
    stage.app.send_task("nobody.knows", ("letter",))
    assert {one.task: one.queue for one in stage.sent()} == {"shop.send": "mail", "nobody.knows": "celery"}
    stage.work("mail")
    assert found.get(timeout=1) == 1


def test_the_first_router_with_an_answer_wins(stage: Stage) -> None:
    stage.app.conf.task_routes = (pick, {"shop.send": "first"}, {"shop.*": "second"})
    task = stage.app.task(lambda *_: 1, name="shop.send")
    task.delay("letter")
    task.delay("parcel")
    assert [one.queue for one in stage.sent()] == ["mail", "first"]


def test_options_of_the_call_beat_the_route(stage: Stage) -> None:
    stage.app.conf.task_routes = {"t": {"queue": "routed", "priority": 2}}
    task = stage.app.task(lambda: 1, name="t")
    task.delay()
    task.apply_async(queue="called", priority=5)
    assert [(one.queue, one.priority) for one in stage.sent()] == [("routed", 2), ("called", 5)]


def test_a_router_is_given_name_arguments_options_and_task(stage: Stage) -> None:
    seen: list[Any] = []

    def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **more: Any) -> None:
        seen.append((name, list(args), dict(kwargs), options.get("priority"), task))

    stage.app.conf.task_routes = route
    task = stage.app.task(lambda *_, **__: 1, name="t")
    task.apply_async((1,), {"x": 2}, priority=3)
    assert seen == [("t", [1], {"x": 2}, 3, task)]


def test_a_queue_has_its_exchange_and_key(stage: Stage) -> None:
    stage.app.conf.task_queues = [
        Queue("celery"), Queue("mail", Exchange("post", type="topic"), routing_key="letter.#")
    ]  # fmt: skip
    stage.app.task(lambda: 1, name="t").apply_async(exchange="post", routing_key="letter.eu.fast")
    [message] = stage.sent()
    assert (message.queue, message.exchange, message.routing_key) == ("mail", "post", "letter.eu.fast")


@each({
    "direct": ("direct", {"a": "red", "b": "blue"}, "red", {"a"}),
    "topic": ("topic", {"a": "*.eu", "b": "mail.#"}, "mail.eu", {"a", "b"}),
    "fanout": ("fanout", {"a": "", "b": ""}, "any", {"a", "b"}),
})  # fmt: skip
def test_an_exchange_feeds_its_queues_as_its_type_says(stage: Stage, case: Any) -> None:
    kind, keys, key, expected = case
    exchange = Exchange("post", type=kind)
    stage.app.conf.task_queues = [Queue(name, exchange, routing_key=one) for name, one in keys.items()]
    stage.app.task(lambda: 1, name="t").apply_async(exchange="post", routing_key=key)
    assert {one.queue for one in stage.sent()} == expected


def test_a_queue_may_have_several_bindings(stage: Stage) -> None:
    post, bills = Exchange("post"), Exchange("bills")
    stage.app.conf.task_queues = [Queue("mail", [binding(post, "letter"), binding(bills, "bill")])]
    task = stage.app.task(lambda: 1, name="t")
    task.apply_async(exchange="post", routing_key="letter")
    task.apply_async(exchange="bills", routing_key="bill")
    assert [one.queue for one in stage.sent()] == ["mail", "mail"]


def test_a_queue_is_found_by_its_alias(stage: Stage) -> None:
    stage.app.conf.task_queues = [Queue("celery"), Queue("mail-queue-of-berlin", alias="mail")]
    stage.app.task(lambda: 1, name="t").apply_async(queue="mail")
    assert [one.queue for one in stage.sent()] == ["mail-queue-of-berlin"]


@each({
    "queue_arguments": (Queue("mail", queue_arguments={"x-max-priority": 10}), "x-max-priority", 10),
    "max_priority": (Queue("mail", max_priority=9), "x-max-priority", 9),
    "max_length": (Queue("mail", max_length=100), "x-max-length", 100),
    "expires": (Queue("mail", expires=60.0), "x-expires", 60_000),
    "message_ttl": (Queue("mail", message_ttl=5.0), "x-message-ttl", 5_000),
})  # fmt: skip
def test_a_queue_is_declared_with_its_arguments(rabbit_url: str, case: Any) -> None:
    import pika

    queue, argument, value = case
    with Celery("compat", broker=rabbit_url, set_as_current=False) as app:
        app.conf.task_queues = [queue]
        app.send_task("t", queue="mail")
    with pika.BlockingConnection(pika.URLParameters(rabbit_url)) as connection:
        connection.channel().queue_declare("mail", durable=True, arguments={argument: value})
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="inequivalent"):
            connection.channel().queue_declare("mail", durable=True, arguments={argument: value + 1})


def test_a_broadcast_reaches_every_worker(stage: Stage) -> None:
    stage.app.conf.task_queues = [
        Queue("celery"),
        Broadcast("news", queue="news.one"),
        Broadcast("news", queue="news.two"),
    ]
    stage.app.task(lambda: 1, name="t").apply_async(queue="news")
    assert sorted(one.queue for one in stage.sent()) == ["news.one", "news.two"]


def test_a_worker_has_a_queue_of_its_own_where_asked(stage: Stage) -> None:
    stage.app.conf.worker_direct = True
    worker = Worker(stage.app, hostname="w1@host", pool="solo")
    assert worker.queues == ["celery", "w1@host.dq2"]
    stage.app.task(lambda: 1, name="t").apply_async(queue="w1@host.dq2", exchange="C.dq2")
    assert [one.queue for one in stage.sent()] == ["w1@host.dq2"]


@each({
    "-Q": ({"queues": "mail,other"}, ["mail", "other"]),
    "-X": ({"exclude_queues": "mail"}, ["celery"]),
    "all of task_queues": ({}, ["celery", "mail"]),
})  # fmt: skip
def test_a_worker_serves_the_queues_it_is_told_to(stage: Stage, case: Any) -> None:
    options, expected = case
    stage.app.conf.task_queues = [Queue("celery"), Queue("mail")]
    assert Worker(stage.app, pool="solo", **options).queues == expected


def test_a_worker_refuses_a_queue_that_may_not_be_made(stage: Stage) -> None:
    stage.app.conf.task_create_missing_queues = False
    stage.app.conf.task_queues = [Queue("celery"), Queue("mail")]
    with pytest.raises((ImproperlyConfigured, QueueNotFound), match=r"nail.*mail"):
        Worker(stage.app, pool="solo", queues="nail")


def test_unknown_queues_are_made_as_the_settings_say(stage: Stage) -> None:
    stage.app.task(lambda: 1, name="t").apply_async(queue="new")
    assert [one.queue for one in stage.sent()] == ["new"]


@each({"task_default_queue": "mine", "task_default_exchange": "mine", "task_default_routing_key": "mine"})
def test_calls_without_an_address_go_to_the_default_queue(stage: Stage, case: str) -> None:
    stage.app.conf.task_default_queue = case
    found = stage.app.task(lambda: 1, name="t").delay()
    stage.work(case)
    assert found.get(timeout=1) == 1


# -- priorities ----------------------------------------------------------------------------------------


def order(app: Celery, *, fetch: int = 10) -> list[int]:
    """The priorities in the order in which a worker gets the calls."""
    for priority in (5, 0, 9, 7):
        app.send_task("t", (priority,), priority=priority)
    consumer = app.broker.consumer(["celery"], "compat", None)
    got: list[int] = []
    try:
        while len(got) < 4:
            [delivery] = consumer.swap([], 1, 5.0)
            got.append(int(delivery.message.headers["argsrepr"].strip("(),")))
            consumer.swap([Outcome(delivery)], 0, 0.0)
    finally:
        consumer.close()
        app.close()
    return got


def test_on_redis_0_is_served_first_in_celerys_steps(redis_url: str, redis_server: Any) -> None:
    assert order(Celery("compat", broker=redis_url, set_as_current=False)) == [0, 5, 7, 9]
    with Celery("compat", broker=redis_url, set_as_current=False) as app:
        app.send_task("t", priority=7)
    assert b"celery\x06\x166" in redis_server.command("KEYS", "celery*")


def test_on_rabbitmq_the_highest_is_served_first(rabbit_url: str) -> None:
    app = Celery("compat", broker=rabbit_url, set_as_current=False)
    app.conf.task_queue_max_priority = 10
    assert order(app) == [9, 7, 5, 0]


def test_on_rabbitmq_delays_are_celerys_in_the_broker(rabbit_url: str) -> None:
    import pika

    with Celery("compat", broker=rabbit_url, set_as_current=False) as app:
        app.conf.broker_native_delayed_delivery_queue_type = "classic"
        app.send_task("t", countdown=30)
        found = pika.BlockingConnection(pika.URLParameters(rabbit_url))
        try:
            channel = found.channel()
            waiting = [
                channel.queue_declare(f"celery_delayed_{level}", passive=True).method.message_count
                for level in range(28)
            ]
            channel.exchange_declare("celery_delayed_delivery", passive=True)
        finally:
            found.close()
    assert sum(waiting) == 1 and waiting[4] == 1  # 2^4 s first, of 29 whole seconds or so
