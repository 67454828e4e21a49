"""What compositions come to that can't come to their value, on every kind of servers: defined, and soon."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicelery import Celery, chain, chord, group
from minicelery.exceptions import ChordError, ImproperlyConfigured, TaskRevokedError
from minicelery.message import (
    BODY_HEADER,
    COPY_HEADER,
    PART_HEADER,
    Delivery,
    Message,
    encode_body,
    new_id,
)
from tests.properties.compositions import examples
from tests.properties.places import Place
from tests.servers import RedisServer


@pytest.fixture(params=["memory", "sqlite", "redis", "redis, sqlite", "memory, redis"])
def place(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Place]:
    """A broker, and after the comma the results' server where it is another."""

    def url(name: str) -> str:
        if name == "redis":
            server: RedisServer = request.getfixturevalue("redis_server")
            server.command("FLUSHALL")
            return server.url()
        return f"memory://{new_id()}" if name == "memory" else f"sqlite:///{tmp_path}/q.db"

    place = Place(*map(url, request.param.split(", ")))
    yield place
    place.close()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("minicelery")
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(logging.NOTSET)


def say(place: Place, *args: Any, **options: Any) -> Any:
    return place.app.signature("say", args, {"name": "say"}, **options)


def fail(place: Place) -> Any:
    return place.app.signature("fail", (), {"name": "no"})


def state_of(place: Place, id: str) -> str:
    return str(place.app.AsyncResult(id).state)


def due_to(place: Place, error: Any, id: str, words: str) -> None:
    """That it is the ChordError of the part `id`."""
    assert isinstance(error, ChordError)
    assert f"Dependency {id} " in str(error) and words in str(error), error


# -- parts -----------------------------------------------------------------------------------------


def test_a_failed_part_fails_the_body_once_and_all_that_follows(place: Place) -> None:
    body = say(place).on_error(place.app.signature("heard", (), {"key": "body"}).set(task_id=new_id()))
    bad = fail(place).set(task_id=new_id())
    whole = chord([say(place, 1), bad, say(place, 2)], body) | say(place) | say(place)
    result = whole.apply_async()
    runs: list[str] = []
    run = place.executor.run
    place.executor.run = lambda delivery: runs.append(delivery.message.id) or run(delivery)  # type: ignore
    place.drain()
    due_to(place, result.result, bad.id, "raised ValueError('no')")
    assert [result.state, result.parent.state, result.parent.parent.state] == ["FAILURE"] * 3
    header = result.parent.parent.parent
    assert [one.state for one in header.results] == ["SUCCESS", "FAILURE", "SUCCESS"]
    (errback,) = body.options["link_error"]
    assert runs.count(errback["options"]["task_id"]) == 1
    assert place.app.AsyncResult(errback["options"]["task_id"]).state == "SUCCESS"
    with pytest.raises(ValueError, match="no"):
        result.get(timeout=1)
    with pytest.raises(ChordError):
        result.get(timeout=1, follow_parents=False)


def test_a_part_that_retries_too_often_fails_the_body(place: Place) -> None:
    @place.app.task(name="tries", bind=True, max_retries=2)
    def tries(self: Any) -> None:
        raise self.retry(exc=KeyError("again"), countdown=0)

    result = chord([say(place), tries.s()], say(place))()
    place.drain(random.Random(1))
    assert result.state == "FAILURE" and "KeyError('again')" in str(result.result)


def test_parts_and_bodies_that_are_revoked(place: Place) -> None:
    part = say(place, 1).set(task_id=new_id())
    result = chord([part, say(place, 2)], say(place)).apply_async()
    whole = (chord([say(place, 1)], say(place)) | say(place)).apply_async()
    place.app.control.revoke([part.id, whole.parent.id])
    place.drain(random.Random(2))
    assert state_of(place, part.id) == "REVOKED"
    due_to(place, result.result, part.id, "TaskRevokedError('revoked')")
    assert (whole.parent.state, whole.state) == ("REVOKED", "FAILURE")
    assert isinstance(whole.result, TaskRevokedError)


def test_a_part_that_has_expired_fails_the_body(place: Place) -> None:
    part = say(place, 1).set(task_id=new_id(), expires=0.01)
    result = chord([part, say(place, 2)], say(place)).apply_async()
    time.sleep(0.02)
    place.drain()
    due_to(place, result.result, part.id, "TaskRevokedError('expired')")


@pytest.mark.parametrize("kind", ["reject", "unknown"])
def test_a_part_that_is_rejected_or_not_registered_fails_the_body(place: Place, kind: str) -> None:
    part = place.app.signature(kind, (), {"name": "x"}).set(task_id=new_id())
    result = chord([part, say(place)], say(place)).apply_async()
    place.drain(random.Random(3))
    due_to(place, result.result, part.id, "raised")
    assert place.app.broker.dead("celery") >= (kind == "reject")


def test_a_body_that_is_not_registered_fails_and_what_follows_too(place: Place) -> None:
    result = (chord([say(place)], place.app.signature("unknown")) | say(place)).apply_async()
    place.drain(random.Random(4))
    assert (result.parent.state, result.state) == ("FAILURE", "FAILURE")
    assert type(result.result).__name__ == type(result.parent.result).__name__ == "NotRegistered"


def test_parts_that_never_arrive_are_waited_for_until_the_deadline(place: Place) -> None:
    place.app.conf.result_chord_deadline = 20_000
    lost = say(place).set(task_id=new_id(), queue="nobody")
    result = (chord([say(place), lost], say(place)) | say(place)).apply_async()
    place.drain()  # looks 5000 seconds ahead
    assert (result.parent.state, result.state) == ("PENDING", "PENDING")
    backend: Any = place.app.backend
    place.app.broker.publish(backend.owed_groups(time.time() + 20_001.0, place.app.broker.place))
    place.drain()
    due_to(place, result.parent.result, lost.id, "has not ended in time")
    assert result.state == "FAILURE"
    # Should it arrive all the same, nothing begins anew.
    late = place.app.broker.consumer(["nobody"], new_id(), place.app.backend)
    (delivery,) = late.swap([], 1, 1.0)
    late.swap([place.executor.run(delivery)], 0, 0.0)
    late.close()
    place.drain()
    assert place.seen == {}
    assert state_of(place, lost.id) == "SUCCESS"


def test_results_that_have_expired_before_the_body_begins(place: Place) -> None:
    part = say(place, 1).set(task_id=new_id())
    result = chord([part, say(place, 2)], say(place)).apply_async()
    forget_before(place, "body", lambda: place.app.backend.forget([part.id]), result.id)
    place.drain()
    due_to(place, result.result, part.id, "its result has expired")


def forget_before(place: Place, _: str, forget: Any, id: str) -> None:
    """Have `forget` called when the body `id` is about to begin."""
    begin = place.executor.begin

    def begun(delivery: Delivery) -> Any:
        if delivery.message.id == id:
            forget()
        return begin(delivery)

    place.executor.begin = begun  # type: ignore[method-assign]


# -- forms -----------------------------------------------------------------------------------------


def test_generators_are_as_good_as_lists(place: Place) -> None:
    def parts() -> Iterator[Any]:
        yield from (say(place, n) for n in range(3))

    whole = [
        (chord(parts(), say(place)), ["say", [["say", n] for n in range(3)]]),
        (chord(parts())(say(place)), ["say", [["say", n] for n in range(3)]]),
        (group(parts()), [["say", n] for n in range(3)]),
        (chain(parts()), ["say", ["say", ["say", 0], 1], 2]),
    ]
    results = [one.apply_async() if hasattr(one, "apply_async") else one for one, _ in whole]
    place.drain()
    assert [result.get(timeout=1) for result in results] == [value for _, value in whole]


@pytest.mark.parametrize("what", ["a header", "a body", "a part", "a member", "a link of a chain"])
def test_what_is_no_signature_is_refused_at_once(what: str) -> None:
    app = Celery("forms", broker=f"memory://{new_id()}", set_as_current=False)
    task = app.task(lambda: 1, name="t")
    sig = task.s()
    with pytest.raises((ImproperlyConfigured, TypeError)) as refused:
        {
            "a header": lambda: chord(5, sig),
            "a body": lambda: chord([sig], task),
            "a part": lambda: chord([sig, task], sig),
            "a member": lambda: group(sig, "t"),
            "a link of a chain": lambda: chain(sig, None),
        }[what]()
    assert any(word in str(refused.value) for word in ("signature", "body")), refused.value
    app.close()


@pytest.mark.parametrize(
    ("broker", "backend", "named"),
    [
        ("memory://", None, "no result_backend"),
        ("amqp://guest:secret@127.0.0.1:1//", "rpc://", "rpc://"),
    ],
)
def test_a_chord_that_can_not_be_counted_is_refused_before_anything_is_sent(
    broker: str, backend: str | None, named: str
) -> None:
    app = Celery("refused", broker=broker, backend=backend, set_as_current=False)
    task = app.task(lambda *args: 1, name="t")
    with pytest.raises(ImproperlyConfigured) as refused:
        chord([task.s(), task.s()], task.s()).apply_async()
    for word in (named, "redis://", "sqlite:///", "result_backend"):
        assert word in str(refused.value)
    assert "secret" not in str(refused.value)
    app.close()


# -- what others have put on the queue -------------------------------------------------------------

WORDS = st.sampled_from(
    ["task", "args", "kwargs", "options", "subtask_type", "immutable", "chord", "group", "chain", "tasks", "header",
     "body", "say", "unknown", "celery.chord", "celery.group", "celery.chain", "celery.map", "task_id", "link",
     "link_error", "headers", PART_HEADER, BODY_HEADER, COPY_HEADER, "queue", "countdown", "eta", "expires",
     "minicelery.go_on", "it", "n", "priority", "serializer", "group_id", "chunk_size", "", "\u0000"]
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2**40), st.floats(allow_nan=False), WORDS)


def _signatures(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is nearly a signature."""
    names = st.sampled_from(
        ["say", "celery.chord", "celery.chain", "celery.group", "minicelery.go_on", "celery.map"]
    )
    kinds = st.sampled_from([None, "chord", "chain", "group", "unknown"])
    lists = st.lists(parts, max_size=3)
    held = st.one_of(
        st.fixed_dictionaries(
            {}, optional={"tasks": lists, "header": st.one_of(lists, parts), "body": parts}
        ),
        st.dictionaries(WORDS, parts, max_size=3),
    )
    sound = st.fixed_dictionaries(
        {"task": names}, optional={"args": lists, "kwargs": held, "options": st.dictionaries(WORDS, parts, max_size=3),
                                   "subtask_type": kinds, "immutable": st.booleans()},
    )  # fmt: skip
    return sound


JUNK = st.recursive(
    SCALARS,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.dictionaries(WORDS, parts, max_size=3),
        _signatures(parts),
        _signatures(parts),
    ),
    max_leaves=15,
)


@pytest.fixture(scope="module", params=["memory", "sqlite", "redis"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place that is used again and again."""
    url = {"memory": f"memory://{new_id()}", "sqlite": f"sqlite:///{tmp_path_factory.mktemp('db')}/q.db"}
    server: RedisServer | None = request.getfixturevalue("redis_server") if request.param == "redis" else None
    place = Place(server.url(1) if server else url[request.param])
    yield place
    place.close()


@examples(60)
@given(
    st.sampled_from(["callbacks", "errbacks", "chain", "chord"]),
    JUNK,
    st.sampled_from(["say", "fail", "ignore"]),
)
def test_no_links_of_a_message_break_its_worker(target: Place, key: str, junk: Any, task: str) -> None:
    run_forged(
        target, task, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None, key: junk}
    )


@examples(30)
@given(
    st.sampled_from(["celery.map", "celery.starmap", "celery.chunks", "celery.accumulate", "minicelery.go_on"]),
    JUNK, st.sampled_from([None, "task", "it", "n"]),
)  # fmt: skip
def test_no_arguments_of_a_built_in_task_break_its_worker(
    target: Place, task: str, junk: Any, key: str | None
) -> None:
    embed = {"callbacks": None, "errbacks": None, "chain": [junk] if key is None else None, "chord": None}
    run_forged(
        target, task, {"task": {"task": "say"}, "it": [1], "n": 1} | ({key: junk} if key else {}), embed
    )


def run_forged(place: Place, task: str, kwargs: Any, embed: Any) -> None:
    """Have a worker run a message as nobody's library would send it: it ends, and is settled."""
    links = (embed["callbacks"], embed["errbacks"], embed["chain"], embed["chord"])
    body, content_type, content_encoding = encode_body([], kwargs, "json", links)
    headers = {"lang": "py", "task": task, "id": new_id()}
    broker = place.app.broker
    broker.publish(
        [
            Message(
                headers["id"],
                task,
                body,
                headers,
                content_type=content_type,
                content_encoding=content_encoding,
            )
        ]
    )
    (delivery,) = place.consumer.swap([], 1, 1.0)
    outcome = place.executor.run(delivery)
    assert "internal error" not in (outcome.reason or "")
    place.consumer.swap([outcome], 0, 0.0)
    assert place.consumer.swap([deepcopy(outcome)], 0, 0.0) == []
    broker.purge("celery")


@pytest.mark.parametrize("header", [PART_HEADER, BODY_HEADER])
@pytest.mark.parametrize("value", [5, ["x"], {"a": 1}, None, "", "unknown", "\u0000", "x" * 10_000])
def test_forged_headers_change_nothing_for_others(place: Place, header: str, value: Any) -> None:
    result = chord([say(place, 1), say(place, 2)], say(place)).apply_async()
    forged = place.app.send_task("say", headers={header: value})
    place.drain(random.Random(5))
    assert forged.state in ("SUCCESS", "FAILURE")
    assert result.state == "SUCCESS"


def test_what_is_no_part_of_a_group_does_not_count_in_it(place: Place) -> None:
    result = chord([say(place, 1), say(place, 2)], say(place)).apply_async()
    (gid,) = {delivery_headers(place)[PART_HEADER]}
    strangers = [place.app.send_task("say", headers={PART_HEADER: gid}) for _ in range(3)]
    bad = place.app.send_task("fail", headers={PART_HEADER: gid}, kwargs={"name": "no"}, priority=0)
    place.drain(random.Random(6))
    assert {one.state for one in strangers} == {"SUCCESS"} and bad.state == "FAILURE"
    assert result.state == "SUCCESS"
    assert result.result == ["say", [["say", 1], ["say", 2]]]


def delivery_headers(place: Place) -> dict[str, Any]:
    """The headers of the first message on the queue, which stays there."""
    consumer = place.app.broker.consumer(["celery"], new_id(), place.app.backend)
    (delivery,) = consumer.swap([], 1, 1.0)
    found = deepcopy(delivery.message.headers)
    consumer.close()
    return found


def test_a_forged_body_is_not_called_before_its_time_and_the_true_one_is(place: Place) -> None:
    result = chord([say(place, 1), say(place, 2)], say(place)).apply_async()
    gid = delivery_headers(place)[PART_HEADER]
    forged = place.app.send_task("say", headers={BODY_HEADER: gid}, priority=0)
    consumer = place.app.broker.consumer(["celery"], new_id(), place.app.backend)
    deliveries = {one.message.id: one for one in consumer.swap([], 10, 1.0)}
    consumer.swap([place.executor.run(deliveries[forged.id])], 0, 0.0)
    consumer.close()
    assert forged.state == "FAILURE"
    place.drain(random.Random(7))
    assert result.result == ["say", [["say", 1], ["say", 2]]]
