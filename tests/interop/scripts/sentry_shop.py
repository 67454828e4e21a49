"""A program written for Celery with Sentry's integration, which writes into a file what it would send."""

from __future__ import annotations

import json
import os
from typing import Any

from minicelery import install_as_celery

install_as_celery(force=True)

import sentry_sdk
from celery import Celery, Task, chain
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport


class ToFile(Transport):
    """Keeps what it is given until it is flushed: what a process does not flush at its end is lost."""

    kept: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            self.kept.append(
                {"kind": item.headers.get("type"), "pid": os.getpid(), **(item.payload.json or {})}
            )

    def flush(self, timeout: float, callback: Any = None) -> None:
        lines = [json.dumps(one, default=str) + "\n" for one in self.kept]
        self.kept.clear()
        with open(os.environ["ENVELOPES"], "a", encoding="utf-8") as file:
            file.writelines(lines)


sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1", transport=ToFile, traces_sample_rate=1.0, auto_session_tracking=False,
    integrations=[CeleryIntegration(monitor_beat_tasks=True)],
)  # fmt: skip

app = Celery("shop", broker="sqlite:///queue.db", backend="sqlite:///queue.db")
app.conf.beat_schedule = {"every-minute": {"task": "shop.bill", "schedule": 60, "args": (3,)}}


class Own(Task):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


@app.task(name="shop.bill")
def bill(order: int) -> int:
    sentry_sdk.capture_message("billed")
    return order


@app.task(name="shop.ship")
def ship(order: int) -> None:
    sentry_sdk.set_tag("order", order)
    raise RuntimeError(f"order {order} is lost")


@app.task(name="shop.own", base=Own)
def own(order: int) -> None:
    raise LookupError(f"order {order} is nobody's")


@app.task(name="shop.awaited")
async def awaited(order: int) -> None:
    raise ConnectionError(f"nobody answers for order {order}")


@app.task(name="shop.expected", throws=(KeyError,))
def expected(order: int) -> None:
    raise KeyError(order)


@app.task(name="shop.again", bind=True, max_retries=2)
def again(self: Any, order: int) -> int:
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return order


CALLS = {
    "bill": lambda: bill.delay(1),
    "ship": lambda: ship.apply_async((7,), headers={"tenant": "blue"}),
    "own": lambda: app.send_task("shop.own", (8,)),
    "awaited": lambda: awaited.delay(9),
    "expected": lambda: expected.delay(10),
    "again": lambda: again.delay(11),
    "chain": lambda: chain(bill.s(12), bill.s())(),
}

if __name__ == "__main__":
    with sentry_sdk.start_transaction(name="checkout", op="http.server"):
        sent = {name: call() for name, call in CALLS.items()}
    for result in sent.values():
        result.get(timeout=40, propagate=False)
    sentry_sdk.flush()
    print(json.dumps({name: result.id for name, result in sent.items()}))
