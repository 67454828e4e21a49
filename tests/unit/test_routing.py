"""Where calls go: as in Celery, with its queues and with ours; and on brokers without exchanges."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import minicelery
from minicelery import Celery, routing
from minicelery.broker.topology import plain_queue
from minicelery.exceptions import ImproperlyConfigured, QueueNotFound
from minicelery.message import Delivery, Message, Outcome
from minicelery.routing import Broadcast, Exchange, Queue, Router, binding, worker_direct
from minicelery.routing.matching import headers_match, topic_matches
from minicelery.settings import Settings
from minicelery.signals import after_task_publish, before_task_publish
from minicelery.worker import Worker
from minicelery.worker.executor import Executor
from tests.unit import routing_oracle as oracle
from tests.unit.test_call_budget import BUDGET, calls_of

kombu = pytest.importorskip("kombu", reason="real Celery is the oracle")
pytestmark = pytest.mark.filterwarnings("ignore:the task attribute:DeprecationWarning")  # as Celery warns

MODULE = oracle.__name__


def router(**settings: Any) -> Router:
    return Router(Settings(settings))


def sent(app: Celery, queue: str) -> list[Message]:
    """The messages that wait on the queue, taken off it."""
    consumer = app.broker.consumer([queue], "reader", None)
    found = consumer.swap([], 100, 0)
    consumer.swap([Outcome(delivery) for delivery in found], 0, 0)
    return [delivery.message for delivery in found]


# -- beside Celery -------------------------------------------------------------------------


def many_queues(lib: Any) -> list[Any]:
    topics = lib.Exchange("topicx", type="topic")
    return [
        lib.Queue("celery"),
        lib.Queue("a", lib.Exchange("a"), routing_key="a"),
        lib.Queue("topicq", topics, routing_key="mail.#"),
        lib.Queue("keyless", topics),
        lib.Queue("fanq", lib.Exchange("fanx", type="fanout", delivery_mode=1, durable=False)),
        lib.Queue("named", "namedx", "named.key", durable=False, auto_delete=True),
        lib.Queue("bound", [lib.binding(topics, "b.*"), lib.binding(lib.Exchange("other"), "k", {"x": 1})]),
        lib.Queue("alone", lib.Exchange("alonex"), "k", exclusive=True, no_ack=True),
        lib.Queue(
            "args", lib.Exchange("args", arguments={"alternate-exchange": "fanx"}), "args",
            queue_arguments={"x-dead-letter-exchange": "deadx"}, binding_arguments={"b": 1},
            expires=1.5, message_ttl=2, max_length=3, max_length_bytes=4, max_priority=5,
        ),
        lib.Queue("theirs", lib.Exchange("amq.topic", "topic"), "t", no_declare=True),
        lib.Queue("long-name", lib.Exchange("short", "headers", no_declare=True), alias="short"),
        lib.Broadcast("broadcast", queue="copy1"),
    ]  # fmt: skip


SETTINGS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "none": lambda lib: {},
    "renamed": lambda lib: {"task_default_queue": "main"},
    "transient": lambda lib: {"task_default_delivery_mode": "transient"},
    "default_topic": lambda lib: {
        "task_default_queue": "dq", "task_default_exchange": "dx", "task_default_exchange_type": "topic",
        "task_default_routing_key": "d.k",
    },
    "default_fanout": lambda lib: {"task_default_exchange_type": "fanout"},
    "quorum": lambda lib: {"task_default_queue_type": "quorum", "task_create_missing_queue_type": "quorum"},
    "missing_topic": lambda lib: {
        "task_create_missing_queue_exchange_type": "topic", "task_queue_max_priority": 9,
    },
    "closed": lambda lib: {"task_queues": many_queues(lib), "task_create_missing_queues": False},
    "list": lambda lib: {"task_queues": many_queues(lib), "task_queue_max_priority": 10},
    "list_default_topic": lambda lib: {
        "task_queues": many_queues(lib), "task_default_exchange": "dx",
        "task_default_exchange_type": "topic", "task_default_routing_key": "d.k",
    },
    "dict": lambda lib: {
        "task_queues": {
            "a": {},
            "topicq": {"exchange": "topicx", "exchange_type": "topic", "binding_key": "mail.#"},
            "fanq": {"exchange": "fanx", "exchange_type": "fanout", "delivery_mode": 1, "durable": False},
            "args": {
                "exchange": "args", "routing_key": "r", "queue_arguments": {"x-max-length": 5},
                "exchange_auto_delete": True, "queue_durable": False, "expires": 3, "alias": "short",
                "exchange_arguments": {"x": 1},
            },
            "object": lib.Queue("object", lib.Exchange("objectx", "topic"), "o"),
        },
        "task_default_queue": "a",
    },
    "routes_dict": lambda lib: {
        "task_routes": {
            "exact": "a",
            "exact.options": {"queue": "b", "routing_key": "b.key", "priority": 4},
            "glob.*": {"queue": "c"},
            "*.slow": "slow",
            re.compile(r"(video|image)\."): {"queue": "media", "delivery_mode": 1},
            "glob.exact": {"queue": "d", "serializer": "msgpack", "compression": "gzip"},
            "no.queue": {"priority": 2},
            "only.key": {"routing_key": "k"},
            "to.exchange": {"exchange": "topicx", "routing_key": "mail.x", "exchange_type": "topic"},
            "direct.exchange": {"exchange": "dx", "routing_key": "dk"},
            "empty": {},
        }
    },
    "routes_and_queues": lambda lib: {
        "task_queues": many_queues(lib),
        "task_routes": {
            "exact": {"queue": "topicq", "routing_key": "mail.eu"},
            "glob.*": "topicq",
            "*.slow": {"queue": "fanq"},
            "no.queue": {"queue": "broadcast"},
            "only.key": {"queue": "short"},
            "exact.options": {"queue": "bound"},
        },
    },
    "routers": lambda lib: {
        "task_routes": [
            f"{MODULE}.by_suffix",
            {"exact": "a", "glob.*": "c"},
            [("video.*", "video"), (re.compile("image"), {"queue": "image"})],
            oracle.OldRouter(),
            oracle.by_argument,
        ]
    },
    "function": lambda lib: {"task_routes": oracle.by_argument},
    "path": lambda lib: {"task_routes": f"{MODULE}.by_suffix"},
    "old_by_path": lambda lib: {"task_routes": (f"{MODULE}.OldRouter",)},
    "priorities": lambda lib: {
        "task_default_priority": 3, "task_routes": {"*": {"queue": "p", "priority": 8}},
    },
}  # fmt: skip

NAMES = (
    "plain", "exact", "exact.options", "glob.x", "glob.exact", "x.slow", "video.cut", "no.queue", "only.key",
    "old.task", "to.exchange", "direct.exchange", "empty",
)  # fmt: skip

CALLS: list[dict[str, Any]] = [
    {},
    {"queue": "a"},
    {"queue": "new"},
    {"queue": None, "routing_key": None, "exchange": None},
    {"queue": "topicq"},
    {"queue": "topicq", "routing_key": "mail.eu"},
    {"queue": "fanq"},
    {"queue": "keyless"},
    {"queue": "bound"},
    {"queue": "short"},
    {"queue": "broadcast"},
    {"routing_key": "rk1"},
    {"exchange": "topicx"},
    {"exchange": "topicx", "routing_key": "mail.eu.1"},
    {"exchange": "topicx", "exchange_type": "topic"},
    {"exchange": "", "routing_key": "k"},
    {"exchange": "x", "routing_key": "k", "queue": "a"},
    {"queue": "a", "exchange_type": "fanout"},
    {"queue": "a", "exchange_type": "topic", "routing_key": "k"},
    {"priority": 6},
    {"priority": 6, "queue": "a"},
    {"delivery_mode": "transient"},
    {"delivery_mode": 2, "queue": "fanq"},
    {"serializer": "msgpack"},
]

ATTRIBUTES: list[dict[str, Any] | None] = [
    None,  # a task that is not known here
    {},
    {"queue": "a"},
    {"queue": "topicq", "routing_key": "mail.own", "priority": 1},
    {"exchange": "topicx", "routing_key": "mail.own"},
    {"exchange_type": "fanout", "delivery_mode": 1},
]


def published_by_us(
    app: Celery, attributes: Mapping[str, Any] | None, name: str, args: Any, options: Mapping[str, Any]
) -> tuple[Any, ...]:
    app._registry.pop(name, None)
    task = None if attributes is None else app.task(lambda *args: None, name=name, shared=False, **attributes)
    sender = app._sender
    message = sender.message(name, args, {}, options, sender.defaults(task), "an-id")
    content = message.content_type.rpartition("/")[2].removeprefix("x-")
    return (
        message.exchange, message.routing_key, message.properties.get("delivery_mode", 2), message.priority,
        content,
    )  # fmt: skip


def outcome(act: Callable[..., Any], *args: Any) -> Any:
    try:
        return act(*args)
    except Exception as error:  # which it is, is compared
        return type(error).__name__


@pytest.mark.parametrize("case", SETTINGS)
def test_calls_go_where_celery_sends_them(case: str) -> None:
    theirs = oracle.celery_app(SETTINGS[case])
    ours = Celery("ours", broker="memory://oracle", set_as_current=False, changes=SETTINGS[case](routing))
    compared = 0
    for name, attributes, options in itertools.product(NAMES, ATTRIBUTES, CALLS):
        if options and name not in ("plain", "exact", "glob.x") and (attributes or options not in CALLS[::3]):
            continue  # enough is compared without
        expected = outcome(oracle.published_by_celery, theirs, attributes, name, (4,), options)
        got = outcome(published_by_us, ours, attributes, name, (4,), options)
        about = f"{name} {attributes} {options}: Celery {expected}, ours {got}"
        if got == "ImproperlyConfigured":
            assert leads_nowhere(expected), about
            continue
        if attributes is None and theirs.conf.task_default_priority and not expected[3]:
            got = (*got[:3], None, got[4])  # Celery's default priority is one of known tasks only
        assert got == expected, about
        compared += 1
    assert compared > 200


def leads_nowhere(published: Any) -> bool:
    """Whether Celery publishes it under the routing key None, which no queue gets."""
    return isinstance(published, tuple) and published[:2] == ("", "")


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("library", ["ours", "kombu's"])
def test_queues_are_declared_as_celery_declares_them(case: str, library: str) -> None:
    theirs = oracle.celery_app(SETTINGS[case])
    declare = SETTINGS[case](theirs_or(library))
    ours = Router(Settings(declare))
    assert list(ours.queues) == list(theirs.amqp.queues)
    for name, queue in theirs.amqp.queues.items():
        assert oracle.declared_by_us(ours.queues[name]) == oracle.declared_by_kombu(queue), name
        assert ours.spec(name).no_ack == bool(queue.no_ack)
    if theirs.conf.task_create_missing_queues:
        missing = oracle.declared_by_kombu(theirs.amqp.queues["missing"])
        assert oracle.declared_by_us(ours.spec("missing")) == missing


def theirs_or(library: str) -> Any:
    if library == "ours":
        return routing
    import types

    from kombu.common import Broadcast as TheirBroadcast

    return types.SimpleNamespace(
        Queue=kombu.Queue, Exchange=kombu.Exchange, binding=kombu.binding, Broadcast=TheirBroadcast
    )


@pytest.mark.parametrize(
    ("case", "include", "exclude"),
    [
        ("none", "", ""),
        ("none", "a,b", ""),
        ("none", "", "celery"),
        ("none", "celery,x,celery", "x"),
        ("list", "", ""),
        ("list", "a,topicq,new", "topicq"),
        ("list", "", "a,short,nobody"),
        ("list", "short", ""),
        ("list", "broadcast", ""),
        ("dict", "", "a,short"),
        ("closed", "a", ""),
    ],
)
@pytest.mark.parametrize("direct", [False, True])
def test_a_worker_serves_the_queues_that_celerys_would(
    case: str, include: str, exclude: str, direct: bool
) -> None:
    from celery.utils.nodenames import worker_direct as their_direct

    theirs = oracle.celery_app(SETTINGS[case])
    theirs.amqp.queues.select([name for name in include.split(",") if name])
    theirs.amqp.queues.deselect([name for name in exclude.split(",") if name])
    if direct:
        theirs.amqp.queues.select_add(their_direct("w1@host"))
    ours = Celery(
        "ours", broker="memory://w", set_as_current=False,
        changes={**SETTINGS[case](routing), "worker_direct": direct},
    )  # fmt: skip
    expected = list(theirs.amqp.queues.consume_from)
    if not expected:
        with pytest.raises(ImproperlyConfigured, match="no queue is left"):
            Worker(ours, hostname="w1@host", queues=include, exclude_queues=exclude)
        return
    worker = Worker(ours, hostname="w1@host", queues=include, exclude_queues=exclude)
    assert worker.queues == expected
    for name in expected:
        declared = oracle.declared_by_kombu(theirs.amqp.queues[name])
        assert oracle.declared_by_us(ours._sender.router.spec(name)) == declared


# -- queues, exchanges and bindings --------------------------------------------------------


def test_the_public_names_are_those_of_the_module() -> None:
    for name in ("Queue", "Exchange", "binding", "Broadcast"):
        assert getattr(minicelery, name) is getattr(routing, name)


def test_a_queue_is_what_it_says_and_equals_its_like() -> None:
    queue = Queue("q", Exchange("x", "topic", delivery_mode="transient"), "k.#", expires=5, durable=None)
    assert (queue.name, queue.exchange.type, queue.exchange.delivery_mode, queue.durable) == (
        "q",
        "topic",
        1,
        True,
    )
    assert queue == Queue("q", Exchange("x", "topic", delivery_mode=1), "k.#", expires=6)
    assert queue != Queue("q", Exchange("x", "topic"), "k.#") and queue != "q"
    assert len({queue, Queue("q")}) == 2 and len({Queue("q"), Queue("q")}) == 1
    assert repr(queue) == "<Queue 'q' <- <Exchange 'x' (topic)> -> 'k.#'>"
    assert queue.as_dict(recurse=True)["exchange"]["type"] == "topic"
    assert copy.copy(queue) == queue == pickle.loads(pickle.dumps(queue))


def test_bindings_may_stand_in_place_of_the_exchange() -> None:
    exchange = Exchange("x", "topic")
    queue = Queue("q", [exchange.binding("a.*"), binding("y", "k")])
    assert queue.exchange is None and queue == Queue(
        "q", bindings=[exchange.binding("a.*"), binding("y", "k")]
    )
    assert repr(queue.bindings[1]) == "<binding <Exchange 'y' (direct)> -> 'k'>"
    assert len({*queue.bindings, exchange.binding("a.*")}) == 2


def test_every_broadcast_has_a_queue_of_its_own() -> None:
    one, other = Broadcast("news"), Broadcast("news")
    assert one.name != other.name and one.name.startswith("bcast.") and one.auto_delete
    assert one.exchange == other.exchange == Exchange("news", "fanout") and one.alias == "news"
    assert Broadcast("news", queue="mine").name == "mine"
    assert Broadcast("news", queue="mine", unique=True).name.startswith("mine.")
    ours = router(task_queues=[one])
    assert ours.spec("news").name == one.name == ours.select(["news"])[0]
    assert ours.bound_to("news") == [] and ours.exchange("news") == ours.spec("news").bindings[0].exchange


def test_what_is_called_when_a_queue_is_declared_is_in_its_spec() -> None:
    told: list[Any] = []
    spec = router(task_queues=[Queue("q", on_declared=lambda *answer: told.append(answer))]).spec("q")
    assert spec.on_declared is not None
    spec.on_declared("q", 0, 0)
    assert told == [("q", 0, 0)]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Exchange("x", "toppic"), "Exchange 'x': type='toppic'.*did you mean 'topic'"),
        (lambda: Exchange("x", delivery_mode=3), "delivery_mode=3"),
        (lambda: Exchange(5), "Exchange: name must be text, got 5"),  # type: ignore[arg-type]
        (lambda: Queue(b"q"), "Queue: name must be text, got b'q'"),  # type: ignore[arg-type]
        (lambda: Queue("q", routing_key=5), "Queue 'q': routing_key must be text"),  # type: ignore[arg-type]
    ],
)
def test_an_entity_that_cannot_work_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=text):
        make()


# -- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("task_queues", "a", r"expected a list of queues.*got 'a'; write \['a'\]"),
        ("task_queues", [5], "5 is neither a Queue nor"),
        ("task_queues", [""], "'' is neither a Queue nor"),
        ("task_queues", [Queue()], "must be text that is not empty"),
        ("task_queues", {5: {}}, "got 5"),
        ("task_queues", {"a": 5}, "'a': expected a dict of options or a Queue, got 5"),
        (
            "task_queues",
            {"a": {"exchnage": "x"}},
            "'a': a queue has no option 'exchnage'; did you mean 'exchange'",
        ),
        ("task_queues", {"a": {"exchange_type": "fan"}}, "'a': 'exchange_type': 'fan': exchange types are"),
        ("task_queues", {"a": {"delivery_mode": 7}}, "'a': 'delivery_mode': 7 is not known"),
        ("task_queues", {"a": {"routing_key": 7}}, "'a': 'routing_key': expected text, got 7"),
        ("task_routes", 5, "5 is not a router"),
        ("task_routes", "no router", "'no router' is not the dotted path"),
        ("task_routes", {"t": 5}, "'t': expected a queue's name or a dict of options, got 5"),
        ("task_routes", {"t": None}, "'t': expected a queue's name"),
        ("task_routes", {"t": ""}, "'t': a queue's name must not be empty"),
        ("task_routes", {"t": {"queue": 5}}, "'t': 'queue': expected text, got 5"),
        ("task_routes", {"t": {"exchange_type": "dircet"}}, "'t': .*did you mean 'direct'"),
        ("task_routes", {5: "q"}, "5 is not the name of a task"),
        ("task_routes", {re.compile(b"t"): "q"}, "regex for bytes"),
        ("task_routes", [["t", "q"]], "'t' is not a pair"),
        ("task_default_exchange_type", "topics", "did you mean 'topic'"),
        ("task_create_missing_queue_exchange_type", "x", "exchange types are"),
        ("task_default_queue_type", "stream", "expected 'classic' or 'quorum'"),
        ("task_create_missing_queue_type", "quorums", "expected 'classic' or 'quorum'"),
        ("task_create_missing_queues", "no", "expected a boolean"),
        ("task_queue_max_priority", 300, "from 0 to 255"),
        ("task_default_queue", 5, "expected text"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_its_key_and_value(
    name: str, value: Any, text: str
) -> None:
    conf = Settings()
    with pytest.raises(ImproperlyConfigured, match=text) as caught:
        conf[name] = value
    assert name in str(caught.value) and not conf.changed()


def test_queues_can_be_named_in_the_environment() -> None:
    conf = Settings()
    conf.load_environment(
        {
            "MINICELERY_TASK_QUEUES": "a, b",
            "MINICELERY_TASK_ROUTES": f"{MODULE}.by_suffix",
            "MINICELERY_TASK_CREATE_MISSING_QUEUES": "off",
        }
    )
    ours = Router(conf)
    assert list(ours.queues.values()) == [plain_queue("a"), plain_queue("b")]
    with pytest.raises(QueueNotFound, match="'slow'"):
        ours.route("x.slow")


def test_pairs_and_queue_objects_are_routes_too() -> None:
    media = Queue("media", Exchange("mediax", "topic"), "m")
    ours = router(task_routes=[("a.*", "first"), ("a.b", "second"), ("v", media)])
    assert [ours.route(name).queue for name in ("a.b", "v", "x")] == ["first", "media", "celery"]
    assert (ours.route("v").exchange, ours.route("v").routing_key) == ("mediax", "m")
    assert ours.spec("media").bindings[0].exchange.type == "topic"


def test_an_unknown_queue_is_an_error_where_none_may_be_made() -> None:
    ours = router(task_create_missing_queues=False, task_queues={"mail": {}, "video": {"alias": "v"}})
    with pytest.raises(
        QueueNotFound, match=r"'mial' is not in task_queues .*'video', 'v'.*did you mean 'mail'"
    ):
        ours.spec("mial")
    with pytest.raises(QueueNotFound, match="'celery'"):
        ours.route("t")
    with pytest.raises(ImproperlyConfigured, match="--queues: queue 'vidoe'"):
        ours.select(["vidoe"])
    assert ours.route("t", options={"queue": "v"}).queue == "video"
    assert ours.spec("w1@host.dq2").bindings[0].exchange.name == "C.dq2"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no_such_module.route", "'no_such_module.route' can't be imported"),
        (f"{MODULE}.nothing", "can't be imported"),
        ("nothing", "can't be imported"),
        (f"{MODULE}.NOT_A_ROUTER", "is a int, not a router"),
    ],
)
def test_a_router_that_cannot_be_had_is_named(path: str, text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"task_routes: .*{text}"):
        router(task_routes=path).route("t")


@pytest.mark.parametrize("route", [5, {"queue": 5}, {"exchange_type": "x"}, ["q"]])
def test_a_router_that_answers_nonsense_is_told_so(route: Any) -> None:
    def answer(name: str, *_: Any, **__: Any) -> Any:
        return route

    with pytest.raises(ImproperlyConfigured, match="task_routes: the route of t: "):
        router(task_routes=answer).route("t")


def test_what_a_router_raises_reaches_the_caller() -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        router(task_routes=fails).route("t")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"queue": 5}, "queue=5 of t"),
        ({"queue": Queue()}, "queue=.*of t"),
        ({"exchange": 5}, "exchange=5 of t: expected text"),
        ({"routing_key": b"k"}, "routing_key=b'k' of t: expected text"),
        ({"exchange_type": "tpic"}, "exchange_type='tpic' of t: .*did you mean 'topic'"),
        ({"delivery_mode": 3}, "delivery_mode=3 of t: expected 1 or 2"),
    ],
)
def test_an_address_that_cannot_work_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        router().route("t", options=options)


# -- a call and its message ----------------------------------------------------------------


def test_a_router_sees_the_call(app: Celery) -> None:
    seen: list[Any] = []

    def look(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
        seen.append((name, args, kwargs, options, task))
        return {"queue": "q", "headers": {"by": "router"}}

    app.conf.task_routes = look
    task = app.task(lambda x, y=0: None, name="t", priority=3, expires=60)
    task.apply_async((1,), {"y": 2}, countdown=-1, queue=Queue("mine"), priority=None)
    (name, args, kwargs, options, seen_task) = seen[0]
    assert (name, args, kwargs, seen_task) == ("t", (1,), {"y": 2}, task)
    assert options["queue"].name == "mine" and options["priority"] is None and "countdown" not in options
    assert sent(app, "mine")[0].headers["by"] == "router"


def test_an_answer_that_depends_on_the_call_is_asked_for_each_time(app: Celery) -> None:
    app.conf.task_routes = oracle.by_argument
    task = app.task(lambda x: None, name="t")
    for number in (0, 1, 2, 4):
        task.delay(number)
    assert [len(sent(app, f"shard{number}")) for number in range(3)] == [1, 2, 1]
    task.apply_many([(0,), (1,), (2,)])
    assert [len(sent(app, f"shard{number}")) for number in range(3)] == [1, 1, 1]


def test_routes_by_name_cost_a_call_nothing(app: Celery) -> None:
    def cost(**options: Any) -> int:
        task.apply_async((1,), **options)
        return sum(calls_of(lambda: task.apply_async((1,), **options)).values())

    task = app.task(lambda x: None, name="t")
    app.send_task("t", (1,))
    without = cost()
    named = cost(queue="q")
    app.conf.task_routes = {"t": "routed", "*.mail": "mail"}
    app.conf.task_queues = [*WIDE, "routed"]
    assert cost() == without and named <= BUDGET["redis"][0]


def test_kombus_objects_are_addresses_too(app: Celery) -> None:
    exchange = kombu.Exchange("x", "topic", delivery_mode=1)
    queue = kombu.Queue("theirs", exchange, "a.*", queue_arguments={"x-max-length": 5})
    app.send_task("t", queue=queue)
    app.send_task("t", exchange=exchange, routing_key="a.b")
    messages = sent(app, "theirs")
    assert [(message.exchange, message.routing_key) for message in messages] == [("x", "a.*"), ("x", "a.b")]
    assert [message.properties.get("delivery_mode") for message in messages] == [1, None]
    assert app._sender.router.spec("theirs").arguments == {"x-max-length": 5}


def test_changed_settings_take_effect_at_the_next_call(app: Celery) -> None:
    task = app.task(lambda: None, name="t")
    task.delay()
    app.conf.task_routes = {"t": {"queue": "routed", "priority": 5}}
    task.delay()
    app.send_task("t")
    task.delay()
    task.queue = "own"
    task.delay()
    assert [len(sent(app, queue)) for queue in ("celery", "routed", "own")] == [1, 3, 1]


def test_a_transient_message_says_so_in_its_properties(app: Celery) -> None:
    app.conf.task_default_delivery_mode = "transient"
    task = app.task(lambda: None, name="t")
    task.delay()
    task.apply_async(delivery_mode=2)
    assert [message.properties.get("delivery_mode") for message in sent(app, "celery")] == [1, None]


def test_calls_that_name_a_queue_need_no_default_one(app: Celery) -> None:
    app.conf.update(task_queues=["a"], task_create_missing_queues=False)
    task = app.task(lambda: None, name="t")
    task.apply_async(queue="a")
    with pytest.raises(QueueNotFound, match="'celery' is not in task_queues"):
        task.delay()
    assert len(sent(app, "a")) == 1


def test_signals_tell_the_address_that_is_published_to(app: Celery) -> None:
    app.conf.task_queues = [Queue("q", Exchange("x", "topic"), "a.#")]
    told: list[Any] = []

    def tell(exchange: str = "", routing_key: str = "", **_: Any) -> None:
        told.append((exchange, routing_key))

    before_task_publish.connect(tell)
    after_task_publish.connect(tell)
    try:
        app.send_task("t", queue="q", routing_key="a.b")
    finally:
        before_task_publish.disconnect(tell)
        after_task_publish.disconnect(tell)
    assert told == [("x", "a.b")] * 2


# -- without exchanges ---------------------------------------------------------------------

WIDE = [
    Queue("eu", Exchange("mail", "topic"), "mail.eu.*"),
    Queue("all", Exchange("mail", "topic"), "#"),
    Queue("both", [binding(Exchange("mail", "topic"), "*.us.#"), binding(Exchange("fan", "fanout"))]),
    Queue("fan1", Exchange("fan", "fanout")),
    Queue("direct", Exchange("one", "direct"), "k"),
    Queue("picky", Exchange("heads", "headers"), binding_arguments={"tenant": "acme", "x-match": "all"}),
]


@pytest.mark.parametrize(
    ("options", "queues"),
    [
        ({"exchange": "mail", "routing_key": "mail.eu.x"}, ["eu", "all"]),
        ({"exchange": "mail", "routing_key": "mail.us"}, ["all", "both"]),
        ({"queue": "eu"}, ["eu", "all"]),
        ({"queue": "fan1"}, ["both", "fan1"]),
        ({"exchange": "one", "routing_key": "k"}, ["direct"]),
        ({"exchange": "new", "routing_key": "new"}, ["new"]),
        ({"queue": "picky", "headers": {"tenant": "acme"}}, ["picky"]),
        ({"exchange": "C.dq2", "routing_key": "w1@host"}, ["w1@host.dq2"]),
        ({"queue": "direct"}, ["direct"]),
    ],
    ids=str,
)
def test_a_copy_goes_to_every_queue_that_the_exchange_would_feed(
    app: Celery, options: dict[str, Any], queues: list[str]
) -> None:
    app.conf.task_queues = WIDE
    result = app.send_task("t", **options)
    everywhere = {*queues, *(queue.name for queue in WIDE), "celery"}
    found = {name: messages for name in everywhere if (messages := sent(app, name))}
    assert sorted(found) == sorted(queues)
    copies = [message for messages in found.values() for message in messages]
    assert {message.id for message in copies} == {result.id} and len(copies) == len(queues)
    assert len({id(message.headers) for message in copies}) == len(copies)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"exchange": "mial", "routing_key": "k"},
            "exchange 'mial' leads to no queue.*did you mean 'mail'.*queue=",
        ),
        ({"exchange": "one", "routing_key": "l"}, "none of its bindings has the routing key 'l'"),
        ({"queue": "picky"}, "'heads' leads to no queue"),
        ({"queue": "news"}, "a Broadcast without queue= .* use RabbitMQ"),
        ({"queue": "odd"}, "'x-delayed-message', which needs a broker with exchanges"),
    ],
    ids=str,
)
def test_a_message_that_no_queue_would_get_is_refused(
    app: Celery, options: dict[str, Any], text: str
) -> None:
    app.conf.task_queues = [*WIDE, Broadcast("news"), Queue("odd", Exchange("delays", "x-delayed-message"))]
    with pytest.raises(ImproperlyConfigured, match=f"(?s){text}"):
        app.send_task("t", **options)
    assert all(app.broker.size(name) == 0 for name in app._sender.router.queues)


def test_a_named_broadcast_reaches_the_queues_of_that_exchange(app: Celery) -> None:
    app.conf.task_queues = [Broadcast("news", queue="w1"), Broadcast("news", queue="w2")]
    app.send_task("t", queue="news")
    assert (app.broker.size("w1"), app.broker.size("w2")) == (1, 1)


def test_a_broker_with_exchanges_gets_the_message_once(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.task_queues = WIDE
    monkeypatch.setattr(type(app.broker), "has_exchanges", True, raising=False)
    app.send_task("t", exchange="mail", routing_key="mail.eu.x")
    (message,) = sent(app, "eu")
    assert (message.exchange, message.routing_key) == ("mail", "mail.eu.x")


def test_a_retry_goes_to_the_queue_it_came_from_and_to_no_other(app: Celery) -> None:
    app.conf.task_queues = WIDE

    @app.task(bind=True, name="t")
    def task(self: Any, other: dict[str, Any]) -> None:
        raise self.retry(countdown=0, **other)

    executor = Executor(app, "w1@host")
    seen = []
    for other in ({}, {"priority": 3}, {"queue": "direct"}, {"exchange": "mail", "routing_key": "mail.us"}):
        task.apply_async((other,), exchange="mail", routing_key="mail.eu.x")
        (message,) = sent(app, "eu")
        sent(app, "all")
        (again,) = executor.run(Delivery(message, 1)).publish
        seen.append((again.exchange, again.routing_key, again.queue))
    assert seen == [("", "eu", "eu"), ("", "eu", "eu"), ("", "direct", "direct"), ("mail", "mail.us", "eu")]


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("a.b", "a.b", True), ("a.b", "a", False), ("a", "a.b", False),
        ("*", "a", True), ("*", "", False), ("*", "a.b", False), ("a.*", "a.b", True), ("a.*", "a", False),
        ("#", "", True), ("#", "a.b.c", True), ("a.#", "a", True), ("a.#", "a.b.c", True), ("a.#", "b", False),
        ("#.c", "a.b.c", True), ("#.c", "c", True), ("#.c", "c.d", False), ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True), ("*.#", "", False), ("*.#", "a", True), ("#.#", "", True),
        ("#.*.#", "", False), ("mail.#", "mail.#", True), ("", "", True), ("", "a", False),
        ("a.#.b.#.c", "a.x.b.y.b.c", True), ("a+", "aa", False), ("*.*", "a.b", True),
    ],
)  # fmt: skip
def test_topics_match_word_by_word(pattern: str, key: str, expected: bool) -> None:
    assert topic_matches(pattern, key) is expected


@pytest.mark.parametrize(
    ("arguments", "headers", "expected"),
    [
        ({}, {}, True),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1, "b": 2, "x-match": "any"}, {"a": 1}, True),
        ({"a": 1, "x-match": "any"}, {"a": 2}, False),
        ({"a": None}, {"a": 5}, True),
        ({"x-match": "any"}, {}, False),
    ],
)
def test_headers_match_all_or_any(arguments: Any, headers: Any, expected: bool) -> None:
    assert headers_match(arguments, headers) is expected


def test_the_queue_of_one_worker_is_known_by_its_name() -> None:
    assert worker_direct("w1@host").name == "w1@host.dq2"
    queue = Queue("q")
    assert worker_direct(queue) is queue
    assert router(worker_direct=True).select([], [], "w1@host") == ["celery", "w1@host.dq2"]
    assert router().spec("w1@host.dq2").bindings[0].key == "w1@host"
    assert router().spec("plain.dq2") == plain_queue("plain.dq2")
