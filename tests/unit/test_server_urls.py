"""Which of several servers a connection goes to, and what is said where none answers."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

import pytest

from minicelery.broker import open_broker
from minicelery.broker.amqp.link import Link
from minicelery.broker.amqp.server import Lost, Server
from minicelery.broker.url import mask_url, parse_url, parse_urls
from minicelery.exceptions import BrokerUnavailable, ImproperlyConfigured
from tests.conformance.messages import call


def server_at(url: str, **options: Any) -> Server:
    return Server(parse_urls(url), options)


def hosts(server: Server) -> list[str]:
    return [url.host for url in server.nodes()]


def test_a_list_of_servers_is_read_in_its_order() -> None:
    found = parse_urls("amqp://a:1@one:5673//; amqps://two/vhost ;pyamqp://three")
    assert [(url.scheme, url.host, url.port, url.path) for url in found] == [
        ("amqp", "one", 5673, "//"), ("amqps", "two", None, "/vhost"), ("pyamqp", "three", None, ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "url", ["amqp://one;redis://two", "redis://one;redis://two", ";", "", "sqlite:///a;amqp://b"]
)
def test_a_list_of_other_servers_is_refused(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"broker_url|list of servers|not a server URL"):
        open_broker(url)


def test_no_password_of_a_list_is_ever_printed() -> None:
    url = "amqp://me:secret@one//;amqp://me:secret@two//"
    assert mask_url(url) == "amqp://me:**@one//;amqp://me:**@two//"
    assert "secret" not in open_broker(url).url


@pytest.mark.parametrize(
    "url",
    [
        "amqp://me:hidden;secret@one:port//",
        "amqp://me:secret@one;amqp://me:secret@two:port//",
        "amqp://me:secret@one//;redis://me:secret@two//",
    ],
)
def test_no_password_of_a_malformed_list_is_ever_printed(url: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        open_broker(url)
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "vhost"),
    [
        ("amqp://host", "/"), ("amqp://host/", "/"), ("amqp://host//", "/"), ("amqp://host/%2F", "/"),
        ("amqp://host/name", "name"), ("amqp://host//name", "/name"), ("amqp://host/a%2Fb", "a/b"),
    ],
)  # fmt: skip
def test_the_path_names_the_virtual_host(url: str, vhost: str) -> None:
    assert Server.virtual_host(parse_url(url)) == vhost


def test_servers_are_tried_in_turn_from_the_one_that_answered_last() -> None:
    server = server_at("amqp://a;amqp://b;amqp://c")
    assert hosts(server) == ["a", "b", "c"]
    server.answered(server.urls[1])
    assert hosts(server) == ["b", "c", "a"]


def test_shuffled_servers_are_all_tried() -> None:
    url = ";".join(f"amqp://h{number}" for number in range(20))
    found = [hosts(server_at(url, failover_strategy="shuffle")) for _ in range(3)]
    assert all(sorted(each) == sorted(f"h{number}" for number in range(20)) for each in found)
    assert len({tuple(each) for each in found}) > 1


def test_an_unknown_login_method_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="broker_login_method='KERBEROS'"):
        server_at("amqp://a", login_method="KERBEROS")


@pytest.fixture
def silent() -> Any:
    """Ports that accept connections and say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)]


def test_silent_servers_share_the_time_there_is(silent: list[int]) -> None:
    server = server_at(";".join(f"amqp://127.0.0.1:{port}" for port in silent), connect_timeout=10)

    def seconds() -> float:
        began = time.monotonic()
        with pytest.raises(Lost):
            Link(server, timeout=1.5)
        return time.monotonic() - began

    # One after the other they would take 4.5 s.
    assert any(1.0 < seconds() < 3.5 for _ in range(3))


def test_where_all_are_down_the_error_names_all_without_their_passwords(silent: list[int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        refusing = probe.getsockname()[1]
    broker = open_broker(f"amqp://me:secret@127.0.0.1:{refusing}//;amqp://me:secret@127.0.0.1:{silent[0]}//")
    with pytest.raises(BrokerUnavailable) as caught:
        broker.publish([call("m")], deadline=2.0)
    assert f"127.0.0.1:{refusing}" in str(caught.value) and f"127.0.0.1:{silent[0]}" in str(caught.value)
    assert "secret" not in str(caught.value)
    broker.close()


# -- TLS options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ca_certs": "/nowhere/ca.pem"}, "ca_certs='/nowhere/ca.pem'"),
        ({"certfile": "/nowhere/cert.pem", "cert_reqs": "none"}, "certfile='/nowhere/cert.pem'"),
        ({"ca_certs": __file__}, "PEM"),
        ({"cert_reqs": "sometimes"}, "cert_reqs='sometimes'"),
        ({"ssl_cert_reqs": "CERT_SOMETIMES"}, "cert_reqs='CERT_SOMETIMES'"),
        ({"ciphers": "NO-SUCH-CIPHER"}, "ciphers='NO-SUCH-CIPHER'"),
    ],
)
def test_a_tls_option_that_cannot_work_is_refused_before_anything_is_sent(
    options: dict[str, Any], words: str
) -> None:
    for url, given in (
        ("amqps://one", options),
        ("amqp://one", options),
        ("amqp://zero;amqps://one", options),
    ):
        with pytest.raises(ImproperlyConfigured, match="broker_use_ssl") as caught:
            open_broker(url, options={"use_ssl": given})
        assert words in str(caught.value)


def test_a_password_of_a_key_is_never_printed() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        open_broker("amqps://one", options={"use_ssl": {"certfile": "/nowhere", "password": "secret"}})
    assert "secret" not in str(caught.value)
