"""The peers: what each needs installed, how its worker is started, where its tasks are seen."""

from __future__ import annotations

from benchmarks.peers import on_rabbitmq, on_redis
from benchmarks.peers.peer import Peer

PEERS: dict[str, tuple[Peer, ...]] = {"redis": on_redis.PEERS, "rabbitmq": on_rabbitmq.PEERS}
"""Broker to the libraries that are measured on it."""

__all__ = ["PEERS", "Peer"]
