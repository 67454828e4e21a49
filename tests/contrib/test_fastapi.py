"""FastAPI: routes that tell of tasks, call them, and say so where the servers are away."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import asynccontextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, _state, hearing
from minicelery.exceptions import ImproperlyConfigured, OperationalError
from tests.contrib.project import port_in, running
from tests.servers import RedisServer

fastapi: Any = pytest.importorskip("fastapi")
pytest.importorskip("httpx2")
from fastapi.testclient import TestClient  # noqa: E402

from minicelery.contrib.fastapi import AWAY, _event, _events, lifespan, plain, task_router, unavailable  # noqa: E402


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    default, chosen, shared = _state._default, _state._default_is_chosen, list(_state.shared)
    yield
    _state._default, _state._default_is_chosen, _state.shared[:] = default, chosen, shared


@pytest.fixture
def queue() -> Iterator[Celery]:
    url = f"memory://{uuid.uuid4()}"
    app = Celery("site", broker=url, backend=url, set_as_current=False)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="secret")
    def secret() -> None: ...

    yield app
    app.close()


def site_of(queue: Celery, **options: Any) -> Any:
    site = fastapi.FastAPI(lifespan=lifespan(queue))
    site.include_router(task_router(queue, **options))
    return site


def client_of(queue: Celery, **options: Any) -> TestClient:
    return TestClient(site_of(queue, **options))


def store(queue: Celery, id: str, state: str, meta: Any) -> None:
    queue.tasks["add"].update_state(id, state, meta)


def told(text: str) -> list[dict[str, Any]]:
    """The documents of a stream of events."""
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


# -- the state ---------------------------------------------------------------------------------


def test_an_unknown_id_is_pending_and_said_to_be_unknown(queue: Celery) -> None:
    answer = client_of(queue).get("/tasks/abc")
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "abc", "state": "PENDING", "known": False, "ready": False, "successful": False,
        "progress": None, "result": None, "error": None,
    }  # fmt: skip


def test_a_tasks_progress_result_and_failure_are_documents_of_one_shape(queue: Celery) -> None:
    client = client_of(queue)
    store(queue, "a", "PROGRESS", {"current": 1, "total": 4})
    half = client.get("/tasks/a").json()
    assert (half["known"], half["progress"]) == (True, {"current": 1, "total": 4, "percent": 25.0})
    store(queue, "b", "SUCCESS", 3)
    done = client.get("/tasks/b").json()
    assert (done["state"], done["ready"], done["successful"], done["result"]) == ("SUCCESS", True, True, 3)
    store(queue, "c", "FAILURE", ValueError("no"))
    failed = client.get("/tasks/c").json()
    assert (failed["result"], failed["error"]) == (None, {"type": "ValueError", "message": "no"})
    assert set(half) == set(done) == set(failed)


def test_what_json_cannot_say_is_told_as_text(queue: Celery) -> None:
    value = {"sum": Decimal("1.50"), "day": date(2030, 1, 2), "raw": b"\xff", "nan": float("nan")}
    store(queue, "a", "SUCCESS", value)
    assert client_of(queue).get("/tasks/a").json()["result"] == {
        "sum": "1.50", "day": "2030-01-02", "raw": "/w==", "nan": None
    }  # fmt: skip
    assert plain({1: {2.5}, "set": frozenset()}) == {"1": [2.5], "set": []}


def test_what_a_client_cannot_take_is_not_sent(queue: Celery) -> None:
    client = client_of(queue)
    store(queue, "a", "PROGRESS", {"current": float("nan"), "total": 2})
    assert client.get("/tasks/a").json()["progress"] is None
    store(queue, "b", "PROGRESS", {"current": 10**400, "total": 0.1})
    assert client.get("/tasks/b").json()["progress"] is None
    store(queue, "c", "SUCCESS", "half a letter: \ud800")
    answer = client.get("/tasks/c")
    assert answer.headers["content-type"] == "application/json"
    assert r"half a letter: \ud800" in answer.text


def test_the_words_of_a_failure_may_be_kept_from_clients(queue: Celery) -> None:
    store(queue, "a", "FAILURE", ValueError("postgres://admin:hunter2@db"))
    client = client_of(queue, error_messages=False)
    answers = client.get("/tasks/a"), client.get("/tasks/a/events")
    assert answers[0].json()["error"] == {"type": "ValueError", "message": ""}
    assert not [answer for answer in answers if "hunter2" in answer.text]


@pytest.mark.parametrize("id", ["a%20b", "a" * 256, "a%0Ab"])
def test_an_id_that_cannot_be_one_is_refused(queue: Celery, id: str) -> None:
    client = client_of(queue)
    for path in (f"/tasks/{id}", f"/tasks/{id}/events"):
        answer = client.get(path)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["path", "id"]


def test_the_documents_are_described(queue: Celery) -> None:
    schema = client_of(queue, allow=["add"]).get("/openapi.json").json()
    assert set(schema["paths"]) == {"/tasks/{id}", "/tasks/{id}/events", "/tasks/{name}"}
    assert {"TaskState", "Progress", "Failure", "Arguments", "Called"} <= set(schema["components"]["schemas"])
    assert set(schema["paths"]["/tasks/{id}"]["get"]["responses"]) == {"200", "422", "503"}


# -- events ------------------------------------------------------------------------------------


def test_events_tell_the_state_at_once_then_each_change_and_end_with_the_last(
    queue: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(queue, "a", "PROGRESS", {"current": 0, "total": 2})
    later: list[tuple[str, Any]] = [("PROGRESS", {"current": 1, "total": 2}), ("SUCCESS", "done")]

    def tell(event: Any) -> str:
        """Each event is followed by the next state, from elsewhere."""
        if later:
            threading.Timer(0.05, store, (queue, "a", *later.pop(0))).start()
        return _event(event)

    monkeypatch.setattr("minicelery.contrib.fastapi._event", tell)
    answer = client_of(queue, longest_stream=30).get("/tasks/a/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    documents = told(answer.text)
    assert [document["progress"] and document["progress"]["percent"] for document in documents] == [
        0,
        50,
        None,
    ]
    assert documents[-1]["result"] == "done"
    assert answer.text.startswith("event: state\ndata: {")
    assert answer.text.split("\n\n")[-2].startswith("id: end\nevent: state\n")


def test_events_of_a_task_that_has_ended_are_its_end_and_a_browser_that_returns_gets_none(
    queue: Celery,
) -> None:
    store(queue, "a", "SUCCESS", 1)
    client = client_of(queue)
    (only,) = told(client.get("/tasks/a/events").text)
    assert only["result"] == 1
    again = client.get("/tasks/a/events", headers={"Last-Event-ID": "end"})
    assert (again.status_code, again.text) == (204, "")


def test_a_stream_says_something_now_and_then_and_does_not_last_for_ever(
    queue: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minicelery.contrib.fastapi.KEEP_ALIVE", 0.1)
    for longest in (0.35, 3.5):  # longer, where this process had to wait in the shorter time
        text = client_of(queue, longest_stream=longest).get("/tasks/a/events").text
        assert [document["state"] for document in told(text)] == ["PENDING"]
        assert text.endswith("retry: 1000\n\n")
        assert text.count(": still there\n\n") <= longest / 0.1
        if text.count(": still there\n\n") >= 2:
            break
    else:
        pytest.fail(text)


def test_a_stream_whose_reader_has_gone_listens_no_more(queue: Celery) -> None:
    async def leave() -> list[str]:
        stream = _events(queue, "left", {"ready": False}, 60.0, dict)
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        while not heard():
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        return heard()

    def heard() -> list[str]:
        return [id for watcher in hearing._watchers.values() for id in watcher._hearings if id == "left"]

    assert asyncio.run(asyncio.wait_for(leave(), 10)) == []


# -- calls -------------------------------------------------------------------------------------


def test_without_a_list_nothing_can_be_called(queue: Celery) -> None:
    assert client_of(queue).post("/tasks/add", json={"args": [1, 2]}).status_code in (404, 405)
    with pytest.raises(TypeError, match="allow='add' of task_router: expected a list of task names"):
        task_router(queue, allow="add")


def test_a_task_on_the_list_is_called_and_its_address_told(queue: Celery) -> None:
    client = client_of(queue, allow=["add", "elsewhere.run"])
    answer = client.post("/tasks/add", json={"args": [1], "kwargs": {"y": 2}})
    called = answer.json()
    assert answer.status_code == 202
    assert called == {
        "id": called["id"], "task": "add",
        "url": f"/tasks/{called['id']}", "events": f"/tasks/{called['id']}/events",
    }  # fmt: skip
    assert answer.headers["location"] == called["url"]
    assert client.get(called["url"]).json()["state"] == "PENDING"
    assert client.post("/tasks/elsewhere.run", json={}).status_code == 202
    assert queue.broker.size("celery") == 2


def test_other_tasks_are_not_there(queue: Celery) -> None:
    client = client_of(queue, allow=["add"])
    answer = client.post("/tasks/secret", json={})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "no task 'secret' may be called from here"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"args": [1]}, "missing a required argument: 'y'"),
        ({"args": 3}, "valid list"),
        ({"countdown": 3}, "Extra inputs are not permitted"),
    ],
)
def test_arguments_that_do_not_fit_are_told(queue: Celery, body: Any, said: str) -> None:
    answer = client_of(queue, allow=["add"]).post("/tasks/add", json=body)
    assert answer.status_code == 422
    assert said in json.dumps(answer.json())
    assert queue.broker.size("celery") == 0


def test_dependencies_guard_every_route_and_those_of_calls_only_calls(queue: Celery) -> None:
    def guard(name: str) -> Any:
        def check(request: fastapi.Request) -> None:
            if name not in request.headers:
                raise fastapi.HTTPException(401, name)

        check.__annotations__["request"] = fastapi.Request
        return fastapi.Depends(check)

    client = client_of(
        queue, allow=["add"], dependencies=[guard("reader")], call_dependencies=[guard("caller")]
    )
    assert client.get("/tasks/a").json() == {"detail": "reader"}
    assert client.get("/tasks/a/events").status_code == 401
    assert client.get("/tasks/a", headers={"reader": "1"}).status_code == 200
    body = {"args": [1, 2]}
    assert client.post("/tasks/add", json=body, headers={"reader": "1"}).json() == {"detail": "caller"}
    assert client.post("/tasks/add", json=body, headers={"reader": "1", "caller": "1"}).status_code == 202


# -- servers that are away, and the site's life ------------------------------------------------


def test_servers_that_are_away_are_503_in_words_and_without_addresses(caplog: Any) -> None:
    url = "redis://:hunter2@127.0.0.1:1/0"
    queue = Celery("away", broker=url, backend=url, task_publish_deadline=0.2, set_as_current=False)
    site = site_of(queue, allow=["add"])
    site.add_exception_handler(OperationalError, unavailable)

    @site.get("/own")
    async def own() -> None:
        await queue.asend_task("add")

    client = TestClient(site)
    answers = [client.get(path) for path in ("/tasks/a", "/tasks/a/events", "/own")]
    answers.append(client.post("/tasks/add", json={}))
    for answer in answers:
        assert (answer.status_code, answer.json()) == (503, {"detail": AWAY})
        assert answer.headers["retry-after"] == "5"
    assert caplog.text.count("cannot reach Redis at redis://:**@127.0.0.1:1/0") == 4
    assert "hunter2" not in caplog.text


def test_an_app_without_results_is_refused_at_once() -> None:
    with pytest.raises(ImproperlyConfigured, match="no result backend is configured; set result_backend"):
        task_router(Celery("none", broker="memory://", set_as_current=False))
    callers = Celery("rpc", broker="amqp://127.0.0.1:1//", backend="rpc://", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match="rpc:// has them only in the process that sent the call"):
        task_router(callers)


SITE = """\
from fastapi import FastAPI
from minicelery import Celery
from minicelery.contrib.fastapi import lifespan, task_router

queue = Celery("site", broker="sqlite:///queue.db", backend="sqlite:///queue.db")
site = FastAPI(lifespan=lifespan(queue))
site.include_router(task_router(queue))
"""


def test_open_streams_do_not_keep_a_server_from_ending(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    (tmp_path / "site_app.py").write_text(SITE)
    command = ["uvicorn", "site_app:site", "--port", "0"]
    # Five minutes long; the server has twenty seconds when its statement ends.
    with running(tmp_path, command, "(Press CTRL") as log:
        connection = http.client.HTTPConnection("127.0.0.1", port_in(log), timeout=30)
        connection.request("GET", "/tasks/a/events")
        stream = connection.getresponse()
        assert stream.readline() == b"event: state\n"
    assert stream.read().endswith(b"retry: 1000\n\n")
    connection.close()
    assert "Application shutdown complete" in log.read_text()


def test_the_sites_own_lifespan_runs_inside_and_connections_end_with_it(redis_server: RedisServer) -> None:
    queue = Celery("live", broker=redis_server.url(), backend=redis_server.url(), set_as_current=False)
    seen: list[Any] = []

    @asynccontextmanager
    async def own(site: Any) -> Any:
        seen.append(site.state.celery)
        yield {"own": 1}
        seen.append("over")

    site = fastapi.FastAPI(lifespan=lifespan(queue, own))

    @site.get("/")
    async def look(request: fastapi.Request) -> Any:
        await queue.asend_task("add")
        return request.state.own

    look.__annotations__["request"] = fastapi.Request
    with TestClient(site) as client:
        assert _state._default is queue
        assert client.get("/").status_code == 200
        assert queue._broker is not None
    assert seen == [queue, "over"]
    assert queue._broker is None
