"""OpenTelemetry's own Celery instrumentation, through the alias: spans of calls and runs, linked to each other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.alias.scripts import NEITHER, run
from tests.contrib.project import ran, running

pytest.importorskip("opentelemetry.instrumentation.celery")

pytestmark = pytest.mark.timeout(180)  # the first of them runs a worker and a client

SHOP = "tests.interop.scripts.otel_shop"


@dataclass
class Seen:
    """The spans of a client that sent `CALLS`, and of a worker that ran them."""

    ids: dict[str, str]
    spans: list[dict[str, Any]]
    said: str

    def of(self, call: str, action: str) -> list[dict[str, Any]]:
        """The spans that bear the id of a call, in their order."""
        found = [
            span for span in self.spans
            if span["attributes"].get("messaging.message.id") == self.ids[call]
            and span["attributes"]["celery.action"] == action
        ]  # fmt: skip
        return sorted(found, key=lambda span: str(span["start_time"]))

    def parent(self, span: dict[str, Any]) -> str | None:
        """The name of the span in which another was begun."""
        wanted = span["parent_id"]
        return next((one["name"] for one in self.spans if one["context"]["span_id"] == wanted), wanted)


@pytest.fixture(scope="module", params=["threads"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("otel")
    spans = folder / "spans"
    worker = ["minicelery", "-A", SHOP, "worker", "-P", request.param, "-c", "2", "-l", "INFO"]
    with running(folder, worker, "ready", SPANS=str(spans)) as log:
        done = ran(folder, SHOP, timeout=50, SPANS=str(spans))
        assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in Path(spans).read_text().splitlines()]
    return Seen(json.loads(done.stdout), found, log.read_text() + done.stderr)


@pytest.mark.parametrize("call", ["bill", "ship"])
def test_a_run_is_a_span_below_that_of_its_call(seen: Seen, call: str) -> None:
    (sent,), (ran,) = seen.of(call, "apply_async"), seen.of(call, "run")
    assert (sent["name"], ran["name"]) == (f"apply_async/shop.{call}", f"run/shop.{call}")
    assert (seen.parent(sent), seen.parent(ran)) == ("checkout", sent["name"])
    assert ran["parent_id"] == sent["context"]["span_id"]
    assert (sent["kind"], ran["kind"]) == ("SpanKind.PRODUCER", "SpanKind.CONSUMER")
    assert len({span["context"]["trace_id"] for span in seen.spans}) == 1


def test_spans_have_celerys_attributes(seen: Seen) -> None:
    (sent,), (ran,) = seen.of("bill", "apply_async"), seen.of("bill", "run")
    said = {
        "celery.task_name": "shop.bill",
        "messaging.message.id": seen.ids["bill"],
        "messaging.destination": "celery",
    }
    assert said.items() <= sent["attributes"].items() and said.items() <= ran["attributes"].items()
    assert sent["attributes"]["messaging.destination_kind"] == "queue"
    assert ran["attributes"]["celery.state"] == "SUCCESS" and "@" in ran["attributes"]["celery.hostname"]


def test_what_a_task_begins_is_within_its_run(seen: Seen) -> None:
    (billing,) = (span for span in seen.spans if span["name"] == "billing 1")
    assert billing["parent_id"] == seen.of("bill", "run")[0]["context"]["span_id"]
    (called,) = (span for span in seen.spans if seen.parent(span) == "run/shop.outer")
    assert called["name"] == "apply_async/shop.bill"


def test_a_failure_is_the_spans_status_with_the_tasks_own_exception(seen: Seen) -> None:
    (ran,) = seen.of("ship", "run")
    assert ran["status"] == {"status_code": "ERROR", "description": "order 7 is lost"}
    (event,) = ran["events"]
    assert event["attributes"]["exception.type"] == "RuntimeError"
    assert "in ship" in event["attributes"]["exception.stacktrace"]


def test_a_retry_is_a_call_within_the_run_that_asked_for_it(seen: Seen) -> None:
    first, second = seen.of("again", "run")
    assert (
        first["attributes"]["celery.retry.reason"] == "Retry in 0s"
        and first["status"]["status_code"] == "UNSET"
    )
    _, sent = seen.of("again", "apply_async")
    assert (seen.parent(sent), sent["parent_id"]) == ("run/shop.again", first["context"]["span_id"])
    assert second["parent_id"] == sent["context"]["span_id"]
    assert (second["status"]["status_code"], second["attributes"]["celery.retries"]) == ("ERROR", 1)


def test_the_next_link_of_a_chain_is_called_within_the_one_before(seen: Seen) -> None:
    (sent,), (ran,) = seen.of("chain", "apply_async"), seen.of("chain", "run")
    assert (seen.parent(sent), seen.parent(ran)) == ("run/shop.bill", "apply_async/shop.bill")


def test_no_span_is_left_open_and_nothing_is_complained_of(seen: Seen) -> None:
    assert sorted(span["name"] for span in seen.spans if span["name"].startswith(("run/", "apply_async/"))) == sorted(
        [f"{action}/shop.{task}" for action in ("run", "apply_async") for task in "bill bill bill bill ship again again outer".split()]
    )  # fmt: skip
    assert "no existing span" not in seen.said and "Failed to detach" not in seen.said


def test_nothing_of_celerys_need_be_installed(tmp_path: Path) -> None:
    script = """
from minicelery import install_as_celery
install_as_celery()
import celery.signals
from opentelemetry.instrumentation.celery import CeleryInstrumentor
CeleryInstrumentor().instrument(skip_dep_check=True)
print(len(celery.signals.task_prerun.receivers))
CeleryInstrumentor().uninstrument()
print(len(celery.signals.task_prerun.receivers))
"""
    assert run(NEITHER + script, tmp_path) == "1\n0\n"
