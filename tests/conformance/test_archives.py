"""Documents that are kept for ever, on each broker."""

from __future__ import annotations

import threading

import pytest

from minicelery.broker import Broker
from minicelery.broker.amqp import archive as amqp_archive
from minicelery.broker.archives import open_archive
from tests.conformance.conftest import MakeBroker
from tests.waiting import wait_until

LONG = "name " * 80


def test_a_document_is_put_read_and_removed(broker: Broker) -> None:
    archive = open_archive(broker, "x")
    assert archive.read()[1] == {} and archive.get("a") is None
    assert archive.swap("a", None, b"1")
    assert archive.swap("é\n" + LONG, None, b"2")
    assert archive.get("a") == b"1"
    assert archive.read()[1] == {"a": b"1", "é\n" + LONG: b"2"}
    assert archive.swap("a", b"1", b"3")
    assert archive.swap("é\n" + LONG, b"2", None)
    assert archive.read()[1] == {"a": b"3"}
    assert open_archive(broker, "another").read()[1] == {}


def test_who_has_seen_something_else_changes_nothing(broker: Broker) -> None:
    archive = open_archive(broker, "x")
    assert archive.swap("a", None, b"1")
    assert not archive.swap("a", None, b"2")
    assert not archive.swap("a", b"0", b"2")
    assert not archive.swap("a", b"0", None)
    assert not archive.swap("b", b"0", b"2")
    assert archive.read()[1] == {"a": b"1"}


def test_a_change_that_is_made_already_is_well(broker: Broker) -> None:
    archive = open_archive(broker, "x")
    assert archive.swap("a", None, b"1") and archive.swap("a", None, b"1")
    assert archive.swap("a", b"1", None) and archive.swap("a", b"1", None)
    assert archive.read()[1] == {}


def test_the_version_tells_of_changes_by_others_and_of_nothing_else(make_broker: MakeBroker) -> None:
    mine, yours = open_archive(make_broker(), "x"), open_archive(make_broker(), "x")
    for new, old in ((b"1", None), (b"2", b"1"), (None, b"2")):
        before = mine.version()
        assert before == mine.version()
        assert yours.swap("a", old, new)
        wait_until(lambda: mine.version() != before)  # noqa: B023 - it is awaited here
        wait_until(lambda: mine.version() == mine.read()[0])
        assert mine.news() == mine.read() == yours.read()


def test_of_many_who_change_one_document_at_once_each_sees_what_was_there(make_broker: MakeBroker) -> None:
    archives = [open_archive(make_broker(), "x") for _ in range(4)]
    assert archives[0].swap("list", None, b"")

    def add(writer: int) -> None:
        for number in range(3):
            while True:
                there = archives[writer].get("list")
                assert there is not None
                if archives[writer].swap("list", there, there + b" %d.%d" % (writer, number)):
                    break
        archives[writer].swap(f"done{writer}", None, b"")

    threads = [threading.Thread(target=add, args=(writer,)) for writer in range(len(archives))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = archives[0].read()[1]
    assert len(found) == 5
    assert len(found["list"].split()) == len(set(found["list"].split())) == 12


def test_a_stream_is_written_anew_now_and_then_and_nothing_is_lost(
    rabbit_url: str, make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    if not url.startswith("amqp"):
        pytest.skip("only RabbitMQ keeps what is replaced")
    monkeypatch.setattr(amqp_archive, "WORN", 5)
    archive = amqp_archive.StreamArchive(make_broker(), "x")  # type: ignore[arg-type]
    assert (
        archive.swap("kept", None, b"old")
        and archive.swap("gone", None, b"")
        and archive.swap("gone", b"", None)
    )
    for number in range(12):
        archive.swap("counted", archive.get("counted"), str(number).encode())
    assert archive.read()[1] == {"kept": b"old", "counted": b"11"}
    reached = int(archive.read()[0])
    assert 15 <= reached < 30  # 15 changes, and each 7th or so all that there is
    notes = archive._notes
    assert int(notes.scan(archive._topic).present()[" anew"]) > 5


def test_together_documents_are_not_larger_than_a_stream_keeps(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    if not url.startswith("amqp"):
        pytest.skip("only RabbitMQ cuts what is too long")
    monkeypatch.setattr(amqp_archive, "_SHARE", 100)
    archive = open_archive(make_broker(), "x")
    assert archive.swap("a", None, b"x" * 90)
    with pytest.raises(Exception, match="would have 187 bytes; accepted: at most 100"):
        archive.swap("b", None, b"x" * 95)
