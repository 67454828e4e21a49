"""Dead letters that are wanted again: as new messages of their queue."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from minicelery.message import COUNT_HEADER, TURN_HEADER, DeadLetter, Message

_OF_THE_PAST = frozenset({COUNT_HEADER, TURN_HEADER, "redelivered"})


def chosen(letter_id: str | None, ids: Collection[str] | None) -> bool:
    """Whether a letter is among `ids`; None: all are."""
    return ids is None or letter_id in ids


def as_new(message: Message, queue: str) -> Message:
    """The message as if it had just been sent to `queue`: the runs that died under it are forgotten."""
    headers = {name: value for name, value in message.headers.items() if name not in _OF_THE_PAST}
    return replace(
        message, headers=headers, headers_text="", queue=queue, exchange="", routing_key=queue, due=None
    )


def newest_first(letters: list[DeadLetter], limit: int) -> list[DeadLetter]:
    """Of letters in the order in which they died, the last ones."""
    return letters[::-1][:limit]
