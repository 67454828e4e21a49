"""What Celery's workers took and never acknowledged comes back to the queues that are served here."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from minicelery.broker import open_broker
from tests.waiting import wait_until

kombu = pytest.importorskip("kombu", reason="real Celery is the other side")

ROOT = Path(__file__).parents[2]
PATIENCE = 0.05
"""The visibility timeout of most tests."""


def make_app(library: str, url: str, **options: Any) -> Any:
    """The app with its two tasks, in `library`; `options` are those of the transport."""
    app = importlib.import_module(library).Celery("leftovers", broker=url, backend=url, set_as_current=False)
    app.conf.broker_transport_options = options
    if library == "celery":
        app.conf.broker_connection_retry_on_startup = True  # else it warns
    store = redis.Redis.from_url(url)

    @app.task(name="note", shared=False)
    def note(key: str, value: Any) -> None:
        store.rpush(key, value)

    @app.task(name="wait", shared=False)
    def wait(key: str) -> None:
        store.rpush(key, "began")
        store.blpop([f"{key}.go on"], timeout=30)

    return app


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


class Consumers:
    """kombu's side: takes messages as Celery's worker does, and is gone without a word."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connections: list[Any] = []

    def channel(self, **options: Any) -> Any:
        connection = kombu.Connection(self.url, transport_options=options)
        self._connections.append(connection)
        return connection.channel()

    def take(self, channel: Any, *queues: str) -> None:
        """Hold the next message of each of the queues."""
        for queue in queues:
            assert channel.basic_get(queue, no_ack=False) is not None

    def forget(self) -> None:
        """Close without giving anything back."""
        for connection in self._connections:
            for channel in list(connection.transport.channels):
                channel.do_restore = False
                channel.qos._on_collect.cancel()
                channel.qos._delivered.clear()
            connection.release()


@pytest.fixture
def consumers(redis_url: str) -> Iterator[Consumers]:
    consumers = Consumers(redis_url)
    yield consumers
    consumers.forget()


@pytest.fixture
def make_broker(redis_url: str) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def make(**options: Any) -> Any:
        opened.append(open_broker(redis_url, options={"visibility_timeout": PATIENCE, **options}))
        return opened[-1]

    yield make
    for broker in opened:
        broker.close()


def celery_sends(url: str, *values: Any, queue: str = "q", prefix: str = "", **options: Any) -> list[str]:
    """Send a call of `note` for each value from a Celery client; the ids."""
    app = make_app("celery", url, global_keyprefix=prefix)
    sent = [app.tasks["note"].apply_async(("k", value), queue=queue, **options) for value in values]
    ids = [str(result.id) for result in sent]
    app.close()
    return ids


def listed(server: redis.Redis, key: str) -> list[dict[str, Any]]:
    """The messages of a list, the next one to be delivered first."""
    return [json.loads(raw) for raw in reversed(server.lrange(key, 0, -1))]


def ids(envelopes: list[dict[str, Any]]) -> list[str]:
    return [envelope["headers"]["id"] for envelope in envelopes]


# -- whole workers ---------------------------------------------------------------------------


def start_worker(library: str, url: str, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A worker of `library` on the queue `left`, with a visibility timeout of a second."""
    code = (
        f"from {__name__} import make_app\n"
        f"app = make_app({library!r}, {url!r}, visibility_timeout=1)\n"
        f"app.worker_main(['worker', '-Q', 'left', '-c', '1', '-l', 'INFO', *{arguments!r}])\n"
    )
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def kill_all(worker: subprocess.Popen[bytes]) -> None:
    """SIGKILL the worker and its children: the group is its own."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(10)


@pytest.mark.timeout(240)
def test_what_a_killed_celery_worker_had_prefetched_runs_here(
    redis_url: str, server: redis.Redis, tmp_path: Path
) -> None:
    client = make_app("celery", redis_url)
    arguments = ("--prefetch-multiplier", "5", "--without-gossip", "--without-mingle")
    worker = start_worker("celery", redis_url, tmp_path / "celery.log", *arguments)
    try:
        client.tasks["wait"].apply_async(("busy",), queue="left")
        wait_until(lambda: server.exists("busy"), timeout=90)
        sent = [
            client.tasks["note"].apply_async(("runs", number), queue="left", priority=priority)
            for number, priority in enumerate((0, 0, 7))
        ]
        wait_until(lambda: server.hlen("unacked") == 3 and not server.exists("left"), timeout=20)
    finally:
        kill_all(worker)
    assert not server.exists("runs")
    # So that all of them are old enough when they are looked at first, and are told of at once.
    wait_until(lambda: server.zcount("unacked_index", "-inf", time.time() - 1.1) == 3)
    worker = start_worker("minicelery", redis_url, tmp_path / "minicelery.log")
    try:
        assert [one.get(timeout=60) for one in sent] == [None, None, None]
        assert sorted(server.lrange("runs", 0, -1)) == [b"0", b"1", b"2"]
        assert not server.exists("unacked", "unacked_index")
        # The tasks may have run before it is said.
        told = r"Celery workers have held 3 messages for more than 1 s: .*\n"
        line = wait_until(lambda: re.search(told, (tmp_path / "minicelery.log").read_text()))
        assert sent[2].id in line[0]
    finally:
        kill_all(worker)
        client.close()


# -- one step at a time ----------------------------------------------------------------------


def test_it_goes_to_the_front_marked_and_is_otherwise_as_it_was(
    redis_url: str, server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any]
) -> None:
    odd = {"x-empty": [], "x-none": {}, "x-long": 2**60, "x-text": 'headers": {"é☃}], "a", "b"]'}
    first, second, third = celery_sends(redis_url, 'a"}]', "b", "c", headers=odd)
    before = listed(server, "q")
    consumers.take(consumers.channel(), "q", "q")
    time.sleep(PATIENCE + 0.01)
    make_broker().tend(["q"], [])
    after = listed(server, "q")
    assert ids(after) == [first, second, third]
    for envelope in before[:2]:
        envelope["headers"]["redelivered"] = True
        envelope["properties"]["delivery_info"]["redelivered"] = True
    assert after == before
    assert not server.exists("unacked", "unacked_index")
    assert server.exists("q.bell")


def test_restored_again_it_is_marked_once(
    redis_url: str, server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any]
) -> None:
    celery_sends(redis_url, "a")
    channel = consumers.channel()
    for _ in range(2):
        consumers.take(channel, "q")
        time.sleep(PATIENCE + 0.01)
        make_broker().tend(["q"], [])
    assert server.lindex("q", 0).count(b'"redelivered"') == 2  # in the headers and the delivery_info


def test_what_is_younger_than_the_visibility_timeout_stays(
    redis_url: str, server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any]
) -> None:
    celery_sends(redis_url, "a")
    consumers.take(consumers.channel(), "q")
    make_broker(visibility_timeout=60).tend(["q"], [])
    make_broker(visibility_timeout=None).tend(["q"], [])
    assert (server.hlen("unacked"), server.zcard("unacked_index"), server.llen("q")) == (1, 1, 0)


def test_what_is_of_a_queue_that_is_not_served_stays_and_hides_nothing(
    redis_url: str, server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any]
) -> None:
    celery_sends(redis_url, "mine")
    celery_sends(redis_url, *range(25), queue="theirs")
    channel = consumers.channel()
    channel.qos.prefetch_count = 0
    consumers.take(channel, "q", *["theirs"] * 25)
    time.sleep(PATIENCE + 0.01)
    broker = make_broker()
    for _ in range(3):  # ten are looked at in each
        assert server.llen("q") == 0
        broker.tend(["q"], [])
    assert (server.llen("q"), server.llen("theirs"), server.hlen("unacked")) == (1, 0, 25)


def test_its_priority_decides_on_the_list(
    redis_url: str, server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any]
) -> None:
    (id,) = celery_sends(redis_url, "a", priority=8)
    consumers.take(consumers.channel(), "q")
    time.sleep(PATIENCE + 0.01)
    make_broker().tend(["q"], [])
    assert ids(listed(server, "q\x06\x166")) == [id]


def test_keys_have_kombus_prefix(
    redis_url: str, server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any]
) -> None:
    (id,) = celery_sends(redis_url, "a", prefix="shop:")
    consumers.take(consumers.channel(global_keyprefix="shop:"), "q")
    assert server.exists("shop:unacked", "shop:unacked_index") == 2
    time.sleep(PATIENCE + 0.01)
    make_broker().tend(["q"], [])
    make_broker(global_keyprefix="other:").tend(["q"], [])
    assert server.llen("shop:q") == 0
    make_broker(global_keyprefix="shop:").tend(["q"], [])
    assert ids(listed(server, "shop:q")) == [id]
    assert not server.exists("shop:unacked", "shop:unacked_index")


@pytest.mark.parametrize(
    ("kind", "binding", "key", "comes_back"),
    [
        ("direct", "orders", "orders", True),
        ("topic", "mail.#", "mail.eu.1", True),
        ("topic", "*.eu", "mail.eu", True),
        ("topic", "mail.#", "mail.#", True),
        ("topic", "*.eu", "mail.asia.eu", False),
        ("topic", "mail.#", "post.1", False),
    ],
)
def test_the_bindings_name_the_queue_of_an_exchange(
    server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any],
    kind: str, binding: str, key: str, comes_back: bool,
) -> None:  # fmt: skip
    channel = consumers.channel()
    exchange = kombu.Exchange("x", kind)
    queue = kombu.Queue("q", exchange, binding)
    queue(channel).declare()
    # Straight to its queue, so that a key that does not match can be tried.
    kombu.Producer(channel).publish({}, routing_key="q")
    envelope = json.loads(server.rpop("q"))
    envelope["properties"]["delivery_info"] = {"exchange": "x", "routing_key": key}
    server.lpush("q", json.dumps(envelope))
    consumers.take(channel, "q")
    time.sleep(PATIENCE + 0.01)
    make_broker().tend(["q"], [])
    assert server.llen("q") == comes_back
    assert server.hlen("unacked") == (not comes_back)


def test_while_a_celery_worker_restores_we_wait_for_our_turn(
    redis_url: str, server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any]
) -> None:
    celery_sends(redis_url, "a")
    consumers.take(consumers.channel(), "q")
    time.sleep(PATIENCE + 0.01)
    broker = make_broker()
    with server.lock("unacked_mutex", timeout=60):
        broker.tend(["q"], [])
        assert server.llen("q") == 0
    broker.tend(["q"], [])
    assert server.llen("q") == 1


def test_celery_and_we_together_restore_each_message_once(
    redis_url: str, server: redis.Redis, consumers: Consumers, make_broker: Callable[..., Any]
) -> None:
    sent = celery_sends(redis_url, *range(200))
    channel = consumers.channel()
    channel.qos.prefetch_count = 0
    consumers.take(channel, *["q"] * 200)
    living = consumers.channel(visibility_timeout=PATIENCE)
    time.sleep(PATIENCE + 0.01)
    done = threading.Event()

    def celery_restores() -> None:
        while not done.is_set():
            living.qos.restore_visible(num=10, interval=1)

    def we_restore() -> None:
        while not done.is_set():
            broker.tend(["q"], [])

    broker = make_broker()
    threads = [threading.Thread(target=target) for target in (celery_restores, we_restore)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: not server.exists("unacked"), timeout=30)
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
    assert sorted(ids(listed(server, "q"))) == sorted(sent)


@pytest.mark.parametrize(
    "entry",
    ["not json", '["q"]', "{}", '[{"properties": 1}, "", 7]', '[{"headers": [], "a": {}}, null, "x"]'],
)
def test_an_entry_that_kombu_did_not_write_is_left_alone(
    server: redis.Redis, make_broker: Callable[..., Any], entry: str
) -> None:
    server.hset("unacked", "tag", entry)
    server.zadd("unacked_index", {"tag": 1.0, "of nothing": 2.0})
    make_broker().tend(["q"], [])
    assert server.hget("unacked", "tag") == entry.encode()
    assert server.zrange("unacked_index", 0, -1) == [b"tag"]


def test_without_leftovers_it_is_one_look_a_minute(
    server: redis.Redis, make_broker: Callable[..., Any]
) -> None:
    broker = make_broker(visibility_timeout=3600)
    broker.tend(["q"], [])

    def scripts_run() -> int:
        return sum(
            stats["calls"]
            for name, stats in server.info("commandstats").items()
            if name in ("cmdstat_evalsha", "cmdstat_eval")
        )

    before = scripts_run()
    for _ in range(5):
        broker.tend(["q"], [])
    assert scripts_run() - before == 5
