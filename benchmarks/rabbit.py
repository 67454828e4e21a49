"""A RabbitMQ server for the run, and what the harness asks it about its queues."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from benchmarks.processes import BenchError
from tests.rabbit import RabbitServer


class RabbitMQServer:
    """rabbitmq-server as it comes, on a free loopback port; each turn has a virtual host of its own."""

    name = "rabbitmq"

    def __enter__(self) -> RabbitMQServer:
        if not RabbitServer.available():
            raise BenchError("rabbitmq-server is not installed; these benchmarks need Debian's package")
        self._server = RabbitServer(schedulers=0)
        try:
            with _server_errors():
                self._server.start()
            self.version = self._text("rabbit_misc:version()")
        except BaseException:
            self._server.stop()
            raise
        self._turn = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        return self._server.url(self._vhost)

    @property
    def pid(self) -> int:
        return self._server.pid

    def clear(self) -> None:
        """Drop all that the last turn has made, its queues and message store, and begin anew."""
        with _server_errors():
            if self._turn:
                self._server.delete_vhost(self._vhost)
            self._turn += 1
            self._server.add_vhost(self._vhost)

    def ask(self, queue: str) -> int:
        """Messages in a queue of this turn, ready or held by a worker; 0 where there is no such queue."""
        found = re.search(r"\{messages,(\d+)\}", self._info(queue, "messages"))
        return int(found[1]) if found else 0

    def check_durable(self, count: int) -> None:
        """Raise BenchError unless a durable queue holds `count` persistent messages."""
        names = re.findall(r'<<"([^"]+)">>', self._text(f"[element(4, Name) || Name <- {self._names}]"))
        infos = {name: self._info(name, "durable, messages_persistent") for name in names}
        for info in infos.values():
            found = re.search(r"messages_persistent,(\d+)", info)
            if "{durable,true}" in info and found and int(found[1]) >= count:
                return
        raise BenchError(f"no durable queue with {count} persistent messages: {infos}")

    @property
    def _vhost(self) -> str:
        return f"turn{self._turn}"

    @property
    def _names(self) -> str:
        return f'rabbit_amqqueue:list_names(<<"{self._vhost}">>)'

    def _info(self, queue: str, items: str) -> str:
        name = f'rabbit_misc:r(<<"{self._vhost}">>, queue, <<"{queue}">>)'
        return self._text(
            f"case rabbit_amqqueue:lookup({name}) of "
            f"{{ok, Queue}} -> rabbit_amqqueue:info(Queue, [{items}]); Other -> Other end"
        )

    def _text(self, expression: str) -> str:
        with _server_errors():
            return self._server.eval(expression).strip().strip('"')


@contextmanager
def _server_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f"rabbitmq-server: {error}") from error
