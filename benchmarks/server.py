"""A Redis server for the run, and the little client that the harness asks it with."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any

from benchmarks.processes import BenchError


class RedisServer:
    """redis-server on a free loopback port, in a temporary folder, without persistence."""

    name = "redis"

    def __enter__(self) -> RedisServer:
        program = shutil.which("redis-server")
        if program is None:
            raise BenchError("redis-server is not installed; the benchmarks need one on PATH")
        self.folder = tempfile.TemporaryDirectory(prefix="minicelery-bench-")
        self.port = _free_port()
        self.process = subprocess.Popen(
            [program, *f"--port {self.port} --bind 127.0.0.1 --appendonly no --save".split(), ""],
            cwd=self.folder.name,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.ask = self._connect()
        self.version = _field(self.ask("INFO", "server"), "redis_version")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.folder.cleanup()

    @property
    def pid(self) -> int:
        return self.process.pid

    def clear(self) -> None:
        self.ask("FLUSHALL")

    def _connect(self) -> Redis:
        deadline = time.monotonic() + 10
        while True:
            try:
                redis = Redis(self.port)
                redis("PING")
            except OSError as error:
                if time.monotonic() > deadline:
                    raise BenchError(f"redis-server on port {self.port} does not answer") from error
                time.sleep(0.02)
            else:
                return redis


class Redis:
    """A blocking connection that speaks just enough of the protocol."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.file = self.socket.makefile("rb")

    def __call__(self, *words: str | int) -> Any:
        """Send one command; its reply as int, text, list or None.  Raises BenchError."""
        parts = [str(word).encode() for word in words]
        head = b"*%d\r\n" % len(parts)
        self.socket.sendall(head + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
        return self._reply()

    def _reply(self) -> Any:
        line = self.file.readline()
        if not line:
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise BenchError(f"Redis: {rest.decode()}")
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if rest == b"-1":
            return None
        if kind == b"$":
            return self.file.read(int(rest) + 2)[:-2].decode(errors="replace")
        return [self._reply() for _ in range(int(rest))]


def _field(info: str, name: str) -> str:
    return next(line.partition(":")[2] for line in info.splitlines() if line.startswith(name + ":"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
