"""amqps://, lists of servers, and what wrong certificates lead to; with a real server."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery
from minicelery.broker import open_broker
from minicelery.broker.amqp import AMQPBroker
from minicelery.exceptions import BrokerUnavailable, OperationalError
from tests.conformance.messages import acked, call, ids
from tests.faults.test_amqp_faults import Listener, at_port, opened
from tests.proxy import Proxy
from tests.rabbit import RabbitServer
from tests.servers import free_port
from tests.waiting import wait_until, within

# Made for these tests, for 127.0.0.1 and nothing else.
TLS = Path(__file__).parent.parent / "data" / "tls"
CA = str(TLS / "cert.pem")


@pytest.fixture
def tls_url(rabbit_server: RabbitServer, rabbit_url: str) -> str:
    """The URL of the test's virtual host over TLS."""
    return at_port(rabbit_url, rabbit_server.tls_port).replace("amqp:", "amqps:")


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A certificate that has signed nothing here."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("other")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(folder / "cert.pem")


def exchanged(broker: AMQPBroker) -> None:
    """Send and take back messages small and large."""
    broker.publish([call("small"), call("large", body=b"x" * 2_000_000), call("last")])
    consumer = broker.consumer(["q"], "tls", None)
    found = consumer.swap((), 3, 0)
    while len(found) < 3:
        found += consumer.swap((), 3 - len(found), 10.0)
    assert ids(found) == ["small", "large", "last"]
    assert len(found[1].message.body) == 2_000_000
    assert consumer.swap(acked(found), 1, 0.05) == []
    consumer.close()
    assert broker.size("q") == 0


@pytest.mark.parametrize(
    "tls",
    [
        {"ca_certs": CA},
        {"ca_certs": CA, "cert_reqs": ssl.CERT_REQUIRED, "keyfile": str(TLS / "key.pem"), "certfile": CA},
        {"cert_reqs": ssl.CERT_NONE},
        {"ssl_cert_reqs": "none"},
        {"ssl_ca_certs": CA, "ssl_cert_reqs": "CERT_REQUIRED"},
        {"ca_certs": CA, "server_hostname": "127.0.0.1"},
    ],
    ids=["ca", "client certificate", "unchecked", "names of redis", "names of redis, checked", "host name"],
)
def test_messages_go_there_and_back_over_tls(tls_url: str, tls: dict[str, Any]) -> None:
    for broker in opened(tls_url, use_ssl=tls):
        exchanged(broker)


def test_options_in_the_url_choose_the_certificate(tls_url: str) -> None:
    for broker in opened(f"{tls_url}?ssl_ca_certs={CA}&ssl_cert_reqs=required"):
        exchanged(broker)


def test_the_setting_turns_tls_on_for_a_plain_scheme(tls_url: str) -> None:
    app = Celery("tls", broker=tls_url.replace("amqps:", "pyamqp:"), set_as_current=False)
    app.conf.broker_use_ssl = {"ca_certs": CA, "cert_reqs": ssl.CERT_REQUIRED}
    app.send_task("noop")
    assert app.broker.size("celery") == 1
    app.close()


def failure(url: str, **options: Any) -> str:
    for broker in opened(url, **options):

        def publish(broker: AMQPBroker = broker) -> str:
            with pytest.raises(OperationalError) as caught:
                broker.publish([call("m")])
            return str(caught.value)

        text = within(4, publish)
        consumer = broker.consumer(["q"], "a", None)
        with pytest.raises(OperationalError):
            consumer.swap((), 1, 0)
        consumer.close()
    return text


def test_a_certificate_that_nobody_vouches_for_is_refused_in_words(tls_url: str) -> None:
    text = failure(tls_url)
    assert "certificate" in text and "ca_certs" in text and "127.0.0.1" in text


def test_a_certificate_of_another_authority_is_refused_in_words(tls_url: str, other_ca: str) -> None:
    text = failure(tls_url, use_ssl={"ca_certs": other_ca})
    assert "certificate verify failed" in text and "ca_certs" in text


def test_a_certificate_for_another_name_is_refused_in_words(tls_url: str) -> None:
    text = failure(tls_url, use_ssl={"ca_certs": CA, "server_hostname": "other.example.com"})
    assert "certificate" in text and "other.example.com" in text


def test_an_answer_larger_than_one_read_is_not_left_lying_in_tls(tls_url: str) -> None:
    # What TLS has read ahead does not show when the socket is polled.
    for broker in opened(tls_url, use_ssl={"ca_certs": CA}):

        def fetch(broker: AMQPBroker = broker) -> None:
            broker.purge("q")
            broker.publish([call(f"{number}", body=b"x" * 40_000) for number in range(40)])
            consumer = broker.consumer(["q"], "tls", None)
            found: list[Any] = []
            while len(found) < 40:
                fresh = consumer.swap(acked(found[-16:]), 16, 10.0)
                assert fresh
                found += fresh
            consumer.close()

        within(5, fetch)


def test_a_stalled_server_is_reported_in_time_over_tls_too(tls_url: str, rabbit_server: RabbitServer) -> None:
    with Proxy(rabbit_server.tls_port) as proxy:
        for broker in opened(at_port(tls_url, proxy.port), use_ssl={"ca_certs": CA}):
            broker.publish([call("1")])
            proxy.stall()

            def publish(body: bytes, broker: AMQPBroker = broker) -> None:
                with pytest.raises(BrokerUnavailable):
                    broker.publish([call("m", body=body)], deadline=0.7)

            within(4, lambda: publish(b"[]"))
            within(4, lambda: publish(b"x" * 20_000_000))
            proxy.flow()
            broker.publish([call("2")])


# -- lists of servers --------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[Listener]:
    with Listener() as silent:
        yield silent


def test_a_dead_server_of_a_list_is_passed_over_at_once(rabbit_url: str) -> None:
    def exchange() -> None:
        for broker in opened(f"amqp://127.0.0.1:{free_port()}//;{rabbit_url}"):
            exchanged(broker)

    within(4, exchange)


def test_a_silent_server_of_a_list_is_passed_over_within_the_connect_timeout_and_only_once(
    rabbit_url: str, silent: Listener
) -> None:
    url = f"amqp://127.0.0.1:{silent.port}//;{rabbit_url}"

    def is_passed_over_once() -> bool:
        before, began = len(silent.connections), time.monotonic()
        for broker in opened(url, connect_timeout=0.5):
            broker.publish([call("1")])
            took = time.monotonic() - began
            broker.close()  # the next connections begin with what has answered
            for number in range(3):
                broker.publish([call(f"{number}")])
                broker.close()
        wait_until(lambda: len(silent.connections) > before)
        return took < 4 and len(silent.connections) == before + 1

    assert any(is_passed_over_once() for _ in range(3))


def test_a_publish_of_a_short_deadline_gets_past_a_silent_server(rabbit_url: str, silent: Listener) -> None:
    for broker in opened(f"amqp://127.0.0.1:{silent.port}//;{rabbit_url}"):

        def publish(broker: AMQPBroker = broker) -> bool:
            try:
                broker.publish([call("1")], deadline=1.0)
            except BrokerUnavailable:  # as it is where the other one is as slow
                return False
            return True

        assert any(publish() for _ in range(3))
        assert broker.size("q") >= 1


def test_a_consumer_gets_past_a_silent_server(rabbit_url: str, silent: Listener) -> None:
    for broker in opened(f"amqp://127.0.0.1:{silent.port}//;{rabbit_url}", connect_timeout=1.0):

        def fetch(broker: AMQPBroker = broker) -> bool:
            consumer = broker.consumer(["q"], "a", None)
            try:
                return consumer.swap((), 1, 0) == []
            except BrokerUnavailable:  # as it is where the other one is as slow
                return False
            finally:
                consumer.close()

        assert any(fetch() for _ in range(3))


def test_the_list_is_gone_round_when_a_server_goes_away(
    rabbit_url: str, private_rabbit: RabbitServer
) -> None:
    for broker in opened(f"{private_rabbit.url()};{rabbit_url}"):
        broker.publish([call("1")])
        private_rabbit.kill()
        broker.publish([call("2")])
        assert broker.size("q") == 1


def test_where_all_servers_of_a_list_are_down_the_error_names_all_of_them(silent: Listener) -> None:
    port = free_port()
    broker = open_broker(f"amqp://me:secret@127.0.0.1:{port}//;amqp://me:secret@127.0.0.1:{silent.port}//")

    def publish() -> str:
        with pytest.raises(OperationalError) as caught:
            broker.publish([call("m")], deadline=1.0)
        return str(caught.value)

    text = within(4, publish)
    assert f"127.0.0.1:{port}" in text and f"127.0.0.1:{silent.port}" in text
    assert "secret" not in text
    broker.close()
