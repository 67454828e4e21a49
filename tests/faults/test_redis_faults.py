"""What a Redis that fails does to those who send, consume and wait."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from minicelery import Celery
from minicelery.broker.redis import RedisBroker
from minicelery.broker.url import parse_url
from minicelery.exceptions import BackendUnavailable, BrokerUnavailable, OperationalError, TimeoutError
from minicelery.message import Outcome, Verdict
from minicelery.request import Request
from tests.proxy import Proxy
from tests.waiting import wait_until, within

DEADLINE = 5.0


@pytest.fixture
def proxy(private_redis: Any) -> Iterator[Proxy]:
    with Proxy(private_redis.port) as proxy:
        yield proxy


@pytest.fixture
def server(private_redis: Any) -> Iterator[redis.Redis]:
    client = redis.Redis(port=private_redis.port)
    yield client
    client.close()


def app_at(port: int, password: str = "") -> Celery:
    secret = f":{password}@" if password else ""
    url = f"redis://{secret}127.0.0.1:{port}/0"
    app = Celery("faults", broker=url, backend=url, set_as_current=False)
    app.task(name="noop")(lambda: None)
    return app


def failure_to_send(app: Celery) -> str:
    """The text of the OperationalError, which is raised by the deadline of a publish."""

    def send() -> str:
        with pytest.raises(OperationalError) as caught:
            app.tasks["noop"].delay()
        return str(caught.value)

    return within(DEADLINE + 0.5, send)


def test_a_send_whose_reply_is_lost_is_repeated_and_arrives_once(proxy: Proxy, server: redis.Redis) -> None:
    app = app_at(proxy.port)
    app.tasks["noop"].delay()
    for passed in (0, 1, 2, 3) * 5:
        server.delete("celery")
        proxy.cut_reply_after(passed)
        app.tasks["noop"].delay()
        assert server.llen("celery") == 1
    app.close()


def test_a_batch_whose_reply_is_lost_arrives_once(proxy: Proxy, server: redis.Redis) -> None:
    app = app_at(proxy.port)
    app.tasks["noop"].delay()
    server.delete("celery")
    proxy.cut_reply_after(1)
    app.tasks["noop"].apply_many([()] * 1200)
    assert server.llen("celery") == 1200
    app.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_consumer_whose_replies_are_cut_anywhere_gets_every_message_once(
    proxy: Proxy, server: redis.Redis, seed: int
) -> None:
    rng = random.Random(seed)
    direct = app_at(server.connection_pool.connection_kwargs["port"])
    direct.tasks["noop"].apply_many([()] * 40)
    broker = RedisBroker(parse_url(f"redis://127.0.0.1:{proxy.port}/0"), {})
    consumer = broker.consumer(["celery"], "cut", None)
    got: Counter[str] = Counter()
    done: list[Outcome] = []
    end = time.monotonic() + 40
    while time.monotonic() < end:
        if rng.random() < 0.3:
            proxy.cut_reply_after(rng.choice([0, 1, 5, 50, 500, 1500]))
        if rng.random() < 0.1:
            proxy.cut()
        try:
            fetched = consumer.swap(done, rng.choice([1, 4, 16]), 0)
        except BrokerUnavailable:
            continue
        done = [Outcome(delivery) for delivery in fetched]
        got.update(delivery.message.id for delivery in fetched)
        if not fetched and len(got) == 40:
            break
    assert len(got) == 40
    assert set(got.values()) == {1}
    proxy.flow()
    consumer.close()
    assert server.keys("*.held:*") == []
    direct.close()


def test_a_result_is_stored_once_though_the_reply_is_lost(proxy: Proxy, server: redis.Redis) -> None:
    app = app_at(proxy.port)
    app.tasks["noop"].delay()
    consumer = app.broker.consumer(["celery"], "once", None)
    [delivery] = consumer.swap((), 1, 0)
    again = [Outcome(delivery, publish=[delivery.message])]
    proxy.cut_reply_after(0)
    with pytest.raises(BrokerUnavailable):
        consumer.swap(again, 0, 0)
    consumer.swap(again, 0, 0)
    assert server.llen("celery") == 1
    consumer.close()
    app.close()


def test_a_silent_server_is_reported_within_the_publish_deadline(proxy: Proxy) -> None:
    app = app_at(proxy.port)
    app.tasks["noop"].delay()
    proxy.stall()
    text = failure_to_send(app)
    assert "no answer in time" in text
    assert f"127.0.0.1:{proxy.port}" in text
    proxy.flow()
    app.tasks["noop"].delay()
    app.close()


def test_a_full_server_is_reported_with_the_way_out(server: redis.Redis, private_redis: Any) -> None:
    server.config_set("maxmemory", 1)
    text = failure_to_send(app_at(private_redis.port))
    assert "full" in text
    assert "maxmemory" in text


def test_an_error_in_the_middle_of_several_answers_does_not_shift_the_next_ones(
    server: redis.Redis, private_redis: Any
) -> None:
    app = app_at(private_redis.port)
    app.tasks["noop"].delay()
    server.config_set("maxmemory", 1)
    with pytest.raises(OperationalError, match="memory"):
        app.broker.remember("topic", "key", 60.0, b"value")
    for _ in range(3):
        assert "memory" in failure_to_send(app)
    server.config_set("maxmemory", 0)
    assert app.broker.size("celery") == 1
    app.close()


def test_a_full_server_still_settles_what_was_fetched(server: redis.Redis, private_redis: Any) -> None:
    app = app_at(private_redis.port)
    app.tasks["noop"].delay()
    consumer = app.broker.consumer(["celery"], "full", None)
    deliveries = consumer.swap((), 1, 0)
    server.config_set("maxmemory", 1)
    consumer.swap([Outcome(delivery) for delivery in deliveries], 0, 0)
    assert server.keys("*.held:*") == []
    server.config_set("maxmemory", 0)
    consumer.close()
    app.close()


def test_a_demoted_server_is_reported_and_used_again_once_promoted(
    server: redis.Redis, private_redis: Any
) -> None:
    app = app_at(private_redis.port)
    server.replicaof("127.0.0.1", 9)
    assert "replica" in failure_to_send(app)
    server.replicaof("NO", "ONE")
    app.tasks["noop"].delay()
    app.close()


@pytest.mark.parametrize("password", ["", "not-the-secret"])
def test_a_wrong_password_is_reported_without_quoting_it(
    server: redis.Redis, private_redis: Any, password: str
) -> None:
    server.config_set("requirepass", "the-secret")
    text = failure_to_send(app_at(private_redis.port, password))
    assert "password" in text
    assert "secret" not in text


def test_no_server_is_reported_with_a_hint(private_redis: Any) -> None:
    private_redis.stop()
    text = failure_to_send(app_at(private_redis.port))
    assert "connection refused" in text
    assert "broker_url" in text


def test_get_goes_on_waiting_while_the_server_restarts(private_redis: Any) -> None:
    app = app_at(private_redis.port)
    result = app.tasks["noop"].delay()
    private_redis.kill()
    with pytest.raises(TimeoutError):
        result.get(timeout=0.5)
    with pytest.raises(BackendUnavailable):
        assert result.state
    private_redis.restart()
    wait_until(lambda: result.state == "PENDING")
    app.close()


def test_a_given_up_consumer_settles_nothing_under_its_old_name(proxy: Proxy, server: redis.Redis) -> None:
    app = app_at(proxy.port)
    app.tasks["noop"].delay()
    first = app.broker.consumer(["celery"], "first", None)
    [delivery] = first.swap((), 1, 0)
    second = app.broker.consumer(["celery"], "second", None)
    [adopted] = second.adopt("first", {delivery.receipt: "it died"})
    assert adopted.started
    assert adopted.reason == "it died"
    first.swap([Outcome(delivery, Verdict.REQUEUE)], 0, 0)
    assert server.llen("celery") == 0
    first.close()
    second.close()
    assert server.llen("celery") == 1
    app.close()


def test_a_result_too_big_for_who_listens_is_read_all_the_same(
    server: redis.Redis, private_redis: Any
) -> None:
    server.config_set("client-output-buffer-limit", "pubsub 100000 0 0")
    app = app_at(private_redis.port)
    app._store_state("big", "SUCCESS", "x" * 1_000_000, Request())
    assert len(app.AsyncResult("big").get(timeout=10)) == 1_000_000
    app.close()
