"""Records that are followed on RabbitMQ: where the stream is empty nobody has to wait to know it."""

from __future__ import annotations

from typing import Any

import pytest
from pika import spec

from minicelery.broker import open_broker
from minicelery.broker.amqp import notes
from minicelery.broker.amqp.link import Link
from tests.conformance.messages import call
from tests.waiting import wait_until


def test_an_empty_stream_begins_with_a_record_that_says_nothing(rabbit_url: str) -> None:
    reader, writer = open_broker(rabbit_url), open_broker(rabbit_url)
    news = reader.news  # type: ignore[attr-defined]  # of this broker only
    assert news("paused") == {}
    assert writer.recall("paused") == {}
    follower = reader.notes._followers["paused"]  # type: ignore[attr-defined]
    wait_until(lambda: news("paused") == {} and follower.reached == 0)
    writer.remember("paused", "queue:a", 60.0, b"yes")
    wait_until(lambda: news("paused") == {"queue:a": b"yes"})
    late = open_broker(rabbit_url)
    assert late.news("paused") == {"queue:a": b"yes"}  # type: ignore[attr-defined]
    for broker in (reader, writer, late):
        broker.close()


def test_records_are_read_that_come_when_a_stream_has_been_silent_for_long(
    rabbit_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = open_broker(rabbit_url)
    broker.remember("revoked", "1", 60.0, b"yes")
    broker.publish([call("1")])
    deliver_with_the_next_answer(monkeypatch)
    assert broker.recall("revoked") == {"1": b"yes"}
    consumer = broker.consumer(["q"], "one", None)
    (delivery,) = consumer.swap([], 1, 20)
    assert delivery.revoked
    consumer.close()
    broker.close()


def deliver_with_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have streams deliver nothing until the server is asked something else, as where the machine had stopped."""
    heard, ask = notes.heard, Link.call
    held: list[tuple[Any, ...]] = []
    asked: list[Any] = [None]

    def ask_and_deliver(link: Link, method: Any, channel: int = 1, end: float | None = None) -> Any:
        answer = ask(link, method, channel, end)
        if isinstance(method, spec.Basic.Qos) and not isinstance(asked[-1], spec.Channel.Open):
            while held:
                heard(*held.pop(0))
        asked.append(method)
        return answer

    monkeypatch.setattr(notes, "heard", lambda *content: held.append(content))
    monkeypatch.setattr(Link, "call", ask_and_deliver)
