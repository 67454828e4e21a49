"""What a task's options make of its calls: rates, rooms, keys; and admission in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from minicelery import Celery, Task
from minicelery.broker import open_limits
from minicelery.exceptions import ImproperlyConfigured, InvalidTaskError
from minicelery.limits import LONGEST_UNIQUE, Ask, Wait, interval_of, of_task
from minicelery.message import TURN_HEADER, UNIQUE_HEADER, Delivery, Outcome, Verdict, new_id
from minicelery.resending import retry_message
from minicelery.worker.admission import Admission
from minicelery.worker.executor import Executor


@pytest.fixture
def app() -> Iterator[Celery]:
    with Celery("limits", broker=f"memory://{new_id()}", set_as_current=False) as app:
        yield app


# -- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", ["10/m", "3/s", "100/h", "0.5/s", "7", 2, 0.25, "1e2/m", "0", 0, None, "0/m"], ids=str
)
def test_rates_are_read_as_celery_reads_them(rate: Any) -> None:
    time_module = pytest.importorskip("celery.utils.time")
    per_second = time_module.rate(rate)
    assert interval_of(rate, "") == pytest.approx(1 / per_second if per_second else 0.0)


@pytest.mark.parametrize("rate", ["10/d", "ten", "", "-1/s", -1, "1/s/s", True, [1], float("inf")], ids=str)
def test_a_wrong_rate_is_refused_with_what_is_accepted(app: Celery, rate: Any) -> None:
    task = app.task(lambda: None, name="t")
    task.rate_limit = rate
    with pytest.raises(ValueError, match=r"rate_limit=.* of t: expected a number.*'10/m'"):
        of_task(task, None)


def make(app: Celery, **options: Any) -> Task[..., Any]:
    """A task of two parameters, its options not checked yet."""

    @app.task(name="t", typing=False)
    def task(user: object = None, size: int = 1, *, deep: bool = False) -> None:
        pass

    for name, value in options.items():
        setattr(task, name, value)
    return task


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency_limit": 0}, "concurrency_limit=0 of t: expected a whole number"),
        ({"concurrency_limit": "3"}, "concurrency_limit='3' of t"),
        ({"concurrency_limit": True}, "concurrency_limit=True of t"),
        ({"unique": 0}, "unique=0 of t: expected True, seconds greater than 0"),
        ({"unique": "yes"}, "unique='yes' of t"),
        ({"unique": timedelta(0)}, "unique=.* of t"),
        ({"rate_limit": 1, "rate_limit_key": 3}, "rate_limit_key=3 of t: expected the name of a parameter"),
        ({"rate_limit": 1, "rate_limit_key": ()}, r"rate_limit_key=\(\) of t"),
        ({"concurrency_limit": 1, "concurrency_limit_key": "usr"}, "no parameter 'usr'.*user, size, deep"),
        ({"unique": True, "unique_key": ("user", 1)}, "unique_key=.* of t"),
        ({"concurrency_limit_key": "user"}, "concurrency_limit_key='user' of t needs concurrency_limit="),
        ({"unique_key": "user"}, "unique_key='user' of t needs unique="),
        ({"rate_limit_key": "usr"}, "no parameter 'usr'"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_naming_task_option_and_value(
    app: Celery, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        of_task(make(app, **options), None)


def test_a_wrong_option_is_refused_where_the_task_is_declared(app: Celery) -> None:
    with pytest.raises(ValueError, match=r"rate_limit='fast' of t"):
        app.task(lambda: None, name="t", rate_limit="fast")


def test_a_task_without_options_has_no_limits(app: Celery) -> None:
    assert of_task(make(app), app.conf) is None
    assert of_task(make(app, rate_limit=0, unique=False), app.conf) is None
    assert open_limits(app) is None


def test_the_default_rate_is_for_tasks_that_have_none(app: Celery) -> None:
    app.conf.task_default_rate_limit = "2/s"
    limits = of_task(make(app), app.conf)
    assert limits is not None
    assert limits.interval == 0.5
    assert of_task(make(app, rate_limit=0), app.conf) is None


def test_rate_limits_can_be_switched_off_and_others_stay(app: Celery) -> None:
    app.conf.worker_disable_rate_limits = True
    assert of_task(make(app, rate_limit="1/s"), app.conf) is None
    limits = of_task(make(app, rate_limit="1/s", concurrency_limit=2), app.conf)
    assert limits is not None
    assert (limits.interval, limits.size) == (0, 2)


def test_unique_is_true_or_a_window(app: Celery) -> None:
    found = [of_task(make(app, unique=value), app.conf) for value in (True, 90, 0.5, timedelta(minutes=2))]
    assert [(one.window, one.until_done) for one in found if one is not None] == [
        (LONGEST_UNIQUE, True), (90, False), (0.5, False), (120, False)
    ]  # fmt: skip


# -- keys ----------------------------------------------------------------------------------


def room_of(task: Task[..., Any], *args: Any, **kwargs: Any) -> str | None:
    limits = of_task(task, task.app.conf)
    assert limits is not None
    ask = limits.ask("id", args, kwargs)
    return None if ask is None else ask.room


def test_without_a_key_the_limit_is_of_the_whole_task(app: Celery) -> None:
    task = make(app, concurrency_limit=1)
    assert room_of(task, 1) == room_of(task, 2) == "room.t"


def test_a_key_is_a_parameter_however_it_is_given(app: Celery) -> None:
    task = make(app, concurrency_limit=1, concurrency_limit_key="user")
    assert room_of(task, "ann", 3) == room_of(task, user="ann", deep=True) == "room.t:ann"
    assert room_of(task, "bob") == "room.t:bob"
    assert room_of(task, 7) == "room.t:7"
    assert room_of(task) == "room.t:null"


def test_a_key_may_be_several_parameters_or_a_function(app: Celery) -> None:
    several = make(app, concurrency_limit=1, concurrency_limit_key=("size", "user"))
    assert room_of(several, "ann") == 'room.t:[1,"ann"]'
    computed = make(app, concurrency_limit=1, concurrency_limit_key=lambda user, **_: user.split("@")[1])
    assert room_of(computed, "ann@x", size=3) == "room.t:x"


def test_a_method_of_a_class_is_a_key_too(app: Celery) -> None:
    class Mail(app.Task):  # type: ignore[name-defined]
        name = "mail"
        concurrency_limit = 1

        def concurrency_limit_key(self, user: str) -> str:
            return f"{self.name}-{user}"

        def run(self, user: str) -> None:
            pass

    assert room_of(app.register_task(Mail()), "ann") == "room.mail:mail-ann"


def test_a_bound_task_is_asked_for_its_arguments_without_itself(app: Celery) -> None:
    @app.task(name="bound", bind=True, concurrency_limit=1, concurrency_limit_key="user")
    def bound(self: Any, user: str) -> None:
        pass

    assert room_of(bound, "ann") == "room.bound:ann"


def test_long_and_odd_keys_become_digests(app: Celery) -> None:
    task = make(app, concurrency_limit=1, concurrency_limit_key="user")
    long, odd = room_of(task, "a" * 500), room_of(task, "ü\n")
    assert long is not None
    assert odd is not None
    assert len(long) == len(odd) == len("room.t:") + 32
    assert long != odd


def test_arguments_that_do_not_fit_are_left_to_the_call_to_refuse(app: Celery) -> None:
    task = make(app, concurrency_limit=1, concurrency_limit_key="user")
    assert room_of(task, 1, 2, 3, 4) is None


@pytest.mark.parametrize("function", [lambda user: user.missing, lambda user: 3], ids=["raises", "no text"])
def test_a_key_function_that_fails_is_named(app: Celery, function: Any) -> None:
    task = make(app, concurrency_limit=1, concurrency_limit_key=function)
    with pytest.raises(InvalidTaskError, match="concurrency_limit_key of t"):
        room_of(task, "ann")


def unique_of(task: Task[..., Any], *args: Any, **kwargs: Any) -> str:
    limits = of_task(task, task.app.conf)
    assert limits is not None
    found = limits.unique(args, kwargs)
    assert found is not None
    return found[0]


def test_the_same_call_is_the_same_however_it_is_written(app: Celery) -> None:
    task = make(app, unique=True)
    moment = datetime(2024, 5, 1)
    same = [
        unique_of(task, {"a": 1, "b": moment}),
        unique_of(task, {"b": moment, "a": 1}, 1),
        unique_of(task, user={"a": 1, "b": moment}, size=1, deep=False),
    ]
    assert len(set(same)) == 1
    assert unique_of(task, {"a": 1, "b": moment}, 2) not in same
    assert unique_of(task, object()).startswith("unique.t:")


def test_calls_of_two_tasks_are_never_the_same(app: Celery) -> None:
    one, two = (app.task(lambda x: None, name=name, unique=True) for name in ("a", "b"))
    assert unique_of(one, 1) != unique_of(two, 1)


# -- the rules, by a clock of the test's own -----------------------------------------------


class Line:
    """A gate in memory whose messages are called into a list."""

    def __init__(self, app: Celery) -> None:
        store: Any = app.broker.limits(parks=True)._store  # type: ignore[attr-defined]
        self.gates = store.gates

    def ask(self, id: str, now: float, turn: float | None = None, interval: float = 10.0) -> Wait | None:
        wait: Wait | None = self.gates.admit(Ask(id, turn, rate="rate.t", interval=interval), now, parks=True)
        return wait


def test_one_that_is_a_little_late_does_not_make_the_next_ones_late(app: Celery) -> None:
    line = Line(app)
    assert line.ask("a", 1000.0) is None
    assert line.ask("b", 1010.4, turn=1000.0) is None
    assert line.ask("c", 1020.0, turn=1000.0) is None


def test_one_that_is_very_late_has_the_next_one_keep_its_distance(app: Celery) -> None:
    line = Line(app)
    assert line.ask("a", 1000.0) is None
    assert line.ask("b", 1017.0, turn=1000.0) is None
    assert line.ask("c", 1020.0, turn=1000.0) is not None
    assert line.ask("c", 1027.0, turn=1000.0) is None


def test_who_has_not_waited_saves_nothing_up(app: Celery) -> None:
    line = Line(app)
    assert line.ask("a", 1000.0) is None
    assert line.ask("b", 1010.4) is None
    assert line.ask("c", 1020.0) is not None


def test_places_outlive_a_silence_and_end_afterwards(app: Celery) -> None:
    gates = Line(app).gates

    def enter(id: str, now: float) -> Any:
        return gates.admit(Ask(id, room="room.t", size=1), now, parks=True)

    assert enter("a", 1000.0) is None
    assert enter("b", 1100.0) is not None  # a's place was up at 1060, and nobody could say a word
    assert enter("b", 1114.0) is not None
    assert enter("b", 1116.0) is None


# -- sending unique calls ------------------------------------------------------------------


def test_a_second_call_returns_the_first_ones_id(app: Celery) -> None:
    task = app.task(lambda x, y=1: None, name="u", unique=True)
    first = task.delay(1)
    assert task.delay(1).id == task.apply_async((1,), {"y": 1}, countdown=5).id == first.id
    assert app.send_task("u", (1,)).id == first.id
    assert task.delay(2).id != first.id
    assert app.broker.size("celery") == 2


def test_many_calls_at_once_are_told_apart(app: Celery) -> None:
    task = app.task(lambda x: None, name="u", unique=60)
    first, other, again = task.apply_many([(1,), (2,), (1,)])
    assert again.id == first.id != other.id
    assert app.broker.size("celery") == 2


def test_a_call_that_is_not_sent_is_not_announced_as_sent(app: Celery) -> None:
    from minicelery import signals

    task = app.task(lambda x: None, name="u", unique=True)
    seen: list[str] = []

    def note(headers: Any = None, **_: Any) -> None:
        seen.append(headers["id"])

    signals.after_task_publish.connect(note)
    first = task.delay(1)
    task.delay(1)
    signals.after_task_publish.disconnect(note)
    assert seen == [first.id]


def test_an_eager_call_is_never_a_double(app: Celery) -> None:
    app.conf.task_always_eager = True
    task = app.task(lambda x: x, name="u", unique=True)
    assert task.delay(1).id != task.delay(1).id


def test_a_key_function_that_fails_fails_the_call(app: Celery) -> None:
    task = app.task(lambda x: None, name="u", unique=True, unique_key=lambda x: x.missing)
    with pytest.raises(ValueError, match="unique_key of u raised AttributeError"):
        task.delay(1)


def test_a_retry_keeps_the_key_and_leaves_the_line(app: Celery) -> None:
    task = app.task(lambda x: None, name="u", unique=True)
    task.delay(1)
    consumer = app.broker.consumer(["celery"], "w", None)
    (delivery,) = consumer.swap([], 1, 0)
    delivery.message.headers[TURN_HEADER] = 1.5
    call = Executor(app).begin(delivery)
    request: Any = call.request  # type: ignore[union-attr]
    for args in (request.args, [2]):
        again = retry_message(app._sender, request, args, request.kwargs, 1, None, {})
        assert again.headers[UNIQUE_HEADER] == delivery.message.headers[UNIQUE_HEADER]
        assert TURN_HEADER not in again.headers
        assert again.unique is None
    consumer.close()


def test_a_broker_without_limits_refuses_a_unique_call_naming_the_setting() -> None:
    with Celery("x", broker="amqp://nowhere.invalid//", set_as_current=False) as app:
        task = app.task(lambda: None, name="u", unique=True)
        with pytest.raises(ImproperlyConfigured, match=r"limits of .*\bu\b.*task_limits_url"):
            task.delay()
        with pytest.raises(ImproperlyConfigured, match=r"limits of .*\bu\b.*task_limits_url"):
            open_limits(app)


def test_a_store_that_keeps_no_limits_is_refused() -> None:
    with Celery("x", broker="amqp://nowhere.invalid//", set_as_current=False) as app:
        app.task(lambda: None, name="u", unique=True)
        app.conf.task_limits_url = "amqp://other.invalid//"
        with pytest.raises(ImproperlyConfigured, match=r"task_limits_url can't keep the limits of .*\bu\b"):
            open_limits(app)


def test_calls_are_claimed_beside_the_broker_where_a_store_is_named(redis_url: str) -> None:
    with Celery("x", broker=f"memory://{new_id()}", set_as_current=False) as app:
        app.conf.task_limits_url = redis_url
        task = app.task(lambda x: None, name="u", unique=True)
        first = task.delay(1)
        assert task.delay(1).id == first.id
        assert app.broker.size("celery") == 1
        app._sender.close()


def test_a_claim_is_given_up_where_the_call_could_not_be_sent(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Celery("x", broker=f"memory://{new_id()}", set_as_current=False) as app:
        app.conf.task_limits_url = redis_url
        task = app.task(lambda x: None, name="u", unique=True)

        def fail(*_: object, **__: object) -> None:
            raise OSError("no way")

        with monkeypatch.context() as patch:
            patch.setattr(app.broker, "publish", fail)
            with pytest.raises(OSError, match="no way"):
                task.delay(1)
        task.delay(1)
        assert app.broker.size("celery") == 1
        app._sender.close()


# -- admission -----------------------------------------------------------------------------


class Child:
    """An executor with its admission, and what it has fetched."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.executor = Executor(app, "w@host")
        store = open_limits(app)
        assert store is not None
        self.executor.admission = self.admission = Admission(app, store)
        self.consumer = app.broker.consumer(["celery"], f"w-{new_id()}", None)

    def fetch(self) -> Delivery:
        (delivery,) = self.consumer.swap([], 1, 0)
        return delivery

    def end(self, outcome: Any) -> Outcome:
        """Settle it, as a worker does."""
        assert type(outcome) is Outcome
        self.admission.free(outcome)
        self.consumer.swap([outcome], 0, 0)
        return outcome


@pytest.fixture
def child(app: Celery) -> Iterator[Child]:
    app.task(lambda x=0: x, name="alone", concurrency_limit=1, unique=True)
    app.task(lambda: None, name="paced", rate_limit="1/h")
    app.task(lambda: None, name="plain")
    made = Child(app)
    yield made
    made.consumer.close()


def test_a_call_begins_waits_and_makes_room_when_it_has_ended(app: Celery, child: Child) -> None:
    for x in range(2):
        app.tasks["alone"].delay(x)
    call = child.executor.begin(child.fetch())
    waits = child.end(child.executor.begin(child.fetch()))
    assert waits.verdict is Verdict.PARK
    assert waits.release == ()
    assert app.broker.delayed("celery") == 1
    ended = child.end(child.executor.call(call))  # type: ignore[arg-type]
    assert ended.release[0] == "room.alone"
    assert not isinstance(child.executor.begin(child.fetch()), Outcome)


def test_a_plain_call_is_asked_nothing(app: Celery, child: Child) -> None:
    app.tasks["plain"].delay()
    delivery = child.fetch()
    outcome = child.end(child.executor.run(delivery))
    assert outcome.release == ()
    assert delivery.admitted == 0.0


def test_a_unique_call_that_ended_is_not_there_any_more(app: Celery, child: Child) -> None:
    task = app.tasks["alone"]
    first = task.delay(1)
    child.end(child.executor.run(child.fetch()))
    assert task.delay(1).id != first.id


def test_a_window_lasts_longer_than_the_call(app: Celery, child: Child) -> None:
    task = app.task(lambda: None, name="window", unique=60)
    first = task.delay()
    child.end(child.executor.run(child.fetch()))
    assert task.delay().id == first.id


def test_a_retry_frees_the_place_and_keeps_the_key(app: Celery, child: Child) -> None:
    @app.task(name="tried_again", bind=True, concurrency_limit=1, unique=True)
    def tried_again(self: Any) -> None:
        raise self.retry(countdown=60)

    first = tried_again.delay()
    outcome = child.end(child.executor.run(child.fetch()))
    assert outcome.release == ("room.tried_again",)
    assert tried_again.delay().id == first.id


def test_a_revoked_call_frees_its_key_and_the_place_it_was_called_to(app: Celery, child: Child) -> None:
    task = app.tasks["alone"]
    for x in range(3):
        task.delay(x)
    call = child.executor.begin(child.fetch())
    for _ in range(2):
        child.end(child.executor.begin(child.fetch()))
    child.end(child.executor.call(call))  # type: ignore[arg-type]
    delivery = child.fetch()
    delivery.revoked = True
    outcome = child.end(child.executor.begin(delivery))
    assert outcome.release[0] == "room.alone"
    assert len(outcome.release) == 2
    assert not isinstance(child.executor.begin(child.fetch()), Outcome)


def test_an_expired_call_passes_its_turn_on(app: Celery, child: Child) -> None:
    app.tasks["paced"].apply_async(expires=60)
    delivery = child.fetch()
    delivery.message.headers |= {TURN_HEADER: time.time(), "expires": "2020-01-01T00:00:00+00:00"}
    assert child.end(child.executor.begin(delivery)).release == ("rate.paced",)


def test_a_lost_run_frees_what_it_held(app: Celery, child: Child) -> None:
    app.tasks["alone"].delay()
    assert not isinstance(child.executor.begin(child.fetch()), Outcome)
    heir = Child(app)
    (left,) = heir.consumer.adopt(child.consumer.name, dict.fromkeys(range(1000), "killed"))
    outcome = heir.end(heir.executor.begin(left))
    assert outcome.release[0] == "room.alone"
    assert len(outcome.release) == 2  # the key as well: it has failed
    app.tasks["alone"].delay()
    assert not isinstance(heir.executor.begin(heir.fetch()), Outcome)
    heir.consumer.close()


def test_what_is_given_back_unbegun_frees_nothing(app: Celery, child: Child) -> None:
    app.tasks["alone"].delay()
    outcome = Outcome(child.fetch(), Verdict.REQUEUE)
    assert child.admission.free(outcome).release == ()


def test_a_key_function_that_fails_sends_the_message_to_the_dead_letters(app: Celery) -> None:
    app.task(lambda x: None, name="odd", rate_limit=1, rate_limit_key=lambda x: x.missing)
    child = Child(app)
    app.tasks["odd"].delay(1)
    outcome = child.end(child.executor.begin(child.fetch()))
    assert outcome.verdict is Verdict.REJECT
    assert outcome.reason is not None
    assert "rate_limit_key of odd" in outcome.reason
    child.consumer.close()


def test_while_the_store_is_away_nothing_limited_begins(app: Celery) -> None:
    app.conf.task_limits_url = "redis://127.0.0.1:1/0"
    app.task(lambda: None, name="alone", concurrency_limit=1)
    child = Child(app)
    app.tasks["alone"].delay()
    before = time.time()
    outcome = child.end(child.executor.begin(child.fetch()))
    (later,) = outcome.publish
    assert later.due is not None
    assert before + 0.5 < later.due < time.time() + 3
    assert app.broker.delayed("celery") == 1
    child.consumer.close()


def test_a_message_waits_in_the_brokers_delay_where_limits_are_kept_elsewhere(
    app: Celery, redis_url: str
) -> None:
    app.conf.task_limits_url = redis_url
    app.task(lambda: None, name="paced", rate_limit="1/m")
    child = Child(app)
    before = time.time()
    for _ in range(2):
        app.tasks["paced"].delay()
    assert not isinstance(child.executor.begin(child.fetch()), Outcome)
    outcome = child.end(child.executor.begin(child.fetch()))
    (later,) = outcome.publish
    assert later.due is not None
    assert before + 59 < later.due < time.time() + 61
    assert later.headers[TURN_HEADER] == pytest.approx(later.due, abs=20)
    child.consumer.close()
    child.admission.store.close()
