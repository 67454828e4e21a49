"""Results of many calls: sets, and groups that can be saved."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minicelery import Celery
from minicelery.exceptions import BackendGetMetaError, ContentDisallowed, ImproperlyConfigured, TimeoutError
from minicelery.groups import EagerGroupResult, GroupResult, ResultSet
from minicelery.hearing import Inbox
from minicelery.result import AsyncResult, EagerResult, allow_join_result, denied_join_result
from tests.servers import RedisServer
from tests.unit.answering import Site, opened, soon
from tests.waiting import wait_until

WAYS = ("get", "join", "join_native", "aget")
KEEPERS = ("memory", "sqlite", "redis")


@pytest.fixture(params=["memory", "sqlite", "redis", "rpc"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request, request.param)


@pytest.fixture(params=["memory", "redis"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request, request.param)


@pytest.fixture(params=KEEPERS)
def keeper(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request, request.param)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request, "memory")


def some(site: Site, count: int = 3) -> list[AsyncResult[Any]]:
    return [site.result() for _ in range(count)]


def wait_for(results: ResultSet, way: str, **options: Any) -> list[Any]:
    if way == "aget":
        return asyncio.run(asyncio.wait_for(results.aget(**options), 20))
    found: list[Any] = getattr(results, way)(**options)
    return found


# -- the set ---------------------------------------------------------------------------------


def test_a_set_has_each_result_once_and_in_order(memory: Site) -> None:
    a, b, c = some(memory)
    results = memory.app.ResultSet([a, b, a])
    results.add(c)
    results.add(b)
    results.update([c, a])
    assert (list(results), len(results), results[1], c in results) == ([a, b, c], 3, b, True)
    results.remove(b)
    results.remove(a.id)
    results.discard("not there")
    results.discard(c)
    assert (list(results), bool(results)) == ([], False)
    with pytest.raises(KeyError):
        results.remove(a)
    results.update([a, b])
    results.clear()
    assert len(results) == 0


def test_an_id_is_not_a_result(memory: Site) -> None:
    with pytest.raises(TypeError, match=r"takes results, got 'an-id'; app\.AsyncResult"):
        memory.app.ResultSet(["an-id"])


def test_sets_are_equal_where_their_results_are(memory: Site) -> None:
    a, b, _ = some(memory)
    assert memory.app.ResultSet([a, b]) == ResultSet([a, b]) != ResultSet([b, a])
    assert memory.app.GroupResult("id", [a]) == GroupResult("id", [a]) != GroupResult("id", [b])
    assert hash(ResultSet([a])) == hash(ResultSet([a])) and GroupResult("id", [a]) == "id"


def test_an_empty_set_is_ready_at_once(memory: Site) -> None:
    results = memory.app.ResultSet([])
    assert [wait_for(results, way) for way in WAYS] == [[], [], [], []]
    state = (results.ready(), results.successful(), results.failed(), results.waiting())
    assert (state, results.completed_count()) == ((True, True, False, False), 0)


def test_the_state_of_a_set_is_that_of_its_results(anywhere: Site) -> None:
    a, b, c = some(anywhere)
    results = anywhere.app.ResultSet([a, b, c])
    assert (results.ready(), results.waiting(), results.completed_count()) == (False, True, 0)
    anywhere.answer(a)
    anywhere.answer(b, state="STARTED")
    wait_until(lambda: results.completed_count() == 1)
    assert (results.ready(), results.successful(), results.failed()) == (False, False, False)
    results.maybe_throw()
    anywhere.fail(b, ValueError("bad"))
    wait_until(results.failed)
    assert (results.ready(), results.completed_count()) == (False, 1)
    anywhere.answer(c, state="REVOKED")
    wait_until(results.ready)
    assert (results.waiting(), results.successful(), results.failed()) == (False, False, True)
    with pytest.raises(ValueError, match="bad"):
        results.maybe_throw()
    heard: list[Any] = []
    results.maybe_reraise(propagate=False, callback=lambda id, value: heard.append((id, str(value))))
    assert heard == [(a.id, "4"), (b.id, "bad"), (c.id, "4")]


def test_a_group_in_a_group_counts_as_one(memory: Site) -> None:
    a, b, c = some(memory)
    results = memory.app.GroupResult("outer", [a, GroupResult("inner", [b, c], app=memory.app)])
    for one in (a, b):
        memory.answer(one)
    assert (results.completed_count(), results.ready()) == (1, False)
    memory.answer(c)
    assert (results.completed_count(), results.ready()) == (2, True)


# -- waiting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_values_come_in_order(anywhere: Site, way: str) -> None:
    a, b, c = some(anywhere)
    results = anywhere.app.ResultSet([a, GroupResult("inner", [b], app=anywhere.app), c])
    anywhere.answer(c, 3)
    soon(lambda: [anywhere.answer(b, 2), anywhere.answer(a, 1)])
    assert wait_for(results, way, timeout=10) == [1, [2], 3]
    assert wait_for(results, way) == [1, [2], 3]  # and are known now


@pytest.mark.parametrize("way", WAYS)
def test_the_first_failure_is_raised_at_once_or_all_are_returned(site: Site, way: str) -> None:
    a, b, c = some(site)
    results = site.app.ResultSet([a, b, c])
    soon(lambda: site.fail(b, ValueError("bad")))
    with pytest.raises(ValueError, match="bad"):
        wait_for(results, way, timeout=10)
    site.answer(a, 1)
    site.answer(c, 3)
    one, error, three = wait_for(results, way, timeout=10, propagate=False)
    assert (one, str(error), three) == (1, "bad", 3)
    with pytest.raises(ValueError, match="bad"):
        wait_for(results, way)


@pytest.mark.parametrize("way", WAYS)
def test_all_together_have_the_timeout(site: Site, way: str) -> None:
    a, b, c = some(site)
    site.answer(a)
    results = site.app.ResultSet([a, b, c])
    wait_until(a.ready)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"2 of 2 tasks were not done within 0\.2 s"):
        wait_for(results, way, timeout=0.2)
    assert time.monotonic() - began < 5
    with pytest.raises(TimeoutError, match="2 of 2 tasks were not done within 0 s"):
        wait_for(results, way, timeout=0)
    site.fail(b, ValueError("bad"))
    wait_until(b.ready)
    with pytest.raises(ValueError, match="bad"):
        wait_for(site.app.ResultSet([c, site.app.AsyncResult(b.id)]), way, timeout=0)


def test_values_that_are_there_need_no_time(site: Site) -> None:
    results = site.app.ResultSet(some(site))
    for one in results:
        site.answer(one, 5)
    wait_until(results.ready)
    assert [wait_for(results, way, timeout=0) for way in WAYS] == [[5, 5, 5]] * 4


@pytest.mark.parametrize("way", WAYS)
def test_callbacks_are_called_as_results_come_by_join_in_order(site: Site, way: str) -> None:
    a, b, c = some(site)
    inner = GroupResult("inner", [b, c], app=site.app)
    called: list[Any] = []

    def call(id: str, value: Any) -> None:
        called.append((id, value))
        site.answer(a, 1)  # not before it has been called, where it is called at once

    site.answer(c, 3)
    site.answer(b, 2)
    if way == "join":
        site.answer(a, 1)
    values = wait_for(site.app.ResultSet([a, inner]), way, timeout=10, callback=call)
    assert values == [1, [2, 3]]
    in_order = [(a.id, 1), ("inner", [2, 3])]
    assert called == (in_order if way == "join" else in_order[::-1])


@pytest.mark.parametrize("way", WAYS)
def test_messages_and_intervals_are_heard_of(site: Site, way: str) -> None:
    a, b, _ = some(site)
    states: list[str] = []
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.monotonic() - began)
        if len(ticks) == 2:
            site.answer(a, state="STARTED")
        if len(ticks) == 4:
            site.answer(a)
            site.answer(b)

    began = time.monotonic()
    values = wait_for(
        site.app.ResultSet([a, b]), way, timeout=20, interval=0.03, on_interval=tick,
        on_message=lambda meta: states.append(meta["status"]),
    )  # fmt: skip
    assert (values, states, len(ticks) >= 4) == ([4, 4], ["STARTED", "SUCCESS", "SUCCESS"], True)
    assert all(at >= 0.03 * number - 0.005 for number, at in enumerate(ticks, start=1))


@pytest.mark.parametrize("way", WAYS)
def test_what_a_step_before_the_group_failed_with_is_raised_first(memory: Site, way: str) -> None:
    first, own, member = some(memory)
    member.parent = own
    group = memory.app.GroupResult("group", [member], first)
    memory.fail(member, KeyError("own"))
    memory.fail(own, OSError("of the member's chain"))
    with pytest.raises(OSError, match="of the member's chain"):
        wait_for(group, way, timeout=20)
    memory.fail(first, ValueError("first"))
    with pytest.raises(ValueError, match="first"):
        wait_for(group, way, timeout=20)
    with pytest.raises(KeyError, match="own"):
        wait_for(group, way, timeout=20, follow_parents=False)


@pytest.mark.parametrize("way", WAYS)
def test_ignored_and_repeated_results_hold_nobody_up(memory: Site, way: str) -> None:
    a, ignored, _ = some(memory)
    ignored.ignored = True
    again = memory.app.AsyncResult(a.id)
    memory.answer(a, 7)
    group = memory.app.GroupResult("group", [a, ignored, again, a])
    assert wait_for(group, way, timeout=20) == [7, None, 7, 7]
    assert group.ready()


def test_iter_native_tells_of_each_as_it_ends(anywhere: Site) -> None:
    a, b, c = some(anywhere)
    inner = GroupResult("inner", [b], app=anywhere.app)
    anywhere.answer(c, 3)
    wait_until(c.ready)
    found = anywhere.app.ResultSet([a, inner, c]).iter_native(timeout=10)
    id, meta = next(found)
    assert (id, meta["status"], meta["result"]) == (c.id, "SUCCESS", 3)
    anywhere.answer(b, 2)
    assert next(found) == ("inner", [b])
    anywhere.fail(a, ValueError("bad"))
    id, meta = next(found)
    assert (id, meta["status"], str(meta["result"])) == (a.id, "FAILURE", "bad")
    assert list(found) == []


def test_iter_native_has_a_timeout_too(memory: Site) -> None:
    with pytest.raises(TimeoutError):
        list(memory.app.ResultSet(some(memory)).iter_native(timeout=0.05))


def test_groups_are_not_waited_for_inside_of_a_task_unless_it_is_allowed(memory: Site) -> None:
    a, b, _ = some(memory)
    for one in (a, b):
        memory.answer(one)
    group = memory.app.GroupResult("group", [a, b])
    with denied_join_result():
        for way in WAYS:
            with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task"):
                wait_for(group, way, timeout=20)
            assert wait_for(group, way, timeout=20, disable_sync_subtasks=False) == [4, 4]
        with allow_join_result():
            assert group.get(timeout=20) == [4, 4]


def test_many_groups_are_awaited_at_once_and_other_calls_go_on(site: Site) -> None:
    groups = [site.app.ResultSet(some(site, 5)) for _ in range(40)]

    async def ask() -> list[Any]:
        waiting = [asyncio.ensure_future(group.aget(timeout=15)) for group in groups]
        await asyncio.sleep(0)
        one = site.result()
        site.answer(one, "meanwhile")
        assert await one.aget(timeout=10) == "meanwhile"
        await one.aforget()
        site.store([site.record(member, 1) for group in groups for member in group])
        return list(await asyncio.gather(*waiting))

    assert asyncio.run(asyncio.wait_for(ask(), 20)) == [[1] * 5] * 40
    assert asyncio.run(asyncio.wait_for(awaited(groups[0]), 5)) == [1] * 5


async def awaited(group: ResultSet) -> list[Any]:
    return await group


def test_an_outage_is_outlived(private_redis: RedisServer) -> None:
    url = private_redis.url()
    with Celery("asks", broker=url, backend=url, set_as_current=False) as app:
        site = Site(app, app)
        group = app.ResultSet(some(site))
        assert group.waiting()
        private_redis.kill()
        soon(lambda: [private_redis.restart(), *(site.answer(one, 7) for one in group)], 0.3)
        assert group.get(timeout=20) == [7, 7, 7]


@pytest.mark.parametrize("way", ["get", "aget"])
def test_a_wait_is_one_subscription_that_shrinks(private_redis: RedisServer, way: str) -> None:
    url = private_redis.url()
    with Celery("asks", broker=url, backend=url, set_as_current=False) as app:
        site = Site(app, app)
        results = some(site, 300)

        def answer() -> None:
            for one in results:
                site.answer(one, 7)

        soon(answer)
        assert wait_for(app.ResultSet(results), way, timeout=20) == [7] * 300
        stats = private_redis.command("INFO", "commandstats").decode()
        calls = {
            line.split(":")[0].partition("_")[2]: int(line.split("calls=")[1].split(",")[0])
            for line in stats.split()
            if "calls=" in line
        }
        assert calls["subscribe"] == 1
        assert calls["mget"] <= 3


@pytest.mark.parametrize("way", ["get", "aget"])
def test_what_a_wait_asks_for_is_linear_in_its_members(private_redis: RedisServer, way: str) -> None:
    url = private_redis.url()

    def asked(count: int) -> int:
        """Bytes that the server was sent while results came one by one."""
        with (
            Celery("asks", broker=url, backend=url, set_as_current=False) as app,
            Celery("answers", broker=url, backend=url, set_as_current=False) as answers,
        ):
            site = Site(app, answers)
            results = some(site, count)
            records = [site.record(one, 1) for one in results]

            def answer_one(*_: Any) -> None:
                if records:
                    site.store([records.pop()])

            before = received(private_redis)
            soon(answer_one, 0.05)
            values = wait_for(app.ResultSet(results), way, timeout=30, on_message=answer_one)
            assert values == [1] * count
            return received(private_redis) - before

    few = asked(50)
    assert asked(400) < 8 * few * 1.3  # each time all that are left would be 64 times as much


def received(server: RedisServer) -> int:
    found = server.command("INFO", "stats").decode()
    return int(found.split("total_net_input_bytes:")[1].split()[0])


def test_a_final_state_is_kept_however_many_others_nobody_has_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Inbox, "KEPT", 3)

    async def read() -> list[Any]:
        inbox = Inbox(asyncio.get_running_loop(), 2)
        inbox.put("a", {"status": "SUCCESS"})
        for number in range(10):
            inbox.put("b", {"status": "PROGRESS", "result": number})
        inbox.put("b", {"status": "FAILURE"})
        found = []
        while (news := await inbox.next(0)) is not None:
            found.append((news[0], news[1].get("result", news[1]["status"])))
        return found

    assert asyncio.run(read()) == [("a", "SUCCESS"), ("b", 7), ("b", 8), ("b", 9), ("b", "FAILURE")]


# -- then ------------------------------------------------------------------------------------


def test_a_callback_of_a_set_is_called_once_when_all_are_ready(anywhere: Site) -> None:
    a, b, c = some(anywhere)
    results = anywhere.app.GroupResult("group", [a, GroupResult("inner", [b], app=anywhere.app), c])
    called: list[Any] = []
    assert results.then(called.append) is results
    anywhere.answer(a, 1)
    anywhere.answer(b, 2)
    assert a.get(timeout=20) == 1
    assert called == []
    anywhere.answer(c, 3)
    wait_until(lambda: called)
    assert called == [results] and called[0] is results
    assert results.get() == [1, [2], 3]
    results.then(called.append)
    assert len(called) == 2


def test_the_failure_of_a_member_goes_to_on_error_when_all_are_ready(memory: Site) -> None:
    a, b, c = some(memory)
    errors: list[BaseException] = []
    called: list[Any] = []
    results = memory.app.ResultSet([a, b, c])
    results.then(called.append, on_error=errors.append)
    results.then(called.append)
    memory.fail(c, KeyError("the last"))
    memory.fail(b, ValueError("the first"))
    memory.answer(a)
    wait_until(lambda: errors and called)
    assert ([str(error) for error in errors], called) == (["the first"], [results])


def test_a_callback_of_an_empty_set_is_called_at_once(memory: Site) -> None:
    called: list[Any] = []
    memory.app.ResultSet([]).then(called.append)
    assert len(called) == 1


# -- acting ----------------------------------------------------------------------------------


def test_forgetting_a_group_is_one_trip_and_forgets_its_members_chains(keeper: Site) -> None:
    before, a, b = some(keeper)
    a.parent = before
    group = keeper.app.GroupResult("group", [a, GroupResult("inner", [b], app=keeper.app)])
    for one in (before, a, b):
        keeper.answer(one)
    assert group.get(timeout=20) == [4, [4]]
    trips: list[Any] = []
    forget = keeper.app.backend.forget
    keeper.app.backend.forget = lambda ids: [trips.append(ids), forget(ids)]  # type: ignore[method-assign,union-attr]
    group.forget()
    assert trips == [[before.id, a.id, b.id]]
    assert [one.known for one in (before, a, b)] == [False, False, False]


def test_revoking_a_group_revokes_all_its_calls(memory: Site) -> None:
    a, b, _ = some(memory)
    group = memory.app.GroupResult("group", [a, GroupResult("inner", [b], app=memory.app)])
    group.revoke(terminate=True)
    asyncio.run(group.arevoke())
    remembered = memory.app.broker.recall("revoked")
    assert {a.id, b.id} <= set(remembered)


# -- saved groups ----------------------------------------------------------------------------


def test_a_saved_group_is_restored_with_its_parents_and_groups(keeper: Site) -> None:
    first, a, b = some(keeper)
    group = keeper.app.GroupResult("group", [a, GroupResult("inner", [b], app=keeper.app)], first)
    assert group.save() is group
    found = keeper.app.GroupResult.restore("group")
    assert found == group and found is not group
    assert found.as_tuple() == group.as_tuple()
    assert (found.app, found.results[0].app, found.parent) == (keeper.app, keeper.app, first)
    for one in (a, b):
        keeper.answer(one, 8)
    assert found.get(timeout=20) == [8, [8]]
    assert GroupResult.restore("group", app=keeper.app) == group
    assert GroupResult.restore("group", keeper.app.backend, keeper.app) == group


def test_a_deleted_group_is_gone_and_its_results_are_not(keeper: Site) -> None:
    a, *_ = some(keeper)
    keeper.answer(a, 8)
    group = keeper.app.GroupResult("group", [a]).save()
    group.delete()
    group.delete()
    assert keeper.app.GroupResult.restore("group") is None
    assert group.get(timeout=20) == [8]


def test_an_unknown_group_is_none(keeper: Site) -> None:
    assert keeper.app.GroupResult.restore("unknown") is None


def test_a_group_is_kept_as_long_as_results_are(keeper: Site) -> None:
    keeper.app.conf.result_expires = 0.05
    keeper.app.GroupResult("short", some(keeper)).save()
    keeper.app.conf.result_expires = None
    keeper.app.GroupResult("long", some(keeper)).save()
    wait_until(lambda: keeper.app.GroupResult.restore("short") is None)
    assert keeper.app.GroupResult.restore("long") is not None


@pytest.mark.parametrize("serializer", ["json", "msgpack", "pickle"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_group_is_saved_as_results_are(keeper: Site, serializer: str, compression: str | None) -> None:
    conf = keeper.app.conf
    conf.update(
        result_serializer=serializer, result_accept_content=[serializer], result_compression=compression
    )
    group = keeper.app.GroupResult("group", some(keeper), keeper.result()).save()
    assert keeper.app.GroupResult.restore("group") == group
    conf.result_accept_content = ["yaml"]
    with pytest.raises(ContentDisallowed):
        keeper.app.GroupResult.restore("group")


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"result": 5}', b'{"result": [["x", null], 5]}', b"\xff"]
)
def test_a_document_that_is_no_group_is_said_to_be_none(memory: Site, document: bytes) -> None:
    backend: Any = memory.app.backend
    backend.save_group("group", document, None)
    with pytest.raises(BackendGetMetaError, match="a saved group can't be read"):
        memory.app.GroupResult.restore("group")


@pytest.mark.parametrize(
    "act",
    [
        lambda app: app.GroupResult("group", []).save(),
        lambda app: app.GroupResult("group", []).delete(),
        lambda app: app.GroupResult.restore("group"),
    ],
    ids=["save", "delete", "restore"],
)
def test_a_store_that_keeps_no_groups_says_which_do(rabbit_url: str, act: Callable[[Celery], Any]) -> None:
    with Celery("asks", broker=rabbit_url, backend="rpc://", set_as_current=False) as app:
        with pytest.raises(
            ImproperlyConfigured, match=r"can't be kept by rpc://.*redis://, sqlite:/// or memory://"
        ):
            act(app)
        app.conf.result_backend = None
    with (
        Celery("asks", broker="memory://none", set_as_current=False) as app,
        pytest.raises(ImproperlyConfigured, match="no result backend is configured"),
    ):
        act(app)


# -- as values -------------------------------------------------------------------------------


def test_the_apps_classes_make_results_of_the_app(memory: Site) -> None:
    group = memory.app.GroupResult("group")
    assert isinstance(group, GroupResult) and group.app is memory.app
    assert memory.app.GroupResult is memory.app.GroupResult
    assert memory.app.ResultSet([]).app is memory.app
    assert repr(group) == "<GroupResult: group []>" and str(group) == "group"


def test_a_group_survives_tuple_json_and_pickle(memory: Site) -> None:
    a, b, parent = some(memory)
    group = memory.app.GroupResult("group", [a, GroupResult("inner", [b])], parent)
    from minicelery.result import result_from_tuple

    for again in (
        result_from_tuple(json.loads(json.dumps(group.as_tuple())), memory.app),
        pickle.loads(pickle.dumps(group)),
    ):
        assert again == group and type(again) is GroupResult
    assert group.as_list() == [a.id, b.id, "inner", "group", parent.id]
    assert GroupResult().id != GroupResult().id


# -- eager groups ----------------------------------------------------------------------------


def test_an_eager_group_has_its_values_at_once(memory: Site) -> None:
    good: EagerResult[int] = EagerResult("good", 1, "SUCCESS")
    bad: EagerResult[int] = EagerResult("bad", ValueError("bad"), "FAILURE")
    group = EagerGroupResult("group", [good, EagerGroupResult("inner", [good])], app=memory.app)
    called: list[Any] = []
    with denied_join_result():
        assert group.get(callback=lambda *call: called.append(call)) == [1, [1]]
        assert [wait_for(group, way) for way in WAYS] == [[1, [1]]] * 4
    assert called == [("good", 1), ("inner", [1])]
    assert (group.ready(), group.successful(), group.completed_count()) == (True, True, 2)
    assert [id for id, _ in group.iter_native()] == ["good", "inner"]
    group.then(called.append)
    assert called[-1] is group
    group.forget()
    failed = EagerGroupResult("group", [good, bad], app=memory.app)
    with pytest.raises(ValueError, match="bad"):
        failed.get()
    assert failed.get(propagate=False)[0] == 1
