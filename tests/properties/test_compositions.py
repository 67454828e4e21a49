"""Random compositions come to what they are evaluated to by hand, wherever and however they are run.

``COMPOSITIONS=5000`` in the environment draws so many for each test, and others each time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from minicelery.exceptions import ChordError, NotRegistered, Reject
from minicelery.message import new_id
from tests.properties.compositions import Done, Evaluation, Node, any_failed, compositions, examples, value_of
from tests.properties.places import Place, all_of, check
from tests.servers import RedisServer

WELL = ("say", "say", "say", "say", "retried", "moved", "spread", "gathered")
BADLY = ("say", "say", "say", "say", "say", "retried", "gathered", "ignore", "fail", "reject", "unknown")
SEEDS = st.one_of(st.none(), *[st.integers(0, 2**32)] * 4)
"""Of the faults; None: there are none."""
LARGEST = 100_000
ENDED = ("SUCCESS", "FAILURE", "IGNORED")


@pytest.fixture(scope="module", params=["memory", "sqlite", "redis", "redis, sqlite", "memory, redis"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A broker, and after the comma the results' server where it is another."""

    def url(name: str) -> str:
        if name == "redis":
            server: RedisServer = request.getfixturevalue("redis_server")
            server.command("FLUSHALL")
            return server.url()
        return (
            f"memory://{new_id()}" if name == "memory" else f"sqlite:///{tmp_path_factory.mktemp('db')}/q.db"
        )

    place = Place(*map(url, request.param.split(", ")))
    yield place
    place.close()


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Thousands of failures that are meant say nothing."""
    logger = logging.getLogger("minicelery")
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(logging.NOTSET)


def evaluated(whole: Node, args: tuple[Any, ...] = ()) -> Evaluation:
    found = Evaluation.of(whole, args)
    if not found.failed() and found.end is not None:
        assume(len(repr(value_of(found.end))) < LARGEST)
    return found


def run(place: Place, whole: Node, args: tuple[Any, ...], seed: int | None) -> None:
    expected = evaluated(whole, args)
    note(f"expected: {expected.end}")
    library = place.library()
    result = library.made(whole).apply_async(args)
    place.drain(None if seed is None else random.Random(seed))
    check(result, expected.end)
    assert max(place.ended.values(), default=1) == 1
    for key, end in expected.linked.items():
        linked = place.app.AsyncResult(library.id(key))
        if end is None:
            assert linked.state == "PENDING", f"{key} was called"
        else:
            check(linked, end)
    open_ = [place.seen.get(one.id, "never sent") for one in all_of(result) if one.state not in ENDED]
    assert set(open_) <= {"ignore"}
    ended = place.app.backend.load(list(place.seen))
    left = {
        name for (id, name), found in zip(place.seen.items(), ended, strict=True)
        if found is None and name not in ("ignore", "minicelery.go_on")
    }  # fmt: skip
    assert not left
    assert not place.left_open()


@examples(60)
@given(compositions(5, WELL), st.lists(st.integers(0, 9), max_size=1).map(tuple), SEEDS)
def test_every_composition_comes_to_what_it_means(
    place: Place, whole: Node, args: tuple[Any, ...], seed: int | None
) -> None:
    run(place, whole, args, seed)


@examples(60)
@given(compositions(4, BADLY), SEEDS)
def test_compositions_with_calls_that_fail_end_and_say_so(
    place: Place, whole: Node, seed: int | None
) -> None:
    run(place, whole, (), seed)


@pytest.fixture(scope="module")
def at_once() -> Iterator[Place]:
    place = Place(f"memory://{new_id()}")
    yield place
    place.close()


@examples(100)
@given(compositions(5, WELL), st.booleans())
def test_run_at_once_a_composition_comes_to_the_same(at_once: Place, whole: Node, always: bool) -> None:
    expected = evaluated(whole)
    made = at_once.library().made(whole)
    at_once.app.conf.task_always_eager = always
    try:
        result = made.apply_async() if always else made.apply()
    finally:
        at_once.app.conf.task_always_eager = False
    if expected.end is None:
        assert result is None
    else:
        assert result.get() == value_of(expected.end)
        check(result, expected.end)


@examples(100)
@given(compositions(4, BADLY))
def test_run_at_once_a_composition_fails_where_one_of_its_calls_does(at_once: Place, whole: Node) -> None:
    expected = evaluated(whole)
    try:
        result = at_once.library().made(whole).apply()
        value = result and result.get()
    except (ValueError, Reject, NotRegistered, ChordError):
        assert any(kind in repr(whole) for kind in ("'fail'", "'reject'", "'unknown'"))
    else:
        # Nobody rejects a message where there is none: the call has no value, as in Celery.
        assert "'reject'" in repr(whole) or not any_failed(expected.end)
        if expected.end is not None and "'reject'" not in repr(whole):
            assert value == value_of(expected.end)


def test_what_is_drawn_is_of_all_kinds() -> None:
    """Else the other tests say nothing."""
    seen: dict[str, int] = {}

    @settings(
        max_examples=150,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(compositions(5, BADLY))
    def draw(whole: Node) -> None:
        text = repr(whole)
        for kind in (
            "Chain",
            "Group",
            "Chord",
            "Partial",
            "Linked",
            "Each",
            "ignore",
            "fail",
            "Group(members=())",
        ):
            seen[kind] = seen.get(kind, 0) + (kind in text)
        seen["large"] = seen.get("large", 0) + (text.count("Call(") > 10)
        seen["done"] = seen.get("done", 0) + isinstance(Evaluation.of(whole).end, Done)

    draw()
    assert min(seen.values()) > 5, seen
