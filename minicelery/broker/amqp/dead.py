"""Dead letters in RabbitMQ: looked at, put back on their queue, thrown away.

They are messages of a queue of their own, so whoever looks takes all of them for a moment; what is
not settled goes back to its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pika import spec

from minicelery.broker.amqp import codec, declare
from minicelery.broker.amqp.envelope import dead_letter, decode, properties
from minicelery.broker.amqp.link import Content, Link
from minicelery.broker.amqp.server import FULL, Refused
from minicelery.broker.dead import as_new, chosen, newest_first
from minicelery.message import DeadLetter, Delivery, Message

CHANNEL = 2
SECONDS = 30.0
"""How long settling may take to begin; it goes on while the server answers."""
_NOTES = ("x-rejected-reason", "x-rejected-at", "x-rejected-id", "x-rejected-task")


class DeadLetters:
    """The part of the AMQP broker that keeps dead letters."""

    ask: Callable[[Callable[[Link], Any]], Any]
    insist: Callable[..., Any]
    address: Callable[[Link, Message, float, float], tuple[str, str, bool]]
    bury: Callable[[Delivery, str], None]

    def dead_letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """See `Broker.dead_letters`."""

        def look(link: Link) -> list[DeadLetter]:
            link.open_channel(CHANNEL)
            letters = [dead_letter(content) for content in _browse(link, declare.dead_queue(queue))]
            return newest_first(letters, limit)

        letters: list[DeadLetter] = self.ask(look)
        return letters

    def replay_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        """See `Broker.replay_dead`."""
        return self._settle(queue, ids, replay=True)

    def discard_dead(self, queue: str, ids: Collection[str] | None = None) -> int:
        """See `Broker.discard_dead`."""
        return self._settle(queue, ids, replay=False)

    def _settle(self, queue: str, ids: Collection[str] | None, *, replay: bool) -> int:
        # A transaction for each: who is killed in between has lost none and left none twice.
        # One for many could not tell which of them a full queue has refused.
        count = 0

        def settle(link: Link) -> None:
            nonlocal count
            link.open_channel(CHANNEL)
            link.call(spec.Tx.Select(), CHANNEL)
            for content in _browse(link, declare.dead_queue(queue)):
                if not chosen(dead_letter(content).id, ids):
                    continue
                tag = codec.decode_get_ok(content.method)[0]
                again = self._again(link, content, queue) if replay else b""
                link.send(again + codec.ack_frame(CHANNEL, tag))
                try:
                    link.call(spec.Tx.Commit(), CHANNEL)
                except Refused as error:
                    if replay:  # the queue has refused it, and it is no dead letter any more
                        self.bury(_delivery_of(content, queue), dead_letter(content).reason)
                    raise Refused(
                        FULL, f"queue {queue!r} is full (x-max-length) and takes no more messages"
                    ) from error
                count += 1

        self.insist(settle, time.monotonic() + SECONDS)
        return count

    def _again(self, link: Link, content: Content, queue: str) -> bytes:
        """What sends it to its queue."""
        now = time.time()
        message = _message_of(content, queue)
        exchange, key, _ = self.address(link, message, now, time.monotonic() + SECONDS)
        found = properties(message, now)
        return codec.publish_frames(CHANNEL, exchange, key, found, message.body, link.frame_max)


def _browse(link: Link, queue: str) -> Iterator[Content]:
    """Every message of a queue, oldest first; what is not acknowledged goes back to its place."""
    try:
        while True:
            link.send_method(CHANNEL, spec.Basic.Get(queue=queue))
            answer = link.wait_for(CHANNEL, (Content, spec.Basic.GetEmpty))
            if not isinstance(answer, Content):
                break
            yield answer
        link.call(spec.Basic.Recover(requeue=True), CHANNEL)
        # The queue answers in turn: what was held is there again for who looks next.
        link.call(spec.Queue.Declare(queue=queue, passive=True), CHANNEL)
    except Refused as error:
        if error.code != 404:
            raise
        return
    link.close_channel(CHANNEL)


def _delivery_of(content: Content, queue: str) -> Delivery:
    return decode(content, False, "", queue, queue, 0)


def _message_of(content: Content, queue: str) -> Message:
    """The message as it was sent; what can't be read as it came: perhaps a worker can, by now."""
    delivery = _delivery_of(content, queue)
    message = as_new(delivery.message, queue)
    if delivery.broken is not None:
        found = _properties(content)
        message.headers = dict(found.get("headers") or {})
        message.content_type = found.get("content_type") or message.content_type
    message.headers = {name: value for name, value in message.headers.items() if name not in _NOTES}
    return message


def _properties(content: Content) -> dict[str, Any]:
    try:
        return codec.decode_properties(content.header)
    except (ValueError, IndexError):
        return {}
