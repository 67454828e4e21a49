"""Messages that RabbitMQ gives back, and what must not happen to them twice or for ever."""

from __future__ import annotations

import time
from collections import Counter

from minicelery.canvas import Signature
from minicelery.routing import Exchange, Queue
from tests.rabbit import RabbitServer
from tests.waiting import wait_until
from tests.worker.apps.tasks import told
from tests.worker.harness import Stage


def test_an_early_task_that_kills_its_whole_worker_runs_twice_at_most(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    killer, good = stage.send("die", "kill"), stage.send("run", 0.0)
    for _ in range(5):
        worker = stage.worker(pool="solo")
        wait_until(lambda worker=worker: worker.poll() is not None or stage.ends()[good.id])  # type: ignore[misc]
    assert stage.wait_for([good]) == {"SUCCESS": 1}
    assert 1 <= stage.runs()[killer.id] <= 2


def test_copies_in_two_queues_are_two_messages(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    news = Exchange("news", type="topic")
    stage.app.conf.task_queues = [Queue(name, news, routing_key="news.#") for name in ("left", "right")]
    sent = [stage.send("run", 0.03, exchange="news", routing_key="news.now") for _ in range(30)]
    stage.worker(queues="left,right")
    wait_until(lambda: sum(stage.ends().values()) == 60, timeout=20)
    assert Counter(stage.ends().values()) == {2: len(sent)}


def test_callbacks_are_sent_once_though_the_connection_was_lost_during_the_run(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    stage.worker()
    callback = Signature({"task": "run", "immutable": True})
    for pause in (0.0, 0.3, 1.0):
        told(stage.path).unlink(missing_ok=True)
        both = [stage.send(f"{kind}run_until_told", link=callback) for kind in ("", "late_")]
        wait_until(lambda both=both: {result.id for result in both} <= set(stage.runs()))  # type: ignore[misc]
        private_rabbit.close_connections()
        time.sleep(pause)
        stage.tell()
        assert stage.wait_for(both) == {"SUCCESS": 2}
    wait_until(lambda: len(stage.ends()) == 12)
    assert set(stage.ends().values()) == {1}


def test_other_tasks_go_on_while_the_server_takes_no_messages(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    first = stage.send("again", 1)
    results = stage.send_many("run", [(0.001,)] * 50)
    private_rabbit.raise_memory_alarm()
    try:
        stage.worker()
        assert stage.wait_for(results) == {"SUCCESS": 50}
        wait_until(lambda: stage.states([first]) == {"RETRY": 1})
    finally:
        private_rabbit.clear_memory_alarm()
    assert stage.wait_for([first]) == {"SUCCESS": 1}
    assert stage.runs()[first.id] == 2


def test_children_that_are_replaced_after_each_task_repeat_nothing_of_a_lost_connection(
    private_rabbit: RabbitServer, private_stage: Stage
) -> None:
    stage = private_stage
    stage.worker(max_tasks_per_child=1)
    results = stage.send_many("late_run", [(0.6,)] * 6)
    for started in (2, 4):
        wait_until(lambda started=started: len(stage.runs()) >= started)  # type: ignore[misc]
        private_rabbit.close_connections()
    assert stage.wait_for(results, timeout=20) == {"SUCCESS": 6}
    assert set(stage.runs().values()) == {1}


def test_slow_tasks_of_several_quorum_queues_count_no_deliveries(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    # Two deliveries more and the server would drop the message without a word.
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 2}
    names = [f"q{number}" for number in range(5)]
    queues = {name: {"exchange": name, "routing_key": name, "queue_arguments": arguments} for name in names}
    stage.app.conf.task_queues = queues
    results = [stage.send("run", 0.03, queue=name) for name in names for _ in range(12)]
    stage.worker(conf={"task_queues": queues}, concurrency=3)
    assert stage.wait_for(results, timeout=30) == {"SUCCESS": 60}
