"""Letters to and from Celery: its requests, its workers' answers, its events."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from minicelery.broker import Broker, open_broker
from minicelery.broker.amqp import post as amqp_post
from minicelery.broker.post import Box, Letter, Listening
from minicelery.message import new_id
from tests.interop.pair import Site, close_connections
from tests.waiting import wait_until

celery: Any = pytest.importorskip("celery", reason="real Celery is the other side")

pytestmark = pytest.mark.timeout(180)  # the first of them may start servers and workers

REQUESTS, REPLIES, EVENTS = "celery.pidbox", "reply.celery.pidbox", "celeryev"


@pytest.fixture(params=["redis", "rabbitmq"])
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


@pytest.fixture
def broker(site: Site) -> Iterator[Broker]:
    broker = open_broker(site.place.broker)
    yield broker
    broker.close()


def celery_app(site: Site) -> Any:
    return site.client("celery", "celery")


def first(listening: Listening, seconds: float = 30.0) -> Letter:
    found = listening.take(seconds)
    assert found, "nothing came"
    return found[0]


def test_a_worker_of_celerys_answers_our_request(site: Site, broker: Broker) -> None:
    site.await_worker("celery")
    oid, ticket = new_id(), new_id()
    request = {
        "method": "ping", "arguments": {}, "destination": None, "pattern": "celery@*", "matcher": "glob",
        "ticket": ticket, "reply_to": {"exchange": REPLIES, "routing_key": oid},
    }  # fmt: skip
    with broker.post.listen([Box(REPLIES, "direct", f"{oid}.{REPLIES}", oid)]) as listening:
        broker.post.send(
            [Letter(REQUESTS, "", json.dumps(request).encode(), {"clock": 1, "expires": 0}, True)]
        )
        while not (node := next(iter((letter := first(listening)).content))).startswith("celery@"):
            pass  # a worker of ours
    assert letter.content[node] == {"ok": "pong"}
    assert (letter.exchange, letter.routing_key) == (REPLIES, oid)
    assert letter.headers["ticket"] == ticket
    assert isinstance(letter.headers["clock"], int)


@contextlib.contextmanager
def answering(broker: Broker, node: str, *, by_name: bool = False) -> Iterator[list[Letter]]:
    """Answers one request to `node`, and notes it."""
    seen: list[Letter] = []

    def answer(listening: Listening) -> None:
        letter = first(listening)
        while letter.content["destination"] != [node]:
            letter = first(listening)
        seen.append(letter)
        where = letter.content["reply_to"]
        exchange, key = where["exchange"], where["routing_key"]
        if by_name:
            exchange, key = "", f"{key}.{exchange}"
        headers = {"ticket": letter.content["ticket"], "clock": 7}
        broker.post.send([Letter(exchange, key, json.dumps({node: {"ok": "pong"}}).encode(), headers)])

    with broker.post.listen([Box(REQUESTS, "fanout", f"{node}.{REQUESTS}")]) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        yield seen
        thread.join()


@pytest.mark.parametrize("by_name", [False, True], ids=["exchange", "queue"])
def test_celery_takes_our_answer_to_its_request(site: Site, broker: Broker, by_name: bool) -> None:
    node = f"post-{new_id()}@here"
    with answering(broker, node, by_name=by_name) as seen:
        assert celery_app(site).control.ping([node], timeout=30) == [{node: {"ok": "pong"}}]
    (letter,) = seen
    assert letter.content["method"] == "ping"
    assert (letter.persistent, set(letter.headers)) == (True, {"clock", "expires"})


@pytest.mark.parametrize(
    "options",
    [{"global_keyprefix": "pre[x]:"}, {"fanout_prefix": "fan.{db}."}, {"fanout_patterns": False}],
    ids=str,
)
def test_transport_options_of_redis_mean_the_same(redis_site: Site, options: dict[str, Any]) -> None:
    node = f"post-{new_id()}@here"
    url = redis_site.server.url(db=3)
    app = celery.Celery("options", broker=url, set_as_current=False)
    app.conf.broker_transport_options = options
    broker = open_broker(url, options=options)
    try:
        with answering(broker, node):
            assert app.control.ping([node], timeout=30) == [{node: {"ok": "pong"}}]
        with broker.post.listen([Box(EVENTS, "topic", f"celeryev.{new_id()}", "worker.#")]) as listening:
            with app.connection_for_write() as connection:
                app.events.Dispatcher(connection, hostname=node).send("worker-online", freq=2.0)
            assert first(listening).routing_key == "worker.online"
    finally:
        broker.close()
        close_connections(app)
        app.close()


def test_celery_hears_our_events(site: Site, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_post, "BRIEF", amqp_post.PATIENCE)
    app = celery_app(site)
    host = f"post-{new_id()}@here"
    common = {"hostname": host, "utcoffset": 0, "pid": 1, "clock": 5, "timestamp": 1795226117.5}
    online = {**common, "freq": 2.0, "type": "worker-online"}
    tasks = [{**common, "uuid": "u", "type": "task-started"}, {**common, "uuid": "v", "type": "task-started"}]
    heard: list[dict[str, Any]] = []

    def note(event: dict[str, Any]) -> None:
        if event["hostname"] == host:
            heard.append(event)

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})

        thread = threading.Thread(target=receiver.capture, kwargs={"timeout": 60, "wakeup": False})
        thread.start()
        online_letter = Letter(EVENTS, "worker.online", json.dumps(online).encode(), {"hostname": host})

        def is_heard() -> bool:
            broker.post.send([online_letter])
            return bool(heard)

        wait_until(is_heard, 30, interval=0.05)
        consumer = broker.consumer(["nothing-is-here"], new_id(), None)
        consumer.post([Letter(EVENTS, "task.multi", json.dumps(tasks).encode(), {"hostname": host})])
        consumer.swap([], 0, 0)
        wait_until(lambda: sum(event["type"] == "task-started" for event in heard) == 2, 30)
        consumer.close()
        receiver.should_stop = True
        broker.post.send([online_letter])
        thread.join(15)
    started = [event for event in heard if event["type"] == "task-started"]
    assert [event["uuid"] for event in started] == ["u", "v"]
    assert {name: heard[0][name] for name in online if name != "clock"} == {
        name: value for name, value in online.items() if name != "clock"
    }


def test_we_hear_celerys_events(site: Site, broker: Broker) -> None:
    app = celery_app(site)
    host = f"post-{new_id()}@here"
    with broker.post.listen([Box(EVENTS, "topic", f"celeryev.{new_id()}", "worker.#")]) as listening:
        with app.connection_for_write() as connection:
            dispatcher = app.events.Dispatcher(connection, hostname=host)
            dispatcher.send("task-started", uuid="u")
            dispatcher.send("worker-online", freq=2.0)
            dispatcher.close()
        letter = first(listening)
        while letter.headers["hostname"] != host:
            letter = first(listening)
    assert (letter.exchange, letter.routing_key) == (EVENTS, "worker.online")
    assert letter.content["type"] == "worker-online"
    assert letter.content["freq"] == 2.0
