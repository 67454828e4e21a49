"""Queues and exchanges of every kind on a real RabbitMQ, served by real workers."""

from __future__ import annotations

import time

import pytest

from minicelery import Celery
from minicelery.exceptions import OperationalError
from minicelery.routing import Broadcast, Exchange, Queue
from tests.rabbit import RabbitServer
from tests.waiting import wait_until
from tests.worker.harness import Stage


def test_a_topic_exchange_brings_a_task_to_every_queue_that_matches(rabbit_stage: Stage) -> None:
    news = Exchange("news", type="topic")
    stage = rabbit_stage
    stage.app.conf.task_queues = [
        Queue("all", news, routing_key="news.#"),
        Queue("sport", news, routing_key="news.sport"),
    ]
    stage.send("run", exchange="news", routing_key="news.sport")
    stage.send("run", exchange="news", routing_key="news.weather")
    assert (stage.app.broker.size("all"), stage.app.broker.size("sport")) == (2, 1)
    worker = stage.worker(queues="all,sport")
    wait_until(lambda: len(stage.ends()) == 2 and sum(stage.ends().values()) == 3)
    assert worker.poll() is None


def test_a_topic_delay_arrives_at_every_queue_that_matches(rabbit_stage: Stage) -> None:
    news = Exchange("news", type="topic")
    stage = rabbit_stage
    stage.app.conf.task_queues = [
        Queue("all", news, routing_key="news.#"),
        Queue("sport", news, routing_key="news.sport"),
    ]
    sent = time.time()
    stage.send("run", exchange="news", routing_key="news.sport", countdown=1.2)
    stage.worker(queues="all,sport")
    wait_until(lambda: sum(stage.ends().values()) == 2)
    assert all(trace.time - sent >= 1.2 for trace in stage.traces("start"))


def test_a_queue_with_a_hash_in_its_name_keeps_its_delays_to_itself(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    results = [stage.send("run", queue=queue, countdown=1.1) for queue in ("a", "b.a", "x.#", "*")]
    for queue, result in zip(("a", "b.a", "x.#", "*"), results, strict=True):
        stage.worker(queues=queue, concurrency=1, hostname=f"{len(stage.workers)}@test")
        assert stage.wait_for([result]) == {"SUCCESS": 1}
    assert set(stage.runs().values()) == {1}


def test_a_quorum_queue_serves_delays_retries_and_late_tasks(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    conf = {"task_default_queue_type": "quorum", "task_default_queue": "quorum"}
    stage.app.conf.update(conf)
    stage.worker(conf=conf)
    results = [stage.send("run", 0.01), stage.send("late_run", 0.01), stage.send("again", 2)]
    results.append(stage.send("run", 0.01, countdown=1.2))
    assert stage.wait_for(results) == {"SUCCESS": 4}


def test_a_killer_on_a_quorum_queue_ends_with_the_dead_letters(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    conf = {"task_default_queue_type": "quorum", "task_default_queue": "quorum"}
    stage.app.conf.update(conf)
    stage.worker(conf=conf)
    result = stage.send("late_die", "kill")
    assert stage.wait_for([result]) == {"FAILURE": 1}
    assert stage.runs()[result.id] == 3
    letters = wait_until(lambda: stage.app.broker.dead_letters("quorum"))
    assert [letter.id for letter in letters] == [result.id]


def test_a_rejected_task_goes_to_the_dead_letter_exchange_its_queue_names(rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    graves = Exchange("graves", type="direct")
    arguments = {"x-dead-letter-exchange": "graves", "x-dead-letter-routing-key": "grave"}
    queues = [Queue("graveyard", graves, routing_key="grave"), Queue("mortal", queue_arguments=arguments)]
    conf = {"task_queues": {
        "graveyard": {"exchange": "graves", "exchange_type": "direct", "routing_key": "grave"},
        "mortal": {"exchange": "mortal", "routing_key": "mortal", "queue_arguments": arguments},
    }}  # fmt: skip
    stage.app.conf.task_queues = queues
    stage.worker(queues="mortal", conf={**conf, "worker_unregistered_task": "dead-letter"})
    stage.send("run", exchange="graves", routing_key="grave")  # declares the graveyard
    stage.send("no.such.task", queue="mortal")
    wait_until(lambda: stage.app.broker.size("graveyard") == 2)
    assert stage.app.broker.dead_letters("mortal") == []


def test_a_broadcast_reaches_every_worker_once(rabbit_server: RabbitServer, rabbit_stage: Stage) -> None:
    stage = rabbit_stage
    for _ in range(2):
        stage.worker(broadcast="everybody", concurrency=2)
    vhost = stage.url.rpartition("/")[2]
    wait_until(lambda: rabbit_server.ctl("list_queues", "-p", vhost, "name", "-q").count("bcast.") == 2)
    stage.app.conf.task_queues = [Broadcast("everybody")]
    result = stage.send("run", queue="everybody")
    wait_until(lambda: stage.ends()[result.id] == 2)
    again = stage.send("run", queue="everybody")
    wait_until(lambda: stage.ends()[again.id] == 2)
    # One copy for each worker, not for each child.
    assert stage.runs() == {result.id: 2, again.id: 2}


def test_a_queue_made_with_other_arguments_is_an_error_in_words(rabbit_url: str) -> None:
    with Celery("one", broker=rabbit_url, set_as_current=False) as app:
        app.send_task("noop")
    with Celery("two", broker=rabbit_url, task_queue_max_priority=5, set_as_current=False) as app:
        with pytest.raises(OperationalError, match=r"other arguments.*'celery'.*make the\s+settings match"):
            app.send_task("noop")
        app.conf.task_queue_max_priority = None
        app.send_task("noop")
        assert app.broker.size("celery") == 2


def test_a_list_of_servers_is_gone_through_until_one_answers(
    rabbit_server: RabbitServer, rabbit_url: str
) -> None:
    urls = ["amqp://guest:s3cret@127.0.0.1:9", rabbit_url]
    with Celery("list", broker=urls, set_as_current=False) as app:
        app.send_task("noop")
        assert app.broker.size("celery") == 1
        assert "s3cret" not in app.broker.url
