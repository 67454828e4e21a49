"""The floor's producer: LPUSH of ready payloads, by redis-py or packed by hand."""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import client
import redis
from wire import HandConnection, ready_envelope

QUEUE = "floor"


class Client(client.Client):
    def __init__(self) -> None:
        self.payload = json.dumps(ready_envelope("00000000-0000-4000-8000-000000000000"))
        self.numbers = itertools.count()
        self.redis = redis.Redis.from_url(client.BROKER_URL)
        self.hand = HandConnection(client.BROKER_URL) if os.environ["FLOOR_CLIENT"] == "hand" else None

    def send(self, task: str, *args: Any) -> Any:
        if self.hand is not None:
            return self.hand.call([("LPUSH", QUEUE, self.payload)])
        return self.redis.lpush(QUEUE, self.payload)

    def send_batch(self, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        template, zeros = self.payload, "00000000-0000-4000-8000-000000000000"
        payloads = [template.replace(zeros, f"{next(self.numbers):08x}{zeros[8:]}") for _ in calls]
        if self.hand is not None:
            self.hand.call([("LPUSH", QUEUE, *payloads)])
        else:
            self.redis.lpush(QUEUE, *payloads)
