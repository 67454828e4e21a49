"""Unique calls: sent only where no other call of the same key is there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minicelery.broker import Limits, limits_store
from minicelery.exceptions import OperationalError
from minicelery.limits import TaskLimits
from minicelery.message import UNIQUE_HEADER, Message

if TYPE_CHECKING:
    from minicelery.app import Celery
    from minicelery.sending import Defaults


def mark(message: Message, limits: TaskLimits, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Say under which key the call must be the only one."""
    message.unique = unique = limits.unique(args, kwargs)
    if unique is not None:
        message.headers[UNIQUE_HEADER] = unique[0]
        message.headers_text = ""


class UniqueCalls:
    """Publishes an app's unique calls."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._opened: tuple[int, Limits] | None = None  # with the revision of the settings

    def publish(
        self, messages: Sequence[Message], defaults: Defaults, attempts: int | None
    ) -> Mapping[str, str] | None:
        """See `Broker.publish`; keys are claimed beside the broker where it keeps none."""
        store = self._store(defaults)
        broker = self.app.broker
        if store.parks:
            return broker.publish(messages, deadline=defaults.deadline, attempts=attempts)
        there: dict[str, str] = {}
        claimed: dict[str, str] = {}
        try:
            for message in messages:
                if message.unique is None:
                    continue
                key, seconds = message.unique
                message.unique = None
                holder = store.claim(key, message.id, seconds)
                if holder == message.id:
                    claimed[holder] = key
                else:
                    there[message.id] = holder
            sent = [message for message in messages if message.id not in there]
            broker.publish(sent, deadline=defaults.deadline, attempts=attempts)
        except BaseException:
            for id, key in claimed.items():
                with contextlib.suppress(OperationalError):
                    store.free(id, [key])
            raise
        return there or None

    def _store(self, defaults: Defaults) -> Limits:
        opened = self._opened
        if opened is None or opened[0] != defaults.revision:
            assert defaults.unique is not None
            app = self.app
            self.close()
            url = app.conf.task_limits_url
            store = limits_store(app.broker, url and app._placed(url), [defaults.unique])
            opened = self._opened = defaults.revision, store
        return opened[1]

    def close(self) -> None:
        """Close the connections to the store, where it is not the broker."""
        opened, self._opened = self._opened, None
        if opened is not None and not opened[1].parks:
            opened[1].close()
