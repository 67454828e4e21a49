"""Connections to Redis: commands packed once, sent whole, answered in order.

redis-py's `Connection` brings TLS, AUTH and its parsers; its client and pool would cost
more than the server's own work (EVALSHA through the client: twice the CPU).
"""

from __future__ import annotations

import contextlib
import inspect
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis.connection
import redis.exceptions

from minicelery.broker import pool as broker_pool
from minicelery.broker.pool import Slot
from minicelery.broker.url import ServerURL
from minicelery.exceptions import ImproperlyConfigured

try:
    from hiredis import pack_command

    _pack: Callable[[tuple[Any, ...]], bytes] = pack_command
except ImportError:  # the [fast] extra

    def _pack_plainly(args: tuple[Any, ...]) -> bytes:
        parts = [b"*%d\r\n" % len(args)]
        for arg in args:
            data = arg if isinstance(arg, bytes) else str(arg).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
        return b"".join(parts)

    _pack = _pack_plainly


LOST = (
    redis.exceptions.ConnectionError,  # AuthenticationError and BusyLoadingError are among them
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,  # demoted: the same address may soon be the master again
    redis.exceptions.MasterDownError,
    redis.exceptions.InvalidResponse,
    OSError,
)
"""Errors after which the connection is dropped and the same call may succeed on a new one."""

FAILED = (redis.exceptions.RedisError, OSError)

_ACCEPTED = frozenset(inspect.signature(redis.connection.AbstractConnection.__init__).parameters)


class Link:
    """One connection, used by one thread at a time."""

    __slots__ = ("_connection", "_sock")

    def __init__(self, connection: Any) -> None:  # redis-py's methods are not typed
        self._connection = connection
        self._sock: Any = None

    def connect(self, timeout: float) -> None:
        """Connect within `timeout` seconds, handshake included."""
        connection = self._connection
        usual = connection.socket_timeout
        connection.socket_connect_timeout = min(timeout, connection.socket_connect_timeout or timeout)
        connection.socket_timeout = min(timeout, usual or timeout)
        connection.connect()
        connection.socket_timeout = usual
        self._sock = connection._sock
        self.limit(usual)

    @property
    def connected(self) -> bool:
        return self._sock is not None

    def limit(self, timeout: float | None) -> None:
        """Wait at most `timeout` seconds for each answer from now on."""
        sock = self._sock
        if timeout is None or isinstance(sock, ssl.SSLSocket):
            sock.settimeout(timeout)
            return
        # The kernel keeps the time: Python's own timeout polls before each send and each recv.
        sock.settimeout(None)
        limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6) + 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def fileno(self) -> int:
        fd: int = self._sock.fileno()
        return fd

    def send(self, *args: Any) -> None:
        """Send one command; its answer is due to `read`."""
        self._connection.send_packed_command((_pack(args),), check_health=False)

    def send_all(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Send several commands at once."""
        self._connection.send_packed_command((b"".join(map(_pack, commands)),), check_health=False)

    def read(self) -> Any:
        """The next answer; an error answer is raised."""
        return self._connection.read_response(disable_decoding=True)

    def read_any(self) -> Any:
        """The next answer or pushed message, on a link of protocol 3."""
        return self._connection.read_response(disable_decoding=True, push_request=True)

    def readable(self, timeout: float) -> bool:
        """Whether an answer arrives within `timeout` seconds, or has arrived."""
        return bool(self._connection.can_read(timeout))

    def call(self, *args: Any) -> Any:
        """One command and its answer: one trip."""
        self._connection.send_packed_command((_pack(args),), check_health=False)
        return self._connection.read_response(disable_decoding=True)

    def start(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> None:
        """Have a script run; its answer, or that the server does not have it, is due to `read`."""
        self.send(b"EVALSHA", script.sha, len(keys), *keys, *args)

    def run(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script: one trip, but for the first time on a server that does not have it."""
        connection = self._connection
        try:
            connection.send_packed_command(
                (_pack((b"EVALSHA", script.sha, len(keys), *keys, *args)),), check_health=False
            )
            return connection.read_response(disable_decoding=True)
        except redis.exceptions.NoScriptError:
            return self.call(b"EVAL", script.text, len(keys), *keys, *args)

    def close(self) -> None:
        """Close the socket; never raises."""
        self._sock = None
        with contextlib.suppress(Exception):
            self._connection.disconnect()


class Script:
    """A Lua script and the digest it goes by."""

    __slots__ = ("sha", "text")

    def __init__(self, *parts: str) -> None:
        import hashlib

        self.text = "\n".join(parts).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


class Server:
    """Where a Redis is and how to reach it; makes links."""

    def __init__(self, url: ServerURL, options: Mapping[str, Any]) -> None:
        self.masked = url.masked
        self.host, self.port = url.host or "localhost", url.port or 6379
        self.socket_path: str | None = None
        query = url.query
        database = query.get("virtual_host") or query.get("db") or url.path.lstrip("/") or "0"
        if url.scheme == "redis+socket":
            self.socket_path = url.path
            database = query.get("virtual_host") or query.get("db") or "0"
        if not (database.isascii() and database.isdigit()):
            raise ImproperlyConfigured(f"{url.masked}: the database must be a number, got {database!r}")
        self.database = int(database)
        self.timeout = float(options.get("socket_timeout") or query.get("socket_timeout") or 5.0)
        connect = options.get("socket_connect_timeout") or options.get("connection_timeout") or 4.0
        self._kind: type[Any] = redis.connection.Connection
        self._arguments: dict[str, Any] = {
            "db": self.database,
            "username": url.user or options.get("username") or None,
            "password": url.password or options.get("password") or None,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": float(connect),
            "socket_keepalive": True,
            "client_name": options.get("client_name"),
            "driver_info": None,  # saves two trips a connection
            "lib_name": None,
            "lib_version": None,
        }
        if "driver_info" in _ACCEPTED:
            del self._arguments["lib_name"], self._arguments["lib_version"]
        self._arguments = {
            key: value
            for key, value in self._arguments.items()
            if key in _ACCEPTED or key == "socket_keepalive"
        }
        if self.socket_path is not None:
            self._kind = redis.connection.UnixDomainSocketConnection
            self._arguments["path"] = self.socket_path
            del self._arguments["socket_keepalive"]
        else:
            self._arguments |= {"host": self.host, "port": self.port}
            self._secure(url, options.get("use_ssl"))

    def _secure(self, url: ServerURL, use_ssl: Any) -> None:
        given = use_ssl if isinstance(use_ssl, Mapping) else {}
        if url.scheme != "rediss" and not use_ssl:
            return
        self._kind = redis.connection.SSLConnection
        asked = {**{k: v for k, v in url.query.items() if k.startswith("ssl_")}, **given}
        levels = {"cert_required": "required", "cert_optional": "optional", "cert_none": "none"}
        if isinstance(level := asked.get("ssl_cert_reqs"), str):
            asked["ssl_cert_reqs"] = levels.get(level.lower(), level.lower())
        self._arguments.update(asked)

    @property
    def place(self) -> tuple[Any, ...]:
        """What two URLs of one server have in common; the database may differ."""
        return (self.socket_path,) if self.socket_path else (self.host, self.port)

    def link(self, timeout: float | None = None, protocol: int = 2) -> Link:
        """A connected link.  Raises one of LOST."""
        link = Link(self._kind(**self._arguments, protocol=protocol))
        try:
            link.connect(self.timeout if timeout is None else timeout)
        except BaseException:
            link.close()
            raise
        return link

    def explain(self, error: BaseException) -> str:
        """`error` in words: which server, what happened, what to do."""
        text = str(error) or type(error).__name__
        kind = redis.exceptions
        where = f"cannot reach Redis at {self.masked}"
        if isinstance(error, (kind.AuthenticationError, kind.NoPermissionError)) or "NOAUTH" in text:
            return f"{where}: it refuses the user name or password ({text}); check the URL's user:password"
        if isinstance(error, kind.ReadOnlyError):
            return f"{where}: it is a read-only replica now ({text}); point the URL at the master"
        if isinstance(error, kind.OutOfMemoryError) or text.startswith("OOM"):
            return (
                f"Redis at {self.masked} is full: {text}; raise maxmemory, or drain or purge queues "
                "(and keep maxmemory-policy noeviction, lest queued tasks are evicted)"
            )
        if isinstance(error, kind.BusyLoadingError):
            return f"{where}: it is still loading its data; try again shortly"
        if isinstance(error, kind.TimeoutError) or "temporarily unavailable" in text:
            return f"{where}: no answer in time; check the server's load, the network and the port"
        if isinstance(error, kind.ResponseError):
            return f"Redis at {self.masked} refused a command: {text}"
        if "refused" in text:
            return (
                f"{where}: connection refused; is redis-server running there? Set broker_url / result_backend"
            )
        return f"{where}: {text}"


class Pool(broker_pool.Pool):
    """Pooled links of one server."""

    def __init__(self, server: Server, limit: int, protocol: int = 2) -> None:
        super().__init__(limit, redis.exceptions.TimeoutError)
        self.server = server
        self.protocol = protocol

    def call(self, end: float, work: Any) -> Any:
        """`work(link)` on a pooled link.  Raises one of FAILED; an idle link that died is replaced once."""
        slot = self.take(end)
        try:
            fresh = slot.link is None
            try:
                return self.attempt(slot, end, work)
            except LOST:
                if fresh:
                    raise
                return self.attempt(slot, end, work)
        finally:
            self.put_back(slot)

    def attempt(self, slot: Slot, end: float, work: Any) -> Any:
        """`work(link)` on the slot's link, connecting first; the link is dropped when it fails."""
        left = end - time.monotonic()
        if left <= 0:
            raise redis.exceptions.TimeoutError("the deadline has passed")
        if slot.link is None:
            slot.link = self.server.link(left, self.protocol)
        link = slot.link
        try:
            if left > self.server.timeout - 0.5:
                return work(link)
            link.limit(left)
            result = work(link)
            link.limit(self.server.timeout)
            return result
        except BaseException:
            # Also after an error answer: those to further commands may be under way.
            slot.drop()
            raise
