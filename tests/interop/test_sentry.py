"""sentry-sdk's own Celery integration, through the alias: what it patches is called by our clients, workers and beat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.alias.scripts import NEITHER, run
from tests.contrib.project import ran, running

pytest.importorskip("sentry_sdk")

pytestmark = pytest.mark.timeout(180)  # the first of them runs a worker and a client

SHOP = "tests.interop.scripts.sentry_shop"


@dataclass
class Seen:
    """What Sentry would have been sent while a client sent `CALLS` and a worker ran them."""

    ids: dict[str, str]
    items: list[dict[str, Any]]
    log: str

    def of(self, call: str, kind: str) -> list[dict[str, Any]]:
        """The items of that kind that bear the id of a call."""
        return [
            one
            for one in self.items
            if one["kind"] == kind and one["tags"].get("celery_task_id") == self.ids[call]
        ]

    @property
    def client(self) -> dict[str, Any]:
        (found,) = (one for one in self.items if one.get("transaction") == "checkout")
        return found


def trace(item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = item["contexts"]["trace"]
    return found


def value(event: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = event["exception"]["values"][-1]
    return found


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module", params=["prefork"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("sentry")
    envelopes = folder / "envelopes"
    worker = ["minicelery", "-A", SHOP, "worker", "-P", request.param, "-c", "1", "-l", "INFO"]
    with running(folder, worker, "ready", ENVELOPES=str(envelopes)) as log:
        done = ran(folder, SHOP, timeout=50, ENVELOPES=str(envelopes))
        assert done.returncode == 0, done.stderr
    return Seen(json.loads(done.stdout), read(envelopes), log.read_text())


def test_an_error_is_an_event_with_the_tasks_tags_and_its_transaction(seen: Seen) -> None:
    (event,) = seen.of("ship", "event")
    assert (value(event)["type"], value(event)["value"]) == ("RuntimeError", "order 7 is lost")
    assert event["tags"] == {"order": 7, "celery_task_id": seen.ids["ship"]}
    assert event["transaction"] == "shop.ship"
    assert event["extra"]["celery-job"]["task_name"] == "shop.ship"
    assert value(event)["mechanism"] == {"type": "celery", "handled": False}


@pytest.mark.parametrize(("call", "error"), [("own", "LookupError"), ("awaited", "ConnectionError")])
def test_so_is_that_of_a_task_with_a_call_of_its_own_and_of_an_async_one(
    seen: Seen, call: str, error: str
) -> None:
    (event,) = seen.of(call, "event")
    assert (value(event)["type"], event["transaction"]) == (error, f"shop.{call}")


def test_errors_that_a_task_expects_are_no_events_and_retries_neither(seen: Seen) -> None:
    assert seen.of("expected", "event") == seen.of("again", "event") == []
    assert [trace(run)["status"] for run in seen.of("again", "transaction")] == ["aborted", "ok"]


def test_a_run_is_a_transaction_of_the_trace_that_called_it(seen: Seen) -> None:
    submits = {
        span["span_id"]: span["description"]
        for span in seen.client["spans"]
        if span["op"] == "queue.submit.celery"
    }
    assert sorted(submits.values()) == [
        "shop." + name for name in ("again", "awaited", "bill", "expected", "own", "ship")
    ]
    for call in ("bill", "ship", "own", "awaited"):
        (run,) = seen.of(call, "transaction")
        assert trace(run)["trace_id"] == trace(seen.client)["trace_id"]
        assert submits[trace(run)["parent_span_id"]] == run["transaction"] == f"shop.{call}"
        assert (trace(run)["op"], run["transaction_info"]) == ("queue.task.celery", {"source": "task"})
        assert trace(run)["status"] == ("ok" if call == "bill" else "internal_error")


def test_a_transaction_tells_of_the_queue_and_how_long_it_was_waited_for(seen: Seen) -> None:
    (run,) = seen.of("bill", "transaction")
    (span,) = (span for span in run["spans"] if span["op"] == "queue.process")
    data = span["data"]
    assert (data["messaging.message.id"], data["messaging.destination.name"]) == (seen.ids["bill"], "celery")
    assert (data["messaging.system"], data["messaging.message.retry.count"]) == ("sqlite", 0)
    assert data["messaging.message.receive.latency"] > 0


def test_publishing_is_a_span_within_that_of_the_call(seen: Seen) -> None:
    submit, publish = (
        next(span for span in seen.client["spans"] if (span["op"], span["description"]) == (op, "shop.bill"))
        for op in ("queue.submit.celery", "queue.publish")
    )
    assert publish["parent_span_id"] == submit["span_id"]
    assert publish["data"]["messaging.message.id"] == seen.ids["bill"]
    assert publish["data"]["messaging.system"] == "sqlite"


def test_what_one_task_sets_is_not_seen_by_the_next(seen: Seen) -> None:
    assert "order" not in seen.of("own", "event")[0]["tags"]
    messages = [one for one in seen.items if one.get("message") == "billed"]
    assert len(messages) == 3 and all("order" not in one["tags"] for one in messages)
    assert all(one["transaction"] == "shop.bill" for one in messages)


def test_lines_that_tell_of_failures_are_no_events_of_their_own(seen: Seen) -> None:
    assert "raised unexpected" in seen.log
    assert {one["transaction"] for one in seen.items if one["kind"] == "event" and "exception" in one} == {
        "shop.ship", "shop.own", "shop.awaited",
    }  # fmt: skip
    assert not [one for one in seen.items if "logentry" in one and one.get("message") != "billed"]


def test_a_beat_checks_in_for_its_entries_and_their_runs_check_out(tmp_path: Path) -> None:
    script = f"""
import sentry_sdk
from {SHOP} import app
from minicelery.contrib.testing import in_memory, time_travel

with in_memory(app), time_travel(app) as clock:
    print([run.name for run in clock.forward(seconds=61)], flush=True)
    assert app.periodic_entries()["every-minute"].get("options") is None  # the entry itself is as it was
sentry_sdk.flush()
"""
    assert run(script, tmp_path, ENVELOPES=str(tmp_path / "envelopes")) == "['shop.bill']\n"
    items = read(tmp_path / "envelopes")
    first, last = (one for one in items if one["kind"] == "check_in")
    assert (first["monitor_slug"], first["status"], last["status"]) == ("every-minute", "in_progress", "ok")
    assert first["check_in_id"] == last["check_in_id"]
    assert first["monitor_config"]["schedule"] == {"type": "interval", "value": 1, "unit": "minute"}
    assert [one["transaction"] for one in items if one["kind"] == "transaction"] == ["shop.bill"]


def test_nothing_of_celerys_need_be_installed(tmp_path: Path) -> None:
    script = """
from minicelery import install_as_celery
install_as_celery()
import sentry_sdk
from sentry_sdk.integrations.celery import CeleryIntegration
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", integrations=[CeleryIntegration()])
print(CeleryIntegration.identifier in sentry_sdk.get_client().integrations)
"""
    assert run(NEITHER + script, tmp_path) == "True\n"
