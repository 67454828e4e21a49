"""A program written for Celery with OpenTelemetry's instrumentation, whose spans each process writes into a file."""

from __future__ import annotations

import json
import os
from typing import Any

from minicelery import install_as_celery

install_as_celery(force=True)

from celery import Celery, chain, signals
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
CeleryInstrumentor().instrument()
tracer = trace.get_tracer("shop")


@signals.worker_process_shutdown.connect
def write(**_: Any) -> None:
    with open(os.environ["SPANS"], "a", encoding="utf-8") as file:
        file.writelines(span.to_json(indent=None) + "\n" for span in exporter.get_finished_spans())


app = Celery("shop", broker="sqlite:///queue.db", backend="sqlite:///queue.db")


@app.task(name="shop.bill")
def bill(order: int) -> int:
    with tracer.start_as_current_span(f"billing {order}"):
        return order


@app.task(name="shop.ship")
def ship(order: int) -> None:
    raise RuntimeError(f"order {order} is lost")


@app.task(name="shop.again", bind=True, max_retries=1)
def again(self: Any, order: int) -> None:
    if self.request.retries:
        raise LookupError(order)
    raise self.retry(countdown=0)


@app.task(name="shop.outer")
def outer(order: int) -> str:
    return str(bill.delay(order).id)


CALLS = {
    "bill": lambda: bill.delay(1),
    "ship": lambda: app.send_task("shop.ship", (7,)),
    "again": lambda: again.apply_async((11,), queue="celery"),
    "chain": lambda: chain(bill.s(12), bill.s())(),
    "outer": lambda: outer.delay(13),
}

if __name__ == "__main__":
    with tracer.start_as_current_span("checkout"):
        sent = {name: call() for name, call in CALLS.items()}
    ended = {name: result.get(timeout=40, propagate=False) for name, result in sent.items()}
    app.AsyncResult(ended["outer"]).get(timeout=40)
    write()
    print(json.dumps({name: result.id for name, result in sent.items()}))
