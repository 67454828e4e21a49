"""The RabbitMQ server that other tests run on: empty for each, robust to a kill, gone afterwards."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest

from tests.rabbit import CERTIFICATE, RabbitServer
from tests.waiting import wait_until

PERSISTENT = pika.BasicProperties(delivery_mode=2)


@pytest.mark.parametrize("order", ["first", "second"])
def test_every_test_has_a_virtual_host_without_queues(rabbit_url: str, order: str) -> None:
    with _connected(rabbit_url) as connection:
        channel = connection.channel()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
            channel.queue_declare("celery", passive=True)
        connection.channel().queue_declare("celery", durable=True)


def test_quorum_queues_and_streams_are_enabled(rabbit_url: str) -> None:
    with _connected(rabbit_url) as connection:
        for kind in ("quorum", "stream"):
            connection.channel().queue_declare(kind, durable=True, arguments={"x-queue-type": kind})


def test_the_same_virtual_host_answers_on_tls(rabbit_server: RabbitServer, rabbit_url: str) -> None:
    parameters = pika.URLParameters(rabbit_server.tls_url(_vhost(rabbit_url)))
    parameters.ssl_options = pika.SSLOptions(ssl.create_default_context(cafile=CERTIFICATE / "cert.pem"))
    with pika.BlockingConnection(parameters) as connection:
        assert connection.is_open


def test_a_memory_alarm_blocks_who_publishes(rabbit_server: RabbitServer, rabbit_url: str) -> None:
    heard: list[str] = []
    with _connected(rabbit_url) as connection:
        connection.add_on_connection_blocked_callback(lambda *_: heard.append("blocked"))
        connection.add_on_connection_unblocked_callback(lambda *_: heard.append("unblocked"))
        rabbit_server.raise_memory_alarm()
        try:
            connection.channel().basic_publish("", "celery", b"", PERSISTENT)
            wait_until(lambda: connection.process_data_events(0.01) or heard == ["blocked"])
        finally:
            rabbit_server.clear_memory_alarm()
        wait_until(lambda: connection.process_data_events(0.01) or heard == ["blocked", "unblocked"])


def test_a_user_without_permission_is_turned_away(rabbit_server: RabbitServer, rabbit_url: str) -> None:
    rabbit_server.add_user("visitor", "p@ss/word")
    url = rabbit_server.url(_vhost(rabbit_url), "visitor", "p@ss/word")
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError):
        _connected(url)


def test_rabbitmqctl_and_expressions_speak_to_the_same_server(rabbit_server: RabbitServer) -> None:
    assert str(rabbit_server.pid) == rabbit_server.ctl("eval", "list_to_integer(os:getpid()).").strip()
    assert rabbit_server.eval("list_to_integer(os:getpid())") == str(rabbit_server.pid)


def test_an_expression_that_cannot_be_evaluated_says_why(rabbit_server: RabbitServer) -> None:
    assert rabbit_server.eval("1 / 0") == "{error,badarith}"
    with pytest.raises(RuntimeError, match="syntax error"):
        rabbit_server.eval("1 +")


def test_a_killed_server_comes_back_with_its_durable_messages(private_rabbit: RabbitServer) -> None:
    private_rabbit.add_vhost("kept")
    url = private_rabbit.url("kept")
    with _connected(url) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("celery", durable=True)
        channel.basic_publish("", "celery", b"once", PERSISTENT)

    private_rabbit.kill()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", private_rabbit.port))
    private_rabbit.restart()
    assert private_rabbit.url("kept") == url
    with _connected(url) as connection:
        assert connection.channel().basic_get("celery", auto_ack=True)[2] == b"once"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_stopped_server_leaves_no_process_and_no_file(private_rabbit: RabbitServer) -> None:
    folder = Path(os.readlink(f"/proc/{private_rabbit.pid}/cwd"))
    processes = private_rabbit.pids.union(_descendants(private_rabbit.pid))
    assert len(processes) > 2

    private_rabbit.stop()

    wait_until(lambda: not processes & set(_parents()))
    assert not folder.exists()


def _connected(url: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url))


def _vhost(url: str) -> str:
    return urlsplit(url).path[1:]


def _descendants(pid: int) -> Iterator[int]:
    for child, parent in _parents().items():
        if parent == pid:
            yield child
            yield from _descendants(child)


def _parents() -> dict[int, int]:
    """The parent of every process that has not ended."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found
