"""What the harness knows of a library under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.venvs import CHECKOUT

Ask = Callable[..., Any]
"""Sends one Redis command and returns its reply; for RabbitMQ, counts the messages of a queue."""

REDIS = ("redis==8.1.0", "hiredis==3.5.0")
MINICELERY = (CHECKOUT + "[fast]",)
CELERY = ("celery[redis]==5.7.0", *REDIS)
DRAMATIQ = ("dramatiq[redis]==2.2.1", "pika==1.4.4", *REDIS)
TASKIQ = (
    "taskiq==0.13.0",
    "taskiq-redis==1.2.4",
    "taskiq-aio-pika==0.6.1",
    "aio-pika==10.2.1",
    "aiormq==7.2.4",
    *REDIS,
)


@dataclass(frozen=True)
class Peer:
    """A library on one broker.  Its tasks are in the folder `name`, or `folder` where given."""

    name: str
    requirements: tuple[str, ...]  # the same on every broker: they share an environment
    worker: str  # command line; the program is found in the peer's environment
    settings: str  # what a reader must know of its configuration
    drain_tasks: int  # enough for a second or two
    unsettled: Callable[[Ask], int]  # tasks in a queue or held by a worker
    stored: Callable[[Ask], int]  # results in Redis
    sessions: frozenset[str]
    folder: str = ""
    beat: str = ""  # command line of what sends periodic tasks
    env: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> str:
        return self.folder or self.name
