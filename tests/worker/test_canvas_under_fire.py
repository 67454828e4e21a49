"""Compositions while children, workers and servers are killed: every one ends, and no value is lost."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import minicelery
from minicelery import chord, group
from minicelery.result import AsyncResult
from tests.properties import shapes
from tests.properties.compositions import Evaluation, Node, renamed
from tests.properties.libraries import Library
from tests.properties.places import all_of, check
from tests.properties.shapes import SHAPES, A, B, c, pipe
from tests.servers import RedisServer
from tests.waiting import wait_until
from tests.worker.apps import compositions
from tests.worker.conftest import staged
from tests.worker.harness import Stage, WorkerProcess, kill_repeatedly

LATE: dict[str, Any] = {
    "imports": ["tests.worker.apps.compositions"], "task_acks_late": True, "task_reject_on_worker_lost": True,
    "task_delivery_cap": 1000, "worker_lease": 2.0,
}  # fmt: skip
EARLY: dict[str, Any] = {"imports": ["tests.worker.apps.compositions"], "worker_lease": 2.0}
SPREAD, GATHERED = (c(f"{kind}.", kind=kind) for kind in ("spread", "gathered"))
SOUND = [
    *(shape for shape in SHAPES if not any(kind in repr(shape) for kind in ("'ignore'", "'retried'", "'fail'"))),
    SPREAD, pipe(A, SPREAD, B), shapes.chord([A, SPREAD, GATHERED], B), pipe(shapes.group(A, GATHERED), GATHERED, B),
]  # fmt: skip
"""Whose parts are never waited for, and never fail by themselves.  Where a name ends with a dot, several calls have it."""
FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


@pytest.fixture(autouse=True)
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks leave their traces with the others."""
    monkeypatch.setenv(compositions.PATH, str(tmp_path / "traces"))


@dataclass
class Sent:
    """One composition that is on its way."""

    shape: Node
    library: Library
    result: Any

    def __post_init__(self) -> None:
        self.expected = Evaluation.of(self.shape)
        self.ids = {one.id for one in all_of(self.result)}
        for key, end in self.expected.linked.items():
            if end is not None:
                self.ids.add(self.library.id(key))


def send_all(stage: Stage, copies: int) -> list[Sent]:
    """All sound shapes, so many times each, every call with a name of its own."""
    if "say" not in stage.app.tasks:
        compositions.add_tasks(stage.app, stage.path)
    sent = []
    for copy in range(copies):
        for number, shape in enumerate(SOUND):
            prefix = f"{number}.{copy}."
            own = renamed(shape, prefix)
            library = Library(
                stage.app, minicelery.chain, minicelery.group, minicelery.chord, minicelery.signature,
                minicelery.xmap, minicelery.xstarmap, minicelery.chunks, prefix,
            )  # fmt: skip
            sent.append(Sent(own, library, library.made(own).apply_async()))
    return sent


def ended(stage: Stage, sent: list[Sent]) -> bool:
    """Whether all that is awaited is final."""
    return not pending(stage, sent)


def pending(stage: Stage, sent: list[Sent]) -> list[Node]:
    ids = [id for one in sent for id in one.ids]
    found = stage.app.backend.load(ids)
    final = {
        id for id, record in zip(ids, found, strict=True)
        if record is not None and json.loads(record.document)["status"] in FINAL
    }  # fmt: skip
    return [one.shape for one in sent if not one.ids <= final]


class Killer:
    """Kills children of a worker at random moments, and remembers whom."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.killed: set[int] = set()
        self._stage = stage
        self._rng = random.Random(seed)

    def rage(self, worker: WorkerProcess, seconds: float, over: Callable[[], bool], least: int = 0) -> None:
        """For so long, or until it is `over`; until `least` were killed in any case."""
        # Children that die young are replaced ever later, and those that talk to RabbitMQ take longer to begin.
        every = 0.3 if self._stage.url.startswith("amqp") else 0.06
        end = time.monotonic() + seconds

        def enough(killed: int) -> bool:
            return killed >= least and (time.monotonic() > end or over())

        kill_repeatedly(worker, every, enough, self._choose)

    def _choose(self, children: list[int]) -> int:
        pid = self._rng.choice(children)
        self.killed.add(pid)
        return pid


def values_are_right(stage: Stage, sent: list[Sent]) -> None:
    for one in sent:
        check(one.result, one.expected.end)
        for key, end in one.expected.linked.items():
            check(stage.app.AsyncResult(one.library.id(key)), end)


def runs_of_the_living(stage: Stage, killed: set[int]) -> Counter[str]:
    """How often each call has come to its end in a process that was not killed after it."""
    ended = [trace for trace in stage.traces("end") if trace.pid not in killed]
    return Counter(trace.detail for trace in ended if not trace.detail.endswith("."))  # one call runs several


def cut_short(stage: Stage) -> set[str]:
    """The calls of which a part has begun and not ended in its process."""
    begun = Counter((trace.what, trace.pid) for trace in stage.traces("start"))
    begun.subtract((trace.what, trace.pid) for trace in stage.traces("end"))
    return {id for (id, _), left in begun.items() if left > 0}


# -- children --------------------------------------------------------------------------------------


def test_compositions_whose_children_are_killed_come_to_their_values(stage: Stage) -> None:
    worker = stage.worker(concurrency=3, conf=LATE)
    sent = send_all(stage, 2)
    killer = Killer(stage, 1)
    killer.rage(worker, 2.0, lambda: ended(stage, sent), least=2)
    wait_until(lambda: ended(stage, sent), 30, 0.1)
    values_are_right(stage, sent)
    if (
        stage.backend == stage.url
    ):  # what has ended in a child that was killed in the next moment may run again
        assert set(runs_of_the_living(stage, killer.killed).values()) <= {1}


def test_compositions_whose_early_parts_are_killed_end_as_well(stage: Stage) -> None:
    worker = stage.worker(concurrency=3, conf=EARLY)
    sent = send_all(stage, 2)
    killer = Killer(stage, 2)
    killer.rage(worker, 2.0, lambda: ended(stage, sent))

    def all_ended() -> bool:
        return not [one for one in sent if not set(stage.states(list(all_of(one.result)))) <= FINAL]

    wait_until(all_ended, 30, 0.2)
    results = {one.id: one for each in sent for one in all_of(each.result)}
    failures = {id: type(one.result).__name__ for id, one in results.items() if one.state == "FAILURE"}
    assert set(failures.values()) <= {"WorkerLostError", "ChordError"}
    assert {failures.get(id) for id in cut_short(stage) & set(results)} <= {"WorkerLostError"}
    if stage.backend == stage.url:  # else what follows may be published again
        assert set(runs_of_the_living(stage, set()).values()) == {1}


# -- workers and servers ---------------------------------------------------------------------------


def test_compositions_whose_workers_are_killed_come_to_their_values(stage: Stage) -> None:
    workers = [stage.worker(concurrency=2, conf=LATE) for _ in range(2)]
    sent = send_all(stage, 1)
    time.sleep(0.2)
    workers[0].kill_all()
    stage.worker(concurrency=2, conf=LATE)
    workers[1].kill_all()
    wait_until(lambda: ended(stage, sent), 40, 0.1)
    values_are_right(stage, sent)


@pytest.fixture(params=["broker and results", "results only"])
def outage_stage(server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "broker and results":
        yield from staged(server.url(), tmp_path, request)
        return
    stage = Stage(request.getfixturevalue("rabbit_url"), tmp_path, server.url())
    try:
        yield stage
    finally:
        stage.close()


def test_compositions_whose_server_is_killed_come_to_their_values(
    server: RedisServer, outage_stage: Stage
) -> None:
    stage = outage_stage
    worker = stage.worker(concurrency=2, conf=LATE)
    sent = send_all(stage, 1)
    for _ in range(2):
        time.sleep(0.2)
        server.kill()
        time.sleep(0.3)
        worker.kill_child()
        server.start()
    wait_until(lambda: ended(stage, sent), 30, 0.1)
    values_are_right(stage, sent)


# -- what never comes ------------------------------------------------------------------------------


def test_a_chord_whose_part_never_arrives_fails_at_its_deadline(redis_stage: Stage) -> None:
    stage = redis_stage
    stage.app.conf.result_chord_deadline = 1.0
    stage.worker(concurrency=1, conf=LATE)
    compositions.add_tasks(stage.app, stage.path)
    say = stage.app.tasks["say"]
    lost = say.s().set(queue="nobody", task_id="lost")
    result = (chord([say.s(), lost], say.s()) | say.s()).apply_async()
    assert stage.wait_for([result, result.parent]) == {"FAILURE": 2}
    assert "Dependency lost has not ended in time" in str(result.result)


# -- large chords ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_chords_of_500_whose_children_are_killed_call_back_exactly_once(stage: Stage) -> None:
    chords_call_back_exactly_once(stage, number=20, parts=500)


def chords_call_back_exactly_once(stage: Stage, number: int, parts: int) -> int:
    """Send so many chords, one after the other, and kill children all the time; how many were killed."""
    worker = stage.worker(concurrency=3, conf=LATE)
    compositions.add_tasks(stage.app, stage.path)
    same, total, told = (stage.app.tasks[name] for name in ("same", "total", "told"))
    killer = Killer(stage, 3)
    results: list[AsyncResult[Any]] = []
    for at in range(number):
        body = total.s()
        body.link(told.s(of=f"chord{at}"))
        result = chord(group([same.s(n) for n in range(parts)], app=stage.app), body)()
        results.append(result)
        killer.rage(worker, 30.0, lambda result=result: result.ready())  # type: ignore[misc]
    assert stage.wait_for(results, 30) == {"SUCCESS": number}
    assert {result.result for result in results} == {sum(range(parts))}

    def callbacks() -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for trace in stage.traces("told"):
            found[trace.what].add(trace.detail)
        return found

    wait_until(lambda: len(callbacks()) == number, 10)
    wait_until(lambda: stage.app.broker.size("celery") == 0, 10)
    assert {name: len(ids) for name, ids in callbacks().items()} == {f"chord{at}": 1 for at in range(number)}
    return len(killer.killed)
