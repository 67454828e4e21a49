"""Signals: who is called, with what, and what a bad receiver can do."""

from __future__ import annotations

import gc
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from minicelery import signals
from minicelery.signals import Signal


class NamedTask:
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def signal() -> Signal:
    return Signal("test", ("value",))


def test_receivers_is_falsy_until_someone_listens_and_after_all_have_left(signal: Signal) -> None:
    def receive(**kwargs: Any) -> None: ...

    assert not signal.receivers
    signal.connect(receive)
    assert signal.receivers
    assert signal.disconnect(receive)
    assert not signal.receivers


def test_a_receiver_gets_signal_sender_and_the_keywords(signal: Signal) -> None:
    seen: list[dict[str, Any]] = []

    def receive(**kwargs: Any) -> str:
        seen.append(kwargs)
        return "answer"

    signal.connect(receive)
    assert signal.send(sender="me", value=1) == [(receive, "answer")]
    assert seen == [{"signal": signal, "sender": "me", "value": 1}]


def test_the_bare_decorator_connects_and_returns_the_function(signal: Signal) -> None:
    @signal.connect
    def receive(**kwargs: Any) -> int:
        return 1

    assert receive() == 1
    assert signal.send(None) == [(receive, 1)]


def test_the_decorator_with_options_connects_and_returns_the_function(signal: Signal) -> None:
    @signal.connect(sender="proj.add", weak=False)
    def receive(**kwargs: Any) -> int:
        return 1

    assert receive() == 1
    assert signal.send("proj.add") == [(receive, 1)]
    assert signal.send("proj.mul") == []


def test_receivers_are_called_in_the_order_they_connected(signal: Signal) -> None:
    signal.connect(lambda **kwargs: "first", weak=False)
    signal.connect(lambda **kwargs: "second", weak=False)
    assert [response for _, response in signal.send(None)] == ["first", "second"]


def test_a_failing_receiver_is_logged_and_its_exception_is_the_response(
    signal: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError("receiver failed")

    @signal.connect
    def fail(**kwargs: Any) -> None:
        raise error

    @signal.connect
    def work(**kwargs: Any) -> str:
        return "still called"

    assert signal.send(None) == [(fail, error), (work, "still called")]
    assert "receiver failed" in caplog.text
    assert "signal test" in caplog.text


def test_system_exit_comes_through(signal: Signal) -> None:
    @signal.connect
    def leave(**kwargs: Any) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        signal.send(None)


def test_send_robust_is_send() -> None:
    assert Signal.send_robust is Signal.send


def test_a_receiver_without_kwargs_is_refused_with_what_to_add(signal: Signal) -> None:
    def receive(sender: Any) -> None: ...

    with pytest.raises(ValueError, match=r"add \*\*kwargs to <function .*receive"):
        signal.connect(receive)
    assert not signal.receivers


def test_what_can_not_be_called_is_refused(signal: Signal) -> None:
    with pytest.raises(TypeError, match=r"'proj\.add' can't be one"):
        signal.connect("proj.add")  # type: ignore[call-overload]  # the mistake under test


def test_a_dead_receiver_is_dropped(signal: Signal) -> None:
    def receive(**kwargs: Any) -> None: ...

    signal.connect(receive)
    del receive
    gc.collect()
    assert not signal.receivers
    assert signal.send(None) == []


def test_weak_false_keeps_a_receiver_that_nothing_else_refers_to(signal: Signal) -> None:
    signal.connect(lambda **kwargs: "kept", weak=False)
    gc.collect()
    assert [response for _, response in signal.send(None)] == ["kept"]


def test_a_bound_method_lives_as_long_as_its_object(signal: Signal) -> None:
    class Listener:
        def receive(self, **kwargs: Any) -> str:
            return "method"

    listener = Listener()
    signal.connect(listener.receive)
    gc.collect()
    assert [response for _, response in signal.send(None)] == ["method"]
    del listener
    gc.collect()
    assert not signal.receivers


def test_a_bound_method_can_be_disconnected(signal: Signal) -> None:
    class Listener:
        def receive(self, **kwargs: Any) -> None: ...

    listener = Listener()
    signal.connect(listener.receive)
    assert signal.disconnect(listener.receive)
    assert not signal.receivers


def test_connecting_twice_calls_once(signal: Signal) -> None:
    def receive(**kwargs: Any) -> int:
        return 1

    signal.connect(receive)
    signal.connect(receive)
    assert signal.send(None) == [(receive, 1)]


def test_one_receiver_can_listen_to_several_senders(signal: Signal) -> None:
    add, multiply = NamedTask("add"), NamedTask("multiply")

    @signal.connect(sender=add)
    @signal.connect(sender=multiply)
    def receive(sender: Any, **kwargs: Any) -> str:
        return str(sender.name)

    assert [signal.send(task)[0][1] for task in (add, multiply)] == ["add", "multiply"]
    assert signal.send(NamedTask("other")) == []
    assert signal.disconnect(receive, sender=add)
    assert signal.send(add) == []
    assert len(signal.send(multiply)) == 1


def test_the_second_receiver_with_a_dispatch_uid_is_not_added(signal: Signal) -> None:
    signal.connect(lambda **kwargs: "first", weak=False, dispatch_uid="once")
    signal.connect(lambda **kwargs: "second", weak=False, dispatch_uid="once")
    assert [response for _, response in signal.send(None)] == ["first"]
    assert signal.disconnect(dispatch_uid="once")
    assert not signal.receivers


def test_disconnect_says_no_where_nothing_was_connected(signal: Signal) -> None:
    def receive(**kwargs: Any) -> None: ...

    signal.connect(receive, sender="other")
    assert not signal.disconnect(receive)
    assert not signal.disconnect(dispatch_uid="unknown")


@pytest.mark.parametrize("by_name", [True, False])
def test_a_task_and_its_name_are_the_same_sender(signal: Signal, by_name: bool) -> None:
    task = NamedTask("proj.tasks.add")
    wanted, sender = ("proj.tasks.add", task) if by_name else (task, "proj.tasks.add")
    signal.connect(lambda **kwargs: "heard", sender=wanted, weak=False)
    assert signal.has_listeners(sender)
    assert [response for _, response in signal.send(sender)] == ["heard"]
    assert not signal.has_listeners("proj.tasks.mul")
    assert signal.send(NamedTask("proj.tasks.mul")) == []


def test_connecting_does_not_look_into_the_sender(signal: Signal) -> None:
    class Untouchable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = None  # type: ignore[assignment]  # and not hashed either

    def receive(**kwargs: Any) -> None: ...

    signal.connect(receive, sender=Untouchable())
    signal.connect(receive, sender=Untouchable())
    assert len(signal.receivers) == 2


def test_retry_calls_a_failing_receiver_again(signal: Signal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "RETRY_WAITS", (0.0, 0.0))
    tries: list[int] = []

    @signal.connect(retry=True)
    def receive(**kwargs: Any) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("not yet")
        return "done"

    assert signal.send(None) == [(receive, "done")]
    assert signal.disconnect(receive)


def test_retry_ends_with_the_exception_as_response(signal: Signal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "RETRY_WAITS", (0.0,))

    @signal.connect(retry=True)
    def receive(**kwargs: Any) -> None:
        raise ConnectionError("never")

    [(_, response)] = signal.send(None)
    assert isinstance(response, ConnectionError)


def test_a_receiver_may_disconnect_itself_while_it_is_called(signal: Signal) -> None:
    @signal.connect
    def once(**kwargs: Any) -> None:
        signal.disconnect(once)

    @signal.connect
    def always(**kwargs: Any) -> None: ...

    assert [receiver for receiver, _ in signal.send(None)] == [once, always]
    assert [receiver for receiver, _ in signal.send(None)] == [always]


def test_threads_that_connect_and_disconnect_lose_nothing(signal: Signal) -> None:
    kept: list[Any] = []

    def churn() -> None:
        for number in range(200):
            receiver = lambda **kwargs: None  # noqa: E731 - a new one each time
            signal.connect(receiver)
            signal.send(None, value=number)
            if number % 2:
                assert signal.disconnect(receiver)
            else:
                kept.append(receiver)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(signal.receivers) == len(kept) == 400


def test_every_signal_is_listed_and_documented_with_its_keywords() -> None:
    lines = Path(signals.__file__).read_text().splitlines()
    for name in signals.__all__:
        signal = getattr(signals, name)
        if signal is Signal:
            continue
        assert signal.name == name
        start = next(number for number, line in enumerate(lines) if line.startswith(name + " "))
        row = lines[start]
        for line in lines[start + 1 :]:
            if not line.startswith(" "):
                break
            row += line
        for keyword in signal.providing_args:
            assert keyword in row, (name, keyword)


def test_the_page_of_the_signals_has_each_of_them_with_its_keywords() -> None:
    page = Path(__file__).parents[2] / "docs" / "signals.md"
    rows = {
        cells[1].strip("` "): line
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and (cells := line.split("|"))
    }
    never = {name for name in signals.__all__ if name.startswith(("beat_", "eventlet_"))}
    assert set(rows) == set(signals.__all__) - never - {"Signal"}
    for name, row in rows.items():
        listed = set(re.findall(r"`(\w+)`", row.split("|", 2)[2]))
        assert getattr(signals, name).providing_args <= listed, name


def test_every_signal_of_celerys_is_here_with_its_keywords() -> None:
    original = pytest.importorskip("celery.signals")
    for name in original.__all__:
        theirs, ours = getattr(original, name), getattr(signals, name)
        assert ours.providing_args >= set(theirs.providing_args or ()), name
