"""Messages that no client of ours has sent: a worker puts them aside and goes on."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pika
import pika.exceptions
import pytest

from tests.waiting import wait_until
from tests.worker.harness import Stage

JSON = "application/json"
BODY = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
POISON: dict[str, tuple[pika.BasicProperties | None, bytes]] = {
    "an object for a body": (pika.BasicProperties(JSON, headers={"task": "run", "id": "1"}), b'{"a": 1}'),
    "a time limit that is none": (
        pika.BasicProperties(JSON, headers={"task": "run", "id": "1", "timelimit": "soon"}), BODY,
    ),
    "a time limit of words": (
        pika.BasicProperties(JSON, headers={"task": "run", "id": "1", "timelimit": ["soon", None]}), BODY,
    ),
    "no id": (pika.BasicProperties(JSON, headers={"task": "run"}), BODY),
    "no headers": (pika.BasicProperties(JSON), BODY),
    "nothing": (None, b""),
    "an unknown content type": (pika.BasicProperties("text/odd", headers={"task": "run", "id": "1"}), b"?"),
    "a price among its headers": (pika.BasicProperties(JSON, headers={"task": "run", "price": 5}), b"{"),
    "an eta that is none": (pika.BasicProperties(JSON, headers={"task": "run", "id": "1", "eta": "soon"}), BODY),
    "an eta after the end of time": (
        pika.BasicProperties(JSON, headers={"task": "run", "id": "1", "eta": "9999-12-31T23:59:59-10:00"}), BODY,
    ),
    "retries that are no number": (
        pika.BasicProperties(JSON, headers={"task": "run", "id": "1", "retries": "many"}), BODY,
    ),
    "an expiry that is none": (
        pika.BasicProperties(JSON, headers={"task": "run", "id": "1", "expires": [1]}), BODY,
    ),
    "headers as large as can be": (
        pika.BasicProperties(JSON, headers={"task": "run", "long": "x" * 130_000}), BODY,
    ),
}  # fmt: skip


@pytest.fixture
def channel(rabbit_stage: Stage) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(rabbit_stage.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("celery", durable=True)
        yield channel


@pytest.mark.parametrize("name", list(POISON))
def test_a_message_that_cannot_be_read_is_put_aside_and_the_next_task_runs(
    rabbit_stage: Stage, channel: Any, name: str
) -> None:
    stage = rabbit_stage
    properties, body = POISON[name]
    for restarted in range(2):
        channel.basic_publish("", "celery", body, properties)
        result = stage.send("run", 0.0)
        worker = stage.worker(concurrency=1)
        children = wait_until(worker.children)
        assert stage.wait_for([result]) == {"SUCCESS": 1}
        wait_until(lambda count=restarted + 1: len(stage.app.broker.dead_letters("celery")) == count)
        assert worker.children() == children, "the message has ended a child"
        worker.term()
        assert worker.wait() == 0
    for letter in stage.app.broker.dead_letters("celery"):
        assert b64decode(json.loads(letter.raw)["body"]) == body
        assert letter.reason
    assert stage.app.broker.size("celery") == 0
    assert len(stage.runs()) == 2


def test_poison_of_every_kind_at_the_head_of_the_queue_keeps_nothing_from_running(
    rabbit_stage: Stage, channel: Any
) -> None:
    stage = rabbit_stage
    for properties, body in POISON.values():
        channel.basic_publish("", "celery", body, properties)
    results = stage.send_many("run", [(0.0,)] * 20)
    stage.worker(concurrency=2)
    assert stage.wait_for(results) == {"SUCCESS": 20}
    wait_until(lambda: len(stage.app.broker.dead_letters("celery")) == len(POISON))
    assert stage.app.broker.size("celery") == 0


def test_a_worker_whose_queue_is_deleted_makes_it_again_and_goes_on(
    rabbit_stage: Stage, channel: Any
) -> None:
    stage = rabbit_stage
    worker = stage.worker(concurrency=2)
    assert stage.wait_for([stage.send("run", 0.0)]) == {"SUCCESS": 1}
    for _ in range(2):
        channel.queue_delete("celery")
        # By another client, which does not declare it: the worker alone can have made it.
        wait_until(lambda: made(stage), timeout=10)
        assert stage.wait_for(stage.send_many("run", [(0.0,)] * 4)) == {"SUCCESS": 4}
    assert worker.poll() is None


def made(stage: Stage) -> bool:
    with pika.BlockingConnection(pika.URLParameters(stage.url)) as connection:
        try:
            connection.channel().queue_declare("celery", passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        return True
