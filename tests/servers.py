"""Servers of a test's own: on a free port of the loopback, with their files in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

REDIS = "redis-server"


class RedisServer:
    """One redis-server process; it keeps nothing on disk unless it is told to.

    ``RedisServer(appendonly="yes", requirepass="secret").start()``; the options are those of
    redis.conf with underscores for hyphens.  `restart` keeps port and folder.
    """

    def __init__(self, **config: object) -> None:
        self.config = config
        self.port = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        return shutil.which(REDIS) is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def url(self, db: int = 0) -> str:
        """The server's URL, with its password."""
        password = self.config.get("requirepass")
        secret = f":{password}@" if password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/{db}"

    def start(self, **config: object) -> RedisServer:
        """Start it, with `config` in addition; returns when it answers."""
        assert self._process is None, "the server is running already"
        self.config |= config
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        if self.port:
            self._launch()
            return self
        for _ in range(5):  # another process may take the free port before the server does
            self.port = free_port()
            try:
                self._launch()
                return self
            except RuntimeError as failed:
                error = failed
        raise error

    def stop(self) -> None:
        """End it and remove its folder; what it kept is gone."""
        self._end(signal.SIGTERM)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would; its files stay for `restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> RedisServer:
        """Start it again on the same port and folder; ends it first where it runs."""
        self._end(signal.SIGTERM)
        return self.start()

    def command(self, *parts: str, timeout: float = 20.0) -> bytes:
        """Send one command on a connection of its own; the first bytes of the reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            if password := self.config.get("requirepass"):
                connection.sendall(_packed("AUTH", str(password)))
                connection.recv(1024)
            connection.sendall(_packed(*parts))
            return connection.recv(65536)

    def _launch(self) -> None:
        assert self._folder is not None
        config = {"bind": "127.0.0.1", "port": self.port, "dir": self._folder, "save": "", "appendonly": "no"}
        config |= self.config
        arguments = [
            part for name, value in config.items() for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [REDIS, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + 20
        while time.monotonic() < end and self._process.poll() is None:
            try:
                # A server that loads its file answers -LOADING; a stranger on the port is not this pid.
                mine = f"process_id:{self.pid}\r".encode() in self.command("INFO", "server", timeout=2.0)
                if mine and self.command("PING", timeout=2.0).startswith(b"+PONG"):
                    return
            except OSError:
                pass
            time.sleep(0.02)
        self._end(signal.SIGKILL)
        raise RuntimeError(f"{REDIS} did not start:\n{(self._folder / 'log').read_text()[-2000:]}")

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.kill(process.pid, number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _packed(*parts: str) -> bytes:
    return f"*{len(parts)}\r\n".encode() + b"".join(
        b"$%d\r\n%s\r\n" % (len(part.encode()), part.encode()) for part in parts
    )


def free_port() -> int:
    """A port of the loopback that nobody has, and that the kernel gives to nobody who asks for any.

    One of those could be a connection's while its server is down, or that of a test beside this one.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
