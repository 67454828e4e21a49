"""A TCP proxy between a client and a server that stalls, cuts and drops."""

from __future__ import annotations

import contextlib
import select
import socket
import threading


class Proxy:
    """Forwards a free loopback port to `port`; use as a context manager.

    `stall()` keeps connections open and passes nothing on; `cut()` closes them all;
    `cut_reply_after(n)` closes a connection once `n` more bytes of replies have passed;
    `lose_replies()` passes requests on and swallows what the server answers.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._stopped = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._losing = False
        self._left: int | None = None
        self.lost = 0  # bytes of replies that were swallowed
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._flowing.set()
        self._thread.join(5)  # before the rest: it may be making a connection
        self._listener.close()
        self.cut()

    def stall(self) -> None:
        """Pass nothing on, in either direction, until `flow`."""
        self._flowing.clear()

    def flow(self) -> None:
        """Everything works again."""
        self._losing = False
        with self._lock:
            self._left = None
        self._flowing.set()

    def lose_replies(self) -> None:
        """Requests arrive, answers don't."""
        self._losing = True

    def cut_reply_after(self, count: int) -> None:
        """Let `count` more bytes of answers pass, then close that connection; once."""
        with self._lock:
            self._left = count

    def cut(self) -> None:
        """Close every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for side in pair:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()

    def _taken(self, data: bytes) -> tuple[bytes, bool]:
        """What passes of an answer, and whether its connection is cut after that."""
        with self._lock:
            if self._left is None:
                return data, False
            passed = data[: self._left]
            self._left -= len(passed)
            cut = self._left == 0
            if cut:
                self._left = None
            return passed, cut

    def _accept(self) -> None:
        while not self._stopped:
            try:
                if not select.select([self._listener], [], [], 0.1)[0]:
                    continue
                client, _ = self._listener.accept()
            except (OSError, ValueError):  # closed meanwhile
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 2)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.append((client, server))
            for source, sink, is_reply in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, is_reply), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(65536):
                self._flowing.wait()
                if is_reply and self._losing:
                    self.lost += len(data)
                    continue
                passed, cut = self._taken(data) if is_reply else (data, False)
                sink.sendall(passed)
                if cut:
                    break
        for side in (source, sink):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
