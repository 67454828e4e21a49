"""A RabbitMQ that dies and comes back while a worker works, and connections that live long."""

from __future__ import annotations

import threading
import time

import pytest

from minicelery.exceptions import OperationalError
from tests.faults.test_amqp_streams import break_stream
from tests.rabbit import RabbitServer
from tests.waiting import wait_until
from tests.worker.harness import Stage, kill_repeatedly, undisturbed

TASKS = 5000


class Producer(threading.Thread):
    """Sends tasks until it has sent its number; tries again while the server is away."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(daemon=True)
        self.stage = stage
        self.number = number
        self.sent: list[str] = []

    def run(self) -> None:
        for n in range(self.number):
            id = f"{self.name}-{n}"
            end = time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    self.stage.send("late_run", 0.001, task_id=id)
                    break
                except OperationalError:
                    time.sleep(0.05)
            self.sent.append(id)


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_nothing_is_lost_when_the_server_is_killed_among_thousands_of_tasks(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    worker = stage.worker(concurrency=2)
    producers = [Producer(stage, TASKS // 4) for _ in range(4)]
    for producer in producers:
        producer.start()
    gaps = []
    for share in (0.2, 0.5):
        wait_until(lambda share=share: len(stage.ends()) > TASKS * share, timeout=60)  # type: ignore[misc]
        private_rabbit.kill()
        private_rabbit.restart()
        back, ended = time.monotonic(), len(stage.traces("end"))
        wait_until(lambda ended=ended: len(stage.traces("end")) > ended, timeout=10)  # type: ignore[misc]
        gaps.append(time.monotonic() - back)
    for producer in producers:
        producer.join(60)
    sent = [id for producer in producers for id in producer.sent]
    assert len(sent) == TASKS
    results = [stage.app.AsyncResult(id) for id in sent]
    assert stage.wait_for(results, timeout=60) == {"SUCCESS": TASKS}
    assert min(gaps) < 3
    # Only what was being delivered, or being published, when the server died may run twice.
    repeated = [id for id, runs in stage.runs().items() if runs > 1]
    assert len(repeated) <= 2 * 2 + 2 * len(producers)
    assert worker.poll() is None


def test_tasks_that_run_through_a_whole_outage_run_once(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    stage.worker(concurrency=3)
    results = [stage.send("late_run", 6.0), stage.send("run", 6.0), stage.send("late_run", 1.0)]
    wait_until(lambda: len(stage.runs()) == 3)
    time.sleep(0.2)
    private_rabbit.kill()
    wait_until(lambda: stage.ends())
    private_rabbit.restart()
    results.append(stage.send("run", 0.0))
    assert stage.wait_for(results) == {"SUCCESS": 4}
    assert set(stage.runs().values()) == {1}
    wait_until(lambda: stage.app.broker.size("celery") == 0)


def test_a_task_that_runs_for_many_heartbeats_is_acknowledged_once(private_stage: Stage) -> None:
    stage = private_stage
    # Ten minutes at a heartbeat of a minute, at the same ratio.
    worker = stage.worker(concurrency=1, conf={"broker_heartbeat": 1})

    def keeps_its_connection() -> bool:
        """The server closes that of a client from which nothing comes for two seconds."""
        before = len(worker.output())
        results = [stage.send("late_run", 10.0), stage.send("run", 0.0)]
        assert stage.wait_for(results) == {"SUCCESS": 2}
        assert [stage.runs()[result.id] for result in results] == [1, 1]
        return "trying again" not in worker.output()[before:]

    assert undisturbed(0.5, keeps_its_connection)
    worker.term()
    worker.wait()
    wait_until(lambda: stage.app.broker.size("celery") == 0)


def test_connections_that_are_closed_again_and_again_lose_nothing(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    stage.worker(concurrency=2)
    results = stage.send_many("late_run", [(0.005,)] * 600)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        private_rabbit.close_connections()
        time.sleep(0.3)
    assert stage.wait_for(results, timeout=30) == {"SUCCESS": 600}


def test_a_worker_that_starts_before_its_server_begins_to_work_when_it_comes(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    private_rabbit.kill()
    stage.worker()
    private_rabbit.restart()
    assert stage.wait_for([stage.send("run", 0.0)]) == {"SUCCESS": 1}


@pytest.mark.parametrize("how", ["half made", "node down"])
def test_a_stream_that_a_crash_of_the_server_has_broken_keeps_no_worker_from_its_work(
    private_rabbit: RabbitServer, private_stage: Stage, how: str
) -> None:
    stage = private_stage
    stage.app.broker.remember("revoked", "old", 60.0)
    time.sleep(1.0)  # the server writes down once more what it has just made
    break_stream(private_rabbit, how)
    worker = stage.worker(concurrency=1)
    killer, good = stage.send("late_die", "kill"), stage.send("run", 0.0)
    assert stage.wait_for([killer, good]) == {"FAILURE": 1, "SUCCESS": 1}
    assert stage.runs()[killer.id] == 3
    worker.says("Revoked tasks may run")


def test_what_a_child_had_finished_when_it_was_killed_during_an_outage_is_settled_after_it(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    worker = stage.worker(concurrency=1)
    result = stage.send("run", 0.5)
    wait_until(lambda: stage.runs()[result.id])
    private_rabbit.kill()
    wait_until(lambda: stage.ends()[result.id])
    wait_until(lambda: "trying again" in worker.output())
    worker.kill_child()
    private_rabbit.restart()
    assert stage.wait_for([result]) == {"SUCCESS": 1}
    assert stage.runs()[result.id] == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_late_tasks_survive_their_whole_workers_being_killed(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    results = stage.send_many("late_run", [(0.01,)] * 600)
    for _ in range(3):
        worker = stage.worker(concurrency=2)
        done = len(stage.ends())
        wait_until(lambda done=done: len(stage.ends()) > min(done + 50, 599))  # type: ignore[misc]
        worker.kill_all()
    stage.worker(concurrency=2)
    assert stage.wait_for(results, timeout=30) == {"SUCCESS": 600}


def test_a_message_that_kills_two_workers_children_ends_as_a_failure(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    stage.worker(concurrency=1)
    stage.worker(concurrency=1)
    result = stage.send("late_die", "kill")
    others = [stage.send("run", 0.01) for _ in range(20)]
    assert stage.wait_for([result, *others], timeout=30) == {"FAILURE": 1, "SUCCESS": 20}
    assert stage.runs()[result.id] <= 2 * 3
    letters = wait_until(lambda: stage.app.broker.dead_letters("celery"))
    assert [letter.id for letter in letters] == [result.id]


def test_children_killed_at_random_repeat_no_early_task(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    worker = stage.worker(concurrency=2)
    results = stage.send_many("run", [(0.01,)] * 300)

    def over(killed: int) -> bool:
        return set(stage.states(results)) <= {"SUCCESS", "FAILURE"} or killed > 100

    kill_repeatedly(worker, 0.2, over, lambda children: children[0])
    stage.wait_for(results)
    assert max(stage.runs().values()) == 1
