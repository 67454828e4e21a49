"""One app used in a parent, in forked children and in many threads at once."""

from __future__ import annotations

import os
import threading
import traceback
import warnings
from collections import Counter
from pathlib import Path

import pytest

from minicelery import Celery
from tests.waiting import wait_until

CHILDREN, THREADS, EACH = 4, 8, 25


@pytest.fixture(params=["redis", "sqlite", "rabbit"])
def app(request: pytest.FixtureRequest) -> Celery:
    url = request.getfixturevalue(f"{request.param}_url")
    app = Celery("producers", broker=url, set_as_current=False)
    app.task(name="note")(lambda name: None)
    return app


def send_from_threads(app: Celery, who: str) -> list[BaseException]:
    """Send `EACH` messages from each of `THREADS` threads; what went wrong."""
    errors: list[BaseException] = []

    def send(thread: int) -> None:
        try:
            for number in range(EACH):
                app.send_task("note", (f"{who}-{thread}-{number}",))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return errors


def fork_and_send(app: Celery, who: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking with threads is the point
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        errors = send_from_threads(app, who)
        for error in errors:
            traceback.print_exception(error)
        code = len(errors)
    finally:
        os._exit(code)


def test_every_message_of_parent_children_and_threads_arrives_once(app: Celery) -> None:
    app.send_task("note", ("first",))  # the connection that the children inherit
    parent = threading.Thread(target=send_from_threads, args=(app, "parent"))
    parent.start()
    pids = [fork_and_send(app, f"child{number}") for number in range(CHILDREN)]
    parent.join(30)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * CHILDREN
    consumer = app.broker.consumer(["celery"], "reader", None)
    sent = 1 + (1 + CHILDREN) * THREADS * EACH
    arrived: Counter[bytes] = Counter()
    while fetched := consumer.swap((), 64, 15.0 if len(arrived) < sent else 0.2):
        arrived.update(delivery.message.body for delivery in fetched)
    consumer.close()
    assert len(arrived) == sent
    assert set(arrived.values()) == {1}
    app.close()


def test_connections_are_bounded_by_the_pool_limit(redis_url: str) -> None:
    import redis

    app = Celery("bounded", broker=redis_url, broker_pool_limit=3, set_as_current=False)
    app.task(name="note")(lambda name: None)
    with redis.Redis.from_url(redis_url) as client:

        def ours() -> int:
            return sum(1 for one in client.client_list() if one["name"] == "bounded")

        app.conf.broker_transport_options = {"client_name": "bounded"}
        assert send_from_threads(app, "parent") == []
        assert 1 <= ours() <= 3
        app.close()
        wait_until(lambda: ours() == 0)


def test_an_app_sends_again_after_close(sqlite_url: str, tmp_path: Path) -> None:
    app = Celery("again", broker=sqlite_url, set_as_current=False)
    app.send_task("note", ("one",))
    app.close()
    app.send_task("note", ("two",))
    assert app.broker.size("celery") == 2
    app.close()
