"""`from kombu import Queue, Exchange` in programs: kombu's own objects, and ours where kombu is not installed."""

from __future__ import annotations

from pathlib import Path

import kombu
import pytest

from minicelery import Celery
from minicelery.broker.topology import BindingSpec, ExchangeSpec
from minicelery.exceptions import ImproperlyConfigured
from minicelery.serialization import json
from tests.alias.scripts import NEITHER, ONLY_KOMBU, run

ORDERS = kombu.Exchange("orders", "topic", durable=False)
PROGRAM = """
from minicelery import install_as_celery
install_as_celery()
from celery import Celery
from kombu import Exchange, Queue, binding

orders = Exchange("orders", type="topic")
app = Celery("shop", broker="sqlite:///queue.db", backend="sqlite:///queue.db")
app.conf.task_queues = [
    Queue("paid", orders, routing_key="order.paid.#"),
    Queue("audit", [binding(orders, routing_key="order.#")]),
    Queue("mail", Exchange("mail"), routing_key="mail", queue_arguments={"x-max-priority": 5}),
]
app.conf.task_default_exchange = orders
app.conf.task_default_routing_key = "order.new"
app.conf.task_default_queue = "audit"
app.conf.task_routes = {"pay": {"queue": app.conf.task_queues[0]}, "remind": {"exchange": Exchange("mail"), "routing_key": "mail"}}

@app.task(name="note")
def note():
    return "noted"

@app.task(name="pay")
def pay():
    return "paid"

@app.task(name="remind")
def remind():
    return "reminded"

sent = [
    note.delay(), pay.delay(), remind.delay(),
    note.apply_async(queue=Queue("mail", Exchange("mail"), routing_key="mail")),
    note.apply_async(exchange=orders, routing_key="order.paid.card"),
]
print(Queue.__module__, {queue: app.broker.size(queue) for queue in ("paid", "audit", "mail")})
from minicelery.contrib.testing.worker import start_worker
with start_worker(app, pool="solo", perform_ping_check=False):
    print([result.get(timeout=20) for result in sent])
"""


@pytest.mark.parametrize(
    ("hidden", "whose"), [(ONLY_KOMBU, "kombu.entity"), (NEITHER, "minicelery.routing.queues")]
)
def test_queues_and_exchanges_are_taken_in_settings_options_and_routes(
    hidden: str, whose: str, tmp_path: Path
) -> None:
    module, sizes, results = run(hidden + PROGRAM, tmp_path).replace(" {", "\n{").splitlines()
    assert module == whose
    # The call by its exchange reaches both queues that are bound to it, `pay` its queue's exchange.
    assert sizes == "{'paid': 2, 'audit': 3, 'mail': 2}"
    assert results == "['noted', 'paid', 'reminded', 'noted', 'noted']"


def test_an_exchange_may_be_the_default_one() -> None:
    with Celery("shop", broker="memory://", set_as_current=False, task_default_exchange=ORDERS) as app:
        app.conf.task_default_routing_key = "order.new"
        route = app._sender.router.route("any", task=None)
        spec = app._sender.router.queues["celery"]
        assert spec.bindings == (BindingSpec(ExchangeSpec("orders", "topic", durable=False), "order.new"),)
        assert route.queue == "celery"


@pytest.mark.parametrize("value", [5, kombu.Exchange(""), kombu.Queue("q"), object()])
def test_what_is_no_exchange_is_refused_as_the_default_one(value: object) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    with (
        app,
        pytest.raises(ImproperlyConfigured, match="task_default_exchange: expected text or an Exchange"),
    ):
        app.conf.task_default_exchange = value


SERIALIZER = """
from minicelery import install_as_celery
install_as_celery()
from celery import Celery
from kombu.exceptions import EncodeError, OperationalError
from kombu.serialization import register, unregister
from kombu.utils.json import register_type

def encode(value):
    return repr(value)[::-1]

def decode(text):
    return eval((text.decode() if isinstance(text, bytes) else text)[::-1], {"__builtins__": {}})

register("backwards", encode, decode, content_type="application/x-backwards", content_encoding="utf-8")
app = Celery("shop", broker="sqlite:///queue.db", backend="sqlite:///queue.db")
app.conf.update(task_serializer="backwards", result_serializer="backwards", accept_content=["backwards", "json"])

class Price:
    def __init__(self, cents):
        self.cents = cents

register_type(Price, "price", lambda price: price.cents, Price)

@app.task(name="double")
def double(value):
    return (value[0] * 2, complex(1, 2))

@app.task(name="raise", serializer="json")
def raised(price):
    return price.cents + 1

sent = [double.delay((1j,)), raised.delay(Price(99))]
import sqlite3
print(any(b"x-backwards" in bytes(str(row), "utf8") for row in sqlite3.connect("queue.db").iterdump()))
from minicelery.contrib.testing.worker import start_worker
with start_worker(app, pool="solo", perform_ping_check=False):
    print([result.get(timeout=20) for result in sent])
try:
    raised.delay(object())
except EncodeError as error:
    print("EncodeError")
app.close()
try:
    Celery("away", broker="redis://127.0.0.1:1/0", task_publish_deadline=0.05).send_task("x")
except OperationalError as error:
    print(type(error).__mro__[1].__name__)
unregister("backwards")
"""


def test_a_serializer_registered_through_kombus_name_carries_calls_and_results(tmp_path: Path) -> None:
    assert run(NEITHER + SERIALIZER, tmp_path).splitlines() == [
        "True", "[(2j, (1+2j)), 100]", "EncodeError", "OperationalError",
    ]  # fmt: skip


def test_types_of_ones_own_are_carried_by_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "_RENDERERS", json._RENDERERS)
    monkeypatch.setattr(json, "_REVIVERS", dict(json._REVIVERS))

    class Price:
        def __init__(self, cents: int) -> None:
            self.cents = cents

    json.register_type(Price, "price", lambda price: price.cents, Price)
    json.register_type(Price, "price", lambda price: price.cents, Price)  # again: by a module loaded anew
    assert json.encode_json([Price(5)]) == '[{"__type__": "price", "__value__": 5}]'
    assert json.decode_json(json.encode_json({"a": Price(5)}))["a"].cents == 5
    json.register_type(complex, None, str)
    assert json.encode_json(1j) == '"1j"'
    with pytest.raises(ValueError, match="the marker 'date' is taken"):
        json.register_type(Price, "date", str)
