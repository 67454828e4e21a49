"""The peers on RabbitMQ; results that are to be stored go to Redis.

All queues are classic and durable, all messages persistent; the harness looks that it is so.
"""

from __future__ import annotations

from benchmarks.peers.peer import CELERY, DRAMATIQ, MINICELERY, TASKIQ, Ask, Peer

_EVERYTHING = frozenset(
    {
        "confirmed",
        "unconfirmed",
        "drain",
        "drain-no-results",
        "drain-rpc",
        "calm",
        "delayed",
        "late",
        "cpu",
    }
)


def _stored(ask: Ask) -> int:
    return int(ask("DBSIZE"))


PEERS = (
    Peer(
        name="minicelery",
        requirements=MINICELERY,
        worker="minicelery -A tasks worker -c 2 -l warning",
        settings="worker -c 2 -l warning; confirms by default, unconfirmed by confirm_publish=False",
        drain_tasks=20_000,
        unsettled=lambda ask: int(ask("celery")),
        stored=_stored,
        sessions=_EVERYTHING,
    ),
    Peer(
        name="celery",
        requirements=CELERY,
        worker="celery -A tasks worker -P prefork -c 2 --without-gossip --without-mingle --without-heartbeat "
        "-l warning",
        settings="worker -P prefork -c 2 --without-gossip --without-mingle --without-heartbeat -l warning; "
        "unconfirmed by default, confirmed by confirm_publish=True; rpc results are collected by ResultSet.get",
        drain_tasks=3_000,
        unsettled=lambda ask: int(ask("celery")),
        stored=_stored,
        sessions=_EVERYTHING,
    ),
    Peer(
        name="dramatiq",
        requirements=DRAMATIQ,
        worker="dramatiq tasks:broker -p 2 -t 1",
        settings="RabbitmqBroker, -p 2 -t 1; unconfirmed by default, confirmed by confirm_delivery=True",
        drain_tasks=5_000,
        unsettled=lambda ask: int(ask("default")),
        stored=_stored,
        sessions=_EVERYTHING - {"late", "drain-rpc"},
    ),
    Peer(
        name="taskiq",
        requirements=TASKIQ,
        worker="taskiq worker tasks:broker -w 2 --max-threadpool-threads 1 --log-level WARNING",
        settings="AioPikaBroker + RedisAsyncResultBackend, -w 2 --max-threadpool-threads 1; classic queues (its "
        "default is quorum), a delay queue; tasks are coroutines; results polled every 1 ms; always confirmed",
        drain_tasks=3_000,
        unsettled=lambda ask: int(ask("taskiq")),
        stored=_stored,
        sessions=_EVERYTHING - {"late", "drain-rpc", "unconfirmed"},
    ),
)
