"""Records that are followed on RabbitMQ: where the stream is empty nobody has to wait to know it."""

from __future__ import annotations

from minicelery.broker import open_broker
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
