"""One connection to RabbitMQ, used by one thread at a time.

pika knows the methods of the protocol; reading and writing are done here, in the thread
that wants something.  So there is no event loop to hand work to, and whoever holds the link
keeps it alive: `pump` reads what has come and sends heartbeats when they are due.
"""

from __future__ import annotations

import contextlib
import platform
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from pika import credentials, frame, spec
from pika.exceptions import AMQPError

from minicelery.broker.amqp import codec
from minicelery.broker.amqp.server import (
    INTERNAL_ERROR,
    PASSING,
    Blocked,
    Failed,
    Late,
    Lost,
    Refused,
    Server,
    host_name,
)
from minicelery.broker.url import ServerURL

FRAME_MAX = 131072
_READ = 1 << 18
_LARGE = 1 << 16
_TLS_ALERT = b"\x15\x03"


class Content:
    """A message as it comes in: the method that brings it, then its header, then its body."""

    __slots__ = ("body", "channel", "deaths", "header", "left", "method", "number")

    def __init__(self, channel: int, number: int, method: bytes) -> None:
        self.channel = channel
        self.number = number
        self.method = method
        self.header = b""
        self.left = -1
        self.body: bytes | bytearray = b""
        self.deaths = 0  # runs that died under it, as its headers say


class Link:
    """A connection and its channels.

    What arrives unasked goes to `on_content`, `on_cancel` (the server ends a consumer) and
    the fields `outstanding`, `refused`, `blocked`.  Raises Lost or Refused.
    """

    def __init__(self, server: Server, *, timeout: float, heartbeat: int = 0) -> None:
        self.server = server
        self.timeout = server.timeout
        self.heartbeat = heartbeat
        self.frame_max = FRAME_MAX
        self.used_at = time.monotonic()
        self.blocked: str | None = None
        self.confirms = False
        self.limited = server.timeout
        self.published = 0  # messages on channel 1 since confirms are on
        self.outstanding: dict[int, None] = {}  # numbers of those not confirmed yet, rising
        self.refused: list[int] = []  # numbers of those the server would not take
        self.returned: list[Content] = []  # those that no queue took
        self.on_content: Callable[[Content], None] = lambda content: None
        self.on_cancel: Callable[[str], None] = lambda tag: None
        self.declared: set[Any] = set()  # what has been declared on this connection
        self.closed: dict[int, Refused] = {}  # channels the server has closed, and why
        self._buffer = b""
        self._partial: dict[int, Content] = {}
        self._answers: dict[int, list[Any]] = {}
        self._sock: Any = None
        self._tls = False
        self._open: set[int] = set()  # channels
        self._sent_at = self._heard_at = 0.0
        self.torn = False  # something has been sent in part: nothing can follow it
        self._late = False  # the server has not answered in time: neither will it to a goodbye
        self._connect(timeout)

    # -- connecting ------------------------------------------------------------------------

    def _connect(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        error: BaseException = Lost("no server is named")
        nodes = list(self.server.nodes())
        for number, url in enumerate(nodes):
            try:
                # A silent node leaves the others their share of the time.
                left = min(self.server.connect_timeout, (end - time.monotonic()) / (len(nodes) - number))
                if left <= 0:
                    break
                until = time.monotonic() + left
                self._sock = self.server.open_socket(url, left)
                self._tls = hasattr(self._sock, "pending")
                self._shake_hands(url, until)
                self.server.answered(url)
                return
            except (OSError, Refused) as failed:
                error = failed
                self.close_socket()
        raise error

    def _shake_hands(self, url: ServerURL, end: float) -> None:
        self._buffer, self._partial, self._answers, self._open = b"", {}, {}, set()
        self.torn = self._late = False
        self._sent_at = self._heard_at = time.monotonic()
        self.limit(max(0.05, end - time.monotonic()))
        self._send(frame.ProtocolHeader().marshal())
        start = self.wait_for(0, spec.Connection.Start, end)
        login = self.server.login
        offered = start.mechanisms
        offered = (offered.decode() if isinstance(offered, bytes) else offered).split()
        if login not in offered:
            raise Refused(403, f"it offers {', '.join(offered)} to log in, not {login}", whole=True)
        user, password = url.user or "guest", url.password or ("" if url.user else "guest")
        if login == "EXTERNAL":
            response = b""
        elif login == "AMQPLAIN":
            response = codec.encode_table({"LOGIN": user, "PASSWORD": password})[4:]
        else:
            plain = credentials.PlainCredentials(user, password)
            response = b"\0" + plain.username.encode() + b"\0" + plain.password.encode()
        properties = {
            "product": "minicelery",
            "platform": f"Python {platform.python_version()}",
            "connection_name": host_name(),
            "capabilities": {
                "authentication_failure_close": True,
                "basic.nack": True,
                "connection.blocked": True,
                "consumer_cancel_notify": True,
                "publisher_confirms": True,
            },
            **self.server.client_properties,
        }
        self.send_method(0, spec.Connection.StartOk(properties, login, response, "en_US"))
        tune = self.wait_for(0, spec.Connection.Tune, end)
        self.frame_max = min(FRAME_MAX, tune.frame_max or FRAME_MAX)
        if self.heartbeat:
            self.heartbeat = min(self.heartbeat, tune.heartbeat or self.heartbeat)
        self.send_method(0, spec.Connection.TuneOk(tune.channel_max, self.frame_max, self.heartbeat))
        self.send_method(0, spec.Connection.Open(Server.virtual_host(url)))
        self.wait_for(0, spec.Connection.OpenOk, end)
        self.open_channel(1, end)
        self.limit(self.timeout)

    def open_channel(self, channel: int, end: float | None = None) -> None:
        """Open a channel, afresh where it is open."""
        if channel in self._open:
            self.close_channel(channel, end)
        self.call(spec.Channel.Open(), channel, end)
        self._open.add(channel)

    def close_channel(self, channel: int, end: float | None = None) -> None:
        """Close a channel that is open."""
        self.call(spec.Channel.Close(0, "", 0, 0), channel, end)
        self._forget(channel)

    def limit(self, timeout: float) -> None:
        """Each send takes at most `timeout` seconds from now on."""
        self.limited = timeout
        if self._tls:
            self._sock.settimeout(timeout)
            return
        # The kernel keeps the time: Python's own timeout polls before each send.
        self._sock.settimeout(None)
        limit = struct.pack("@ll", int(timeout), min(int(timeout % 1 * 1e6) + 1, 999_999))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def fileno(self) -> int:
        fd: int = self._sock.fileno()
        return fd

    # -- sending ---------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        if self._sock is None:
            raise Lost("the connection is closed")
        try:
            if len(data) < _LARGE:
                self._sock.sendall(data)
            else:
                self._send_large(data)
        except (BlockingIOError, TimeoutError) as error:
            self._late = self.torn = True
            # Before it stops reading it says why.
            while self.blocked is None and self.readable(0):
                self.read()
            if self.blocked is not None:
                raise Blocked(self.blocked) from error
            raise Late("the server does not read what it is sent") from error
        self._sent_at = time.monotonic()

    send = _send

    def _send_large(self, data: bytes) -> None:
        """Within the limit in all: `sendall` takes it for each part that the kernel has room for."""
        end = time.monotonic() + self.limited
        rest = memoryview(data)
        while rest:
            rest = rest[self._sock.send(rest) :]
            if rest and time.monotonic() > end:
                raise TimeoutError

    def send_method(self, channel: int, method: Any) -> None:
        """Send a method; its answer, if it has one, is due to `wait_for`."""
        self._send(_marshal(channel, method))

    def call(self, method: Any, channel: int = 1, end: float | None = None) -> Any:
        """Send a method and wait for its answer."""
        self.send_method(channel, method)
        # Methods and their answers have the same name: Queue.Declare, Queue.DeclareOk.
        owner = getattr(spec, type(method).__qualname__.partition(".")[0])
        return self.wait_for(channel, getattr(owner, f"{type(method).__name__}Ok"), end)

    def call_all(self, methods: list[Any], channel: int = 1, end: float | None = None) -> list[Any]:
        """Send several methods at once and wait for all their answers: one trip."""
        self._send(b"".join(_marshal(channel, method) for method in methods))
        answers = []
        for method in methods:
            owner = getattr(spec, type(method).__qualname__.partition(".")[0])
            answers.append(self.wait_for(channel, getattr(owner, f"{type(method).__name__}Ok"), end))
        return answers

    def confirm(self) -> None:
        """Have the server confirm each message from now on."""
        self.call(spec.Confirm.Select())
        self.confirms = True

    # -- receiving -------------------------------------------------------------------------

    def wait_for(self, channel: int, kind: Any, end: float | None = None) -> Any:
        """The next answer on `channel`, which must be of `kind`."""
        end = time.monotonic() + self.timeout if end is None else end
        answers = self._answers.setdefault(channel, [])
        while True:
            while answers:
                answer = answers.pop(0)
                if isinstance(answer, kind):
                    return answer
            if channel in self.closed:
                raise self.closed.pop(channel)
            left = end - time.monotonic()
            if left <= 0:
                self._late = True
                raise Late(f"no {getattr(kind, '__qualname__', 'answer')} came")
            self.pump(left)

    def readable(self, wait: float) -> bool:
        """Whether something arrives within `wait` seconds, or is there."""
        if self._sock is None:
            raise Lost("the connection is closed")
        if self.buffered:
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(wait * 1000))

    @property
    def buffered(self) -> bool:
        """Whether TLS has read more than was asked for: polling the socket would not show it."""
        return bool(self._tls and self._sock is not None and self._sock.pending())

    def pump(self, wait: float = 0.0) -> bool:
        """Wait up to `wait` seconds for something, read and dispatch it; whether anything came."""
        if self.heartbeat:
            wait = min(wait, self.heartbeat / 4)
            self.beat()
        if not self.readable(wait):
            return False
        self.read()
        return True

    def read(self) -> None:
        """Read and dispatch what is there."""
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        if not data:
            raise Lost("the server has closed the connection")
        self._heard_at = time.monotonic()
        self._take(self._buffer + data if self._buffer else data)

    def beat(self) -> None:
        """Send a heartbeat if one is due.  Raises Lost if the server has sent none for too long."""
        now = time.monotonic()
        if self.heartbeat:
            if now - self._sent_at > self.heartbeat / 3:
                self._send(codec.HEARTBEAT_FRAME)
            if now - self._heard_at > self.heartbeat * 2 and not self.readable(0):
                raise Lost(f"the server was silent for {now - self._heard_at:.0f} s")

    def _take(self, data: bytes) -> None:
        at, have = 0, len(data)
        while have - at >= 8:
            size = int.from_bytes(data[at + 3 : at + 7], "big")
            end = at + 8 + size
            if end > have:
                break
            kind = data[at]
            if data[end - 1] != 0xCE or kind not in (1, 2, 3, 8):
                if data[at : at + 4] == b"AMQP":
                    raise Refused(0, "it speaks another version of AMQP", whole=True)
                raise Lost("what the server sends is not AMQP")
            channel = data[at + 1] << 8 | data[at + 2]
            payload = data[at + 7 : end - 1]
            at = end
            if kind == codec.METHOD:
                self._take_method(channel, payload)
            elif kind != codec.HEARTBEAT:
                self._take_content(channel, kind, payload)
        self._buffer = data[at:]
        if self._buffer[:2] == _TLS_ALERT:
            raise Refused(0, "it speaks TLS on this port: use amqps:// or broker_use_ssl", whole=True)
        if self._buffer[:4] == b"AMQP" or (len(self._buffer) > 7 and self._buffer[0] not in (1, 2, 3, 8)):
            raise Refused(0, "it does not speak AMQP 0-9-1 on this port", whole=True)

    def _take_method(self, channel: int, payload: bytes) -> None:
        number = int.from_bytes(payload[:4], "big")
        if number in (codec.DELIVER, codec.GET_OK, codec.RETURN):
            self._partial[channel] = Content(channel, number, payload)
        elif number in (codec.ACK, codec.NACK):
            tag, multiple = int.from_bytes(payload[4:12], "big"), payload[12] & 1
            self._confirmed(tag, bool(multiple), number == codec.NACK)
        else:
            try:
                method = spec.methods[number]()
                method.decode(payload, 4)
            except (KeyError, ValueError, IndexError, struct.error, AMQPError) as error:
                raise Lost(f"the server sends a method that can't be read ({number:#x})") from error
            self._take_answer(channel, method)

    def _confirmed(self, tag: int, multiple: bool, refused: bool) -> None:
        tags = [tag]
        if multiple:
            tags = []
            for number in self.outstanding:
                if number > tag:
                    break
                tags.append(number)
        for number in tags:
            if self.outstanding.pop(number, 0) is None and refused:
                self.refused.append(number)

    def _take_content(self, channel: int, kind: int, payload: bytes) -> None:
        content = self._partial.get(channel)
        if content is None:
            raise Lost("a message came without its method")
        if kind == codec.HEADER:
            content.header = payload
            content.left = int.from_bytes(payload[4:12], "big")
        else:
            content.left -= len(payload)
            if not content.body:
                content.body = payload
            else:
                if not isinstance(content.body, bytearray):
                    content.body = bytearray(content.body)
                content.body += payload
        if content.left > 0:
            return
        del self._partial[channel]
        if content.number == codec.RETURN:
            self.returned.append(content)
        elif content.number == codec.GET_OK:
            self._answers.setdefault(channel, []).append(content)
        else:
            self.on_content(content)

    def _take_answer(self, channel: int, method: Any) -> None:
        if isinstance(method, spec.Connection.Close):
            with contextlib.suppress(OSError):
                self.send_method(0, spec.Connection.CloseOk())
            if method.reply_code in PASSING:
                kind = Failed if method.reply_code == INTERNAL_ERROR else Lost
                raise kind(f"the server has closed the connection: {method.reply_text}")
            raise Refused(method.reply_code, method.reply_text, whole=True)
        if isinstance(method, spec.Channel.Close):
            self.send_method(channel, spec.Channel.CloseOk())
            self._partial.pop(channel, None)
            self._forget(channel)
            self.closed[channel] = Refused(method.reply_code, method.reply_text)
        elif isinstance(method, spec.Connection.Blocked):
            self.blocked = method.reason or "a resource alarm"
        elif isinstance(method, spec.Connection.Unblocked):
            self.blocked = None
        elif isinstance(method, spec.Basic.Cancel):
            self.on_cancel(method.consumer_tag)
        else:
            self._answers.setdefault(channel, []).append(method)

    def _forget(self, channel: int) -> None:
        """A channel is closed; on the next one of its number messages are counted from 1."""
        self._open.discard(channel)
        if channel == 1:
            self.outstanding.clear()  # they never will be confirmed
            self.published = 0

    # -- the end ---------------------------------------------------------------------------

    def close_socket(self) -> None:
        """Close the socket at once; the server puts back what was held."""
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def close(self) -> None:
        """Say goodbye, to a server that may hear it, and close; never raises."""
        if self._sock is not None and not (self._late or self.outstanding or self.blocked):
            with contextlib.suppress(Exception):
                end = time.monotonic() + 1.0
                self.send_method(0, spec.Connection.Close(200, "", 0, 0))
                self.wait_for(0, spec.Connection.CloseOk, end)
        self.close_socket()


def _marshal(channel: int, method: Any) -> bytes:
    try:
        data: bytes = frame.Method(channel, method).marshal()
    except AMQPError as error:  # a name of more than 255 bytes, an argument of an odd type
        raise Refused(0, f"AMQP can't carry {method!r:.200}: {error!r:.200}") from error
    return data
