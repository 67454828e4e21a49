"""Where a RabbitMQ is, how to reach it, and what its refusals mean."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minicelery.broker.url import ServerURL
from minicelery.exceptions import ImproperlyConfigured


class Refused(Exception):
    """The server has closed a channel or a connection, and says why."""

    def __init__(self, code: int, text: str, whole: bool = False) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
        self.whole = whole  # the connection, not just a channel


class Lost(OSError):
    """The connection is gone, or can't be made; the same call may succeed on a new one."""


class Late(Lost):
    """No answer in time."""


class Failed(Lost):
    """The server has closed the connection for an error of its own."""


class Blocked(Late):
    """The server takes no messages at present, and says why."""


# Refusals that another attempt may not meet: shutting down, a node that starts, a queue that moves.
INTERNAL_ERROR = 541
PASSING = frozenset({320, 405, 506, INTERNAL_ERROR})

LOST = (Lost, OSError)
"""Errors after which the connection is dropped and the same call may succeed on a new one."""


FULL = -1
"""Code of our own: a queue takes no more messages."""


def passes(error: BaseException) -> bool:
    """Whether trying again may help."""
    if isinstance(error, Refused):
        return error.code in PASSING or (error.whole and error.code == 0) or is_down(error)
    return isinstance(error, LOST) and not isinstance(error, ssl.SSLCertVerificationError)


def is_down(error: Refused) -> bool:
    """Whether a queue is there, and the node that has it is not."""
    return "home node" in error.text


class Server:
    """One or several nodes of one broker: connections are made to the first that answers."""

    def __init__(self, urls: Sequence[ServerURL], options: Mapping[str, Any]) -> None:
        self.urls = list(urls)
        self.masked = ";".join(map(self._shown, urls))
        if options.get("failover_strategy") == "shuffle":
            random.shuffle(self.urls)
        self._first = 0  # index of the node that answered last
        self.connect_timeout = float(
            options.get("connect_timeout") or options.get("connection_timeout") or 4.0
        )
        self.timeout = float(options.get("socket_timeout") or options.get("read_timeout") or 5.0)
        heartbeat = options.get("heartbeat")
        self.heartbeat = 120 if heartbeat is None else int(heartbeat)
        login = str(options.get("login_method") or "PLAIN").upper()
        if login not in ("PLAIN", "AMQPLAIN", "EXTERNAL"):
            raise ImproperlyConfigured(
                f"broker_login_method={login!r}: minicelery can log in by 'PLAIN', 'AMQPLAIN' or 'EXTERNAL'"
            )
        self.login = login
        self.use_ssl = options.get("use_ssl")
        self.client_properties = options.get("client_properties") or {}
        for url in filter(self._is_secure, self.urls):
            _check_tls(self._tls_options(url))

    def _shown(self, url: ServerURL) -> str:
        """The whole of what is used, but the password: ``amqp://guest:**@localhost:5672//``."""
        port = url.port or (5671 if url.scheme == "amqps" else 5672)
        host = url.host or "localhost"
        path = "/" + self.virtual_host(url)
        return replace(url, host=host, port=port, path=path, user=url.user or "guest", password="**").masked

    def nodes(self) -> Iterator[ServerURL]:
        """Every node once, beginning with the one that answered last."""
        for turn in range(len(self.urls)):
            yield self.urls[(self._first + turn) % len(self.urls)]

    def answered(self, url: ServerURL) -> None:
        """Begin with this node from now on."""
        self._first = self.urls.index(url)

    def open_socket(self, url: ServerURL, timeout: float) -> socket.socket:
        """A connected socket, TLS included.  Raises OSError."""
        secure = self._is_secure(url)
        port = url.port or (5671 if secure else 5672)
        sock = socket.create_connection((url.host or "localhost", port), timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: what is sent and not received, in ms
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.timeout * 1000))
            if secure:
                asked = self._tls_options(url)
                name = asked.get("server_hostname") or url.host or "localhost"
                sock = _tls_context(asked).wrap_socket(sock, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        return sock

    def _is_secure(self, url: ServerURL) -> bool:
        asked = url.query.get("ssl", "").lower()
        return url.scheme == "amqps" or bool(self.use_ssl) or asked in ("1", "true")

    def _tls_options(self, url: ServerURL) -> dict[str, Any]:
        asked: dict[str, Any] = {key: value for key, value in url.query.items() if key.startswith("ssl_")}
        if isinstance(self.use_ssl, Mapping):
            asked |= self.use_ssl
        # Celery's names for this transport, with or without the prefix that Redis wants.
        return {key.removeprefix("ssl_"): value for key, value in asked.items()}

    @staticmethod
    def virtual_host(url: ServerURL) -> str:
        """``amqp://host`` and ``amqp://host//`` are the default one, as in Celery."""
        return url.path[1:] or "/"

    # -- words -----------------------------------------------------------------------------

    def explain(self, error: BaseException) -> str:
        """`error` in words: which server, what happened, what to do."""
        where = f"cannot reach RabbitMQ at {self.masked}"
        if isinstance(error, Refused):
            return self._explain_refusal(error, where)
        text = str(error) or type(error).__name__
        if isinstance(error, Blocked):
            return (
                f"RabbitMQ at {self.masked} takes no messages at present: {text}; free memory or disk space "
                "there, or raise its limits"
            )
        if isinstance(error, ssl.SSLError):
            return (
                f"{where}: TLS failed ({text}); check that the port speaks TLS, and ca_certs, certfile and "
                "cert_reqs of broker_use_ssl"
            )
        if isinstance(error, socket.gaierror):
            return f"{where}: no such host ({text}); check broker_url"
        if isinstance(error, (Late, TimeoutError)) or "temporarily unavailable" in text:
            return f"{where}: no answer in time ({text}); check the server's load, the network and the port"
        if isinstance(error, ConnectionRefusedError):
            return (
                f"{where}: connection refused; is rabbitmq-server running there? Set broker_url; "
                'without a server, broker="sqlite:///queue.db" works'
            )
        return f"{where}: {text}"

    def _explain_refusal(self, error: Refused, where: str) -> str:
        text = error.text
        if error.code == 0 and error.whole:
            return f"{where}: {text}; check host and port of broker_url"
        if error.code == 403 and error.whole:
            return f"{where}: it refuses the user name or password; check the URL's user:password ({text})"
        if error.code == 530 and error.whole:
            vhost = " or ".join(sorted({repr(self.virtual_host(url)) for url in self.urls}))
            return (
                f"{where}: the virtual host {vhost} does not exist, or the user may not use it ({text}); "
                "check the URL's path, or make it with 'rabbitmqctl add_vhost'"
            )
        if error.code == 406 and "inequivalent arg" in text:
            return (
                f"RabbitMQ at {self.masked} has this queue or exchange with other arguments: {text}; make the "
                "settings match (task_queues, task_default_queue_type, task_queue_max_priority), or delete it there"
            )
        if error.code == 406 and "delivery acknowledgement" in text:
            return (
                f"RabbitMQ at {self.masked} has taken back a message that was held too long: {text}; raise its "
                "consumer_timeout above the longest task, or use acks_late=False for it"
            )
        if "message size" in text:
            return (
                f"RabbitMQ at {self.masked} refused a message: {text}; send a reference to the data instead"
            )
        if error.code == 403:
            return f"RabbitMQ at {self.masked} does not allow it: {text}; grant the user permissions"
        if error.code in (312, 404):
            return (
                f"RabbitMQ at {self.masked} knows no such place: {text}; check exchange and routing_key, and "
                "that task_queues declares and binds what should take messages"
            )
        code = f" ({error.code})" if error.code else ""
        return f"RabbitMQ at {self.masked} refused: {text}{code}"


def host_name() -> str:
    """This process as RabbitMQ's tools list it."""
    with contextlib.suppress(OSError):
        return f"minicelery {os.getpid()}@{socket.gethostname()}"
    return f"minicelery {os.getpid()}"


def _tls_context(asked: Mapping[str, Any]) -> ssl.SSLContext:
    """Made for each connection: certificates are renewed while a worker runs.  Raises OSError."""
    level = asked.get("cert_reqs")
    if isinstance(level, str):
        level = getattr(ssl, f"CERT_{level.upper().removeprefix('CERT_')}", None)
        if level is None:
            raise ImproperlyConfigured(
                f"broker_use_ssl: cert_reqs={asked['cert_reqs']!r}: expected required, optional or none"
            )
    context = ssl.create_default_context(cafile=asked.get("ca_certs"))
    if level is not None:
        context.check_hostname = level == ssl.CERT_REQUIRED
        context.verify_mode = level
    if not asked.get("check_hostname", True):
        context.check_hostname = False
    if asked.get("certfile"):
        context.load_cert_chain(asked["certfile"], asked.get("keyfile"), asked.get("password"))
    if asked.get("ciphers"):
        context.set_ciphers(asked["ciphers"])
    return context


def _check_tls(asked: Mapping[str, Any]) -> None:
    try:
        _tls_context(asked)
    except (OSError, ValueError, TypeError) as error:
        names = ("ca_certs", "certfile", "keyfile", "cert_reqs", "ciphers")
        given = ", ".join(f"{name}={asked[name]!r}" for name in names if asked.get(name) is not None)
        raise ImproperlyConfigured(
            f"broker_use_ssl: TLS can't be set up with {given or 'the defaults'} ({error}); ca_certs, certfile "
            "and keyfile are files of PEM certificates and keys"
        ) from error
