"""What the server has delivered on one channel and waits to hear of."""

from __future__ import annotations

from collections.abc import Sequence

from minicelery.broker.amqp import codec

_CHANNEL = 1


class Unacked:
    """Delivery tags, and the frames that say what becomes of them; each tag is said one thing of."""

    def __init__(self) -> None:
        self.tags: dict[int, None] = {}  # rising
        self.counted: set[int] = set()  # those that take up the room of the present consumers

    def acked(self, tags: Sequence[int]) -> list[bytes]:
        """As few frames as will do: one for all the oldest, and one for each of the others."""
        left = set(tags)
        last = 0
        for tag in self.tags:
            if tag not in left:
                break
            last = tag
        frames = []
        if last:
            frames.append(codec.ack_frame(_CHANNEL, last, multiple=True))
            left = {tag for tag in left if tag > last}
        frames += [codec.ack_frame(_CHANNEL, tag) for tag in sorted(left)]
        self._drop(tags)
        return frames

    def refused(self, tags: Sequence[int]) -> list[bytes]:
        """They go to the dead-letter exchange of their queue."""
        self._drop(tags)
        return [codec.nack_frame(_CHANNEL, tag, requeue=False) for tag in tags]

    def given_back(self, tags: Sequence[int]) -> list[bytes]:
        """They go to their places in their queues."""
        self._drop(tags)
        return [codec.nack_frame(_CHANNEL, tag, requeue=True) for tag in tags]

    def clear(self) -> None:
        """The channel is gone."""
        self.tags.clear()
        self.counted.clear()

    def _drop(self, tags: Sequence[int]) -> None:
        for tag in tags:
            self.tags.pop(tag, None)
            self.counted.discard(tag)
