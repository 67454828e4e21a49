"""The peers on Redis."""

from __future__ import annotations

from benchmarks.peers.peer import CELERY, DRAMATIQ, MINICELERY, REDIS, TASKIQ, Ask, Peer

_EVERYTHING = frozenset({"enqueue", "drain", "drain-no-results", "calm", "late", "delayed", "cpu", "naps"})


def _keys(ask: Ask, pattern: str) -> list[str]:
    cursor, found = "0", []
    while True:
        cursor, page = ask("SCAN", cursor, "MATCH", pattern, "COUNT", 10000)
        found += page
        if cursor == "0":
            return found


def _minicelery_unsettled(ask: Ask) -> int:
    held = sum(ask("HLEN", key) for key in _keys(ask, "*celery}.held:*"))
    return int(ask("LLEN", "celery") + held)


def _taskiq_unsettled(ask: Ask) -> int:
    groups = ask("XINFO", "GROUPS", "taskiq")
    facts = dict(zip(groups[0][::2], groups[0][1::2], strict=True))
    return int(facts["pending"] + (facts.get("lag") or 0))


def _floor_unsettled(ask: Ask) -> int:
    return int(ask("LLEN", "floor") + ask("HLEN", "floor.held.0") + ask("HLEN", "floor.held.1"))


def _floor(client: str, batch: int) -> Peer:
    sessions = {"drain"} | ({"drain-no-results", "enqueue"} if batch == 16 else set())
    return Peer(
        name=f"floor {client} {batch}",
        folder="floor",
        requirements=REDIS,
        worker="python worker.py",
        settings=f"2 processes, {batch} tasks a turn, MULTI/EXEC through "
        + ("redis-py's pipeline" if client == "redis-py" else "a socket, packed and parsed by hiredis"),
        drain_tasks=10_000 if batch == 1 else 30_000,
        unsettled=_floor_unsettled,
        stored=lambda ask: int(ask("DBSIZE")),
        sessions=frozenset(sessions),
        env={"FLOOR_CLIENT": client, "FLOOR_BATCH": str(batch)},
    )


PEERS = (
    Peer(
        name="minicelery",
        requirements=MINICELERY,
        worker="minicelery -A tasks worker -c 2 -l warning",
        beat="minicelery -q -A tasks beat -l warning",
        settings="worker -c 2 -l warning",
        drain_tasks=30_000,
        unsettled=_minicelery_unsettled,
        stored=lambda ask: int(ask("DBSIZE")),
        sessions=_EVERYTHING | {"canvas", "beat"},
    ),
    Peer(
        name="celery",
        requirements=CELERY,
        beat="celery -q -A tasks beat -l warning",
        worker="celery -A tasks worker -P prefork -c 2 --without-gossip --without-mingle --without-heartbeat "
        "-l warning",
        settings="worker -P prefork -c 2 --without-gossip --without-mingle --without-heartbeat -l warning",
        drain_tasks=4_000,
        unsettled=lambda ask: int(ask("LLEN", "celery") + ask("HLEN", "unacked")),
        stored=lambda ask: int(ask("DBSIZE")),
        sessions=_EVERYTHING | {"canvas", "beat"},
    ),
    Peer(
        name="huey",
        requirements=("huey==3.5.4", *REDIS),
        worker="huey_consumer tasks.huey -w 2 -k process -q",
        settings="RedisHuey, -w 2 -k process; notify_result=True where single results are awaited",
        drain_tasks=8_000,
        unsettled=lambda ask: int(ask("LLEN", "huey.redis.bench")),
        stored=lambda ask: int(ask("HLEN", "huey.results.bench")),
        sessions=_EVERYTHING - {"late"},
    ),
    Peer(
        name="dramatiq",
        requirements=DRAMATIQ,
        worker="dramatiq tasks:broker -p 2 -t 1",
        settings="RedisBroker, -p 2 -t 1",
        drain_tasks=5_000,
        unsettled=lambda ask: int(ask("HLEN", "dramatiq:default.msgs")),
        stored=lambda ask: int(ask("DBSIZE")),
        sessions=_EVERYTHING - {"late"},
    ),
    Peer(
        name="taskiq",
        requirements=TASKIQ,
        worker="taskiq worker tasks:broker -w 2 --max-threadpool-threads 1 --log-level WARNING",
        settings="RedisStreamBroker + RedisAsyncResultBackend, -w 2 --max-threadpool-threads 1; tasks are "
        "coroutines, only the nap blocks a thread; results polled every 1 ms; no delays in its worker",
        drain_tasks=5_000,
        unsettled=_taskiq_unsettled,
        stored=lambda ask: int(ask("DBSIZE")),
        sessions=_EVERYTHING - {"late", "delayed"},
    ),
    *(_floor(client, batch) for client in ("redis-py", "hand") for batch in (1, 16, 64)),
)
