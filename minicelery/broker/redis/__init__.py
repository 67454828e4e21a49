"""Redis as a broker and as a result store: Celery's keys, our own ownership."""

from __future__ import annotations

from minicelery.broker.redis.backend import RedisBackend
from minicelery.broker.redis.broker import RedisBroker

__all__ = ["RedisBackend", "RedisBroker"]
