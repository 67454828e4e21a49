"""Letters through Redis, as Celery sends them: PUBLISH to who listens, a list for replies."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import redis.exceptions

from minicelery.broker.post import AT_ONCE, Box, Letter, Open, Outbox
from minicelery.broker.redis.letterbox import Arrival, Replies, Subscription
from minicelery.broker.redis.letters import Places, decode
from minicelery.broker.redis.link import FAILED, LOST, Link, Script
from minicelery.broker.waking import Polling
from minicelery.exceptions import BrokerUnavailable, EncodeError, OperationalError

if TYPE_CHECKING:
    from minicelery.broker.redis.broker import RedisBroker

Command = tuple[Any, ...]

_ANSWERS = (redis.exceptions.ResponseError, redis.exceptions.BusyLoadingError)
"""What a server says that does not do what it should for now; it publishes nevertheless."""


class RedisPost:
    """See `Post`."""

    def __init__(self, broker: RedisBroker, options: Mapping[str, Any]) -> None:
        self.broker = broker
        self.places = Places(broker.prefix, broker.server.database, options)
        self._open = Open()

    def send(self, letters: Sequence[Letter]) -> int:
        """See `Post.send`."""
        commands = [self.places.command(letter) for letter in letters]
        answers = self.broker.ask_all(commands) if commands else ()
        return sum(n for (name, *_), n in zip(commands, answers, strict=True) if name == "PUBLISH")

    def listen(self, boxes: Sequence[Box]) -> RedisListening:
        """See `Post.listen`."""
        listening = RedisListening(self, boxes)
        self._open.add(listening)
        return listening

    def close(self) -> None:
        """See `Post.close`."""
        self._open.end()


class RedisListening(Polling):
    """See `Listening`: one connection for what is published, one for replies, as far as they are wanted."""

    failures = FAILED

    def __init__(self, post: RedisPost, boxes: Sequence[Box]) -> None:
        super().__init__(post.broker.url)
        self._post = post
        self._server = post.broker.server
        self._links: list[Link] = []
        self._sources: list[Subscription | Replies] = []
        self._replies: list[Box] = []
        replies = [box for box in boxes if box.kind == "direct"]
        published = [box for box in boxes if box.kind != "direct"]
        try:
            if replies:
                self._sources.append(Replies(self._link(), post.places, replies))
            if published:
                self._sources.append(Subscription(self._link(), post.places, published))
        except FAILED as error:
            self.close()
            raise self.explained(error) from error
        self._replies = replies

    def _link(self) -> Link:
        self._links.append(link := self._server.link())
        return link

    def connections(self) -> Sequence[Link]:
        """See `Polling.connections`."""
        return self._links

    def hear(self, found: list[Letter]) -> None:
        """See `Polling.hear`."""
        for source in self._sources:
            for arrival in source.hear(AT_ONCE - len(found)):
                found += self._opened(arrival)

    def _opened(self, arrival: Arrival) -> list[Letter]:
        try:
            letter = decode(arrival.raw, arrival.exchange, arrival.routing_key)
        except ValueError as error:
            self.unreadable.add(arrival.exchange, error)
            return []
        wanted = any(box.wants(arrival.exchange, letter.routing_key) for box in arrival.boxes)
        return self.unreadable.read(letter) if wanted else []

    def patience(self) -> float:
        """See `Polling.patience`."""
        now, timeout = time.monotonic(), self._server.timeout
        left = min(source.patience(now, timeout) for source in self._sources)
        if left <= 0:
            raise redis.exceptions.TimeoutError("no answer in time")
        # What has been read already would not be seen to come.
        return 0.0 if any(link.readable(0) for link in self._links) else left

    def drop(self) -> None:
        """See `Polling.drop`."""
        for link in self._links:
            link.close()
        self._links, self._sources = [], []

    def explained(self, error: BaseException) -> OperationalError:
        """See `Polling.explained`."""
        kind = BrokerUnavailable if isinstance(error, LOST) else OperationalError
        return kind(self._server.explain(error))

    def close(self) -> None:
        """See `Listening.close`: nothing of who has asked is left behind."""
        replies, self._replies = self._replies, []
        super().close()
        if replies and self.process == os.getpid():
            places = self._post.places
            commands: list[Command] = []
            for box in replies:
                bound, binding = places.binding(box)
                commands += [("SREM", bound, binding), ("ZREM", places.asked(box), binding)]
                commands.append(("DEL", places.queue(box.name)))
            with contextlib.suppress(OperationalError):
                self._post.broker.ask_all(commands)


class RedisOutbox(Outbox):
    """Letters that leave in one send with a script, after it."""

    def __init__(self, post: RedisPost) -> None:
        super().__init__()
        self._places = post.places

    def run(
        self, link: Link, script: Script, keys: Sequence[Any], arguments: Sequence[Any], *before: Command
    ) -> list[Any]:
        """Send the commands `before`, a script, and what waits, in one trip; the answers of all but the last.

        Where the connection is lost, the letters leave with the next trip: that a task has ended is
        better told twice than never.
        """
        letters = self.take() if self.waiting else []
        try:
            return self._run(link, script, keys, arguments, before, self._commands(letters))
        except LOST as error:
            if not isinstance(error, _ANSWERS):
                self.restore(letters)
            raise

    def _run(
        self, link: Link, script: Script, keys: Sequence[Any], arguments: Sequence[Any],
        before: Sequence[Command], after: Sequence[Command],
    ) -> list[Any]:  # fmt: skip
        link.send_all([*before, (b"EVALSHA", script.sha, len(keys), *keys, *arguments), *after])
        answers = [link.read() for _ in before]
        missing = False
        try:
            answers.append(link.read())
        except redis.exceptions.NoScriptError:
            missing = True
        for _ in after:
            # What the server refuses is news that nobody hears.
            with contextlib.suppress(redis.exceptions.ResponseError):
                link.read()
        if missing:
            answers.append(link.run(script, keys, arguments))
        return answers

    def _commands(self, letters: Sequence[Letter]) -> list[Command]:
        try:
            return [self._places.command(letter) for letter in letters]
        except EncodeError as error:
            self.drop(letters, error)
            return []
