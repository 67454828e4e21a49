"""Signals: each one is sent, by whom Celery says, with the keywords that Celery gives."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from minicelery import Celery, Task, signals
from minicelery.exceptions import Reject
from minicelery.message import Message
from minicelery.signals import Signal
from minicelery.worker import logs
from tests.compat.stage import Stage, body_of, each, hearing
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

# -- of a call ---------------------------------------------------------------------------------------------


def test_before_task_publish_may_change_what_is_sent(stage: Stage) -> None:
    task = stage.app.task(lambda x: x, name="t")

    def change(sender: Any, body: Any, headers: Any, properties: Any, **_: Any) -> None:
        assert sender == "t"
        body[1]["x"] = 5
        headers["mine"] = 1
        properties["app_id"] = "shop"

    signals.before_task_publish.connect(change)
    try:
        message = stage.message(task, kwargs={"x": 1})
    finally:
        signals.before_task_publish.disconnect(change)
    assert message.headers["mine"] == 1 and message.properties["app_id"] == "shop"
    assert body_of(message)[1] == {"x": 5}


def test_before_task_publish_has_celerys_keywords(stage: Stage) -> None:
    task = stage.app.task(lambda *_, **__: 1, name="t")
    with hearing(signals.before_task_publish) as heard:
        task.apply_async((1,), {"x": 2}, task_id="an-id", priority=3, retry_policy={"max_retries": 7})
    [(_, sender, named)] = heard
    assert sender == "t"
    assert set(named) == signals.before_task_publish.providing_args
    args, kwargs, links = named["body"]
    assert (list(args), kwargs, links["callbacks"]) == ([1], {"x": 2}, None)
    assert (named["exchange"], named["routing_key"]) == ("", "celery")
    assert named["headers"]["id"] == named["properties"]["correlation_id"] == "an-id"
    assert named["properties"]["priority"] == 3
    assert named["retry_policy"] == {**stage.app.conf.task_publish_retry_policy, "max_retries": 7}
    assert [queue.name for queue in named["declare"]] == ["celery"]


def test_after_task_publish_has_celerys_keywords(stage: Stage) -> None:
    with hearing(signals.after_task_publish) as heard:
        stage.app.task(lambda *_: 1, name="t").apply_async((1,), task_id="an-id")
        assert [one.id for one in stage.sent()] == ["an-id"]
    [(_, sender, named)] = heard
    assert (sender, set(named)) == ("t", signals.after_task_publish.providing_args)
    assert named["headers"]["id"] == "an-id" and list(named["body"][0]) == [1]


def test_task_sent_follows_with_its_own_keywords(stage: Stage) -> None:
    with hearing(signals.task_sent) as heard:
        stage.app.task(lambda *_, **__: 1, name="t").apply_async((1,), {"x": 2}, task_id="an-id")
    [(_, sender, named)] = heard
    assert sender == "t"
    assert {key: list(value) if key == "args" else value for key, value in named.items()} == {
        "task_id": "an-id", "task": "t", "args": [1], "kwargs": {"x": 2}, "eta": None, "taskset": None,
    }  # fmt: skip


def test_what_a_worker_sends_is_announced_too(stage: Stage) -> None:
    @stage.app.task(bind=True, name="t")
    def task(self: Any) -> None:
        if self.request.retries == 0:
            raise self.retry(countdown=0)

    with hearing(signals.before_task_publish, signals.after_task_publish) as heard:
        stage.run(task, task_id="first", link=task.si().set(task_id="linked"))
    ids = [(name.partition("_")[0], named["headers"]["id"]) for name, _, named in heard]
    assert ids[:6] == [
        (when, id) for id in ("first", "first", "linked") for when in ("before", "after")
    ]  # fmt: skip


# -- of a run ----------------------------------------------------------------------------------------------


class Failing(Task[..., Any]):
    def on_failure(self, *_: Any) -> None:
        raise OSError("of the handler")


def run(stage: Stage, *heard_signals: Signal, how: str = "value") -> list[tuple[str, Any, dict[str, Any]]]:
    """What is heard while a task runs that ends as told."""

    @stage.app.task(bind=True, name="t", base=Failing if how == "bad handler" else None)
    def task(self: Any, *args: Any, **kwargs: Any) -> int:
        if how in ("error", "bad handler"):
            raise KeyError("why")
        if how == "retry" and self.request.retries == 0:
            raise self.retry(exc=KeyError("why"), countdown=60)
        if how == "reject":
            raise Reject("why", requeue=False)
        return 5

    with hearing(*heard_signals) as heard:
        stage.run(task, 1, kwargs={"x": 2}, task_id="an-id")
    return heard


def only(heard: list[tuple[str, Any, dict[str, Any]]], signal: Signal) -> tuple[Any, dict[str, Any]]:
    """Sender and keywords of the one time it was sent."""
    [(_, sender, named)] = heard
    assert set(named) == signal.providing_args
    return sender, named


def test_task_received_comes_before_the_run(stage: Stage) -> None:
    heard = run(stage, signals.task_received, signals.task_prerun)
    assert [name for name, _, _ in heard] == ["task_received", "task_prerun"]
    sender, named = only(heard[:1], signals.task_received)
    request = named["request"]
    assert (request.id, list(request.args), request.kwargs) == ("an-id", [1], {"x": 2})
    assert (request.task_id, request.name, sender.hostname, sender.app) == (
        "an-id",
        "t",
        "w1@compat",
        stage.app,
    )


def test_task_prerun_is_sent_by_the_task(stage: Stage) -> None:
    sender, named = only(run(stage, signals.task_prerun), signals.task_prerun)
    assert sender is named.pop("task") is stage.app.tasks["t"]
    assert named == {"task_id": "an-id", "args": [1], "kwargs": {"x": 2}}


@each(
    {
        "SUCCESS": ("value", 5),
        "FAILURE": ("error", KeyError),
        "RETRY": ("retry", None),
        "REJECTED": ("reject", Reject),
    }
)
def test_task_postrun_tells_state_and_value(stage: Stage, case: Any, request: pytest.FixtureRequest) -> None:
    how, value = case
    sender, named = only(run(stage, signals.task_postrun, how=how), signals.task_postrun)
    assert sender is named["task"] is stage.app.tasks["t"]
    assert (named["task_id"], named["args"], named["kwargs"]) == ("an-id", [1], {"x": 2})
    assert named["state"] == request.node.callspec.id
    assert value is None or named["retval"] == value or isinstance(named["retval"], value)


def test_task_success_tells_value_and_seconds(stage: Stage) -> None:
    sender, named = only(run(stage, signals.task_success), signals.task_success)
    assert sender is stage.app.tasks["t"] and named["result"] == 5
    assert isinstance(named["runtime"], float) and 0 <= named["runtime"] < 5


def test_task_retry_tells_request_reason_and_traceback(stage: Stage) -> None:
    sender, named = only(run(stage, signals.task_retry, how="retry"), signals.task_retry)
    assert sender is stage.app.tasks["t"] and named["request"].id == "an-id"
    assert repr(named["reason"].exc) == "KeyError('why')" and "Retry" in str(named["einfo"])


@each({"of a task that raises": "error", "of a task that rejects its message": "reject"})
def test_task_failure_tells_exception_and_traceback(stage: Stage, case: str) -> None:
    heard = run(stage, signals.task_failure, signals.task_rejected, how=case)
    sender, named = only(heard, signals.task_failure)
    assert sender is stage.app.tasks["t"]
    assert (named["task_id"], named["args"], named["kwargs"]) == ("an-id", [1], {"x": 2})
    assert isinstance(named["exception"], KeyError if case == "error" else Reject)
    assert type(named["exception"]).__name__ in str(named["einfo"])


def test_task_internal_error_tells_of_a_handler_that_failed(stage: Stage) -> None:
    sender, named = only(
        run(stage, signals.task_internal_error, how="bad handler"), signals.task_internal_error
    )
    assert sender is stage.app.tasks["t"]
    assert (named["task_id"], named["args"], named["kwargs"]) == ("an-id", [1], {"x": 2})
    assert isinstance(named["exception"], OSError) and "of the handler" in str(named["einfo"])
    assert named["traceback"] is not None and named["request"]["id"] == "an-id"
    assert type(stage.app.AsyncResult("an-id").result) is KeyError


@each({"expired": ({"expires": -1}, True), "revoked": ({}, False)})
def test_task_revoked_tells_why(stage: Stage, case: Any) -> None:
    options, expired = case
    task = stage.app.task(lambda: 1, name="t")
    with (
        hearing(signals.task_revoked) as heard,
        pytest.warns(UserWarning, match="expired") if expired else hearing(),
    ):
        found = task.apply_async(**options)
        if not expired:
            found.revoke()
        stage.work()
    sender, named = only(heard, signals.task_revoked)
    assert sender is task and named.pop("request").id == found.id
    assert named == {"terminated": False, "signum": None, "expired": expired}


def test_task_rejected_tells_of_a_message_that_is_no_task(stage: Stage) -> None:
    stage.app.task(lambda: 1, name="t")
    with hearing(signals.task_rejected) as heard:
        stage.app.broker.publish([Message("an-id", "t", b"no json", {"task": "t", "id": "an-id"})])
        stage.work()
    sender, named = only(heard, signals.task_rejected)
    assert (sender.app, named["message"].id) == (stage.app, "an-id")
    assert isinstance(named["exc"], Exception)


def test_task_unknown_tells_the_name_and_the_id(stage: Stage) -> None:
    with hearing(signals.task_unknown) as heard:
        stage.app.send_task("nobody.has", task_id="an-id")
        stage.work()
    sender, named = only(heard, signals.task_unknown)
    assert (sender.app, named["name"], named["id"], named["message"].id) == (
        stage.app,
        "nobody.has",
        "an-id",
        "an-id",
    )
    assert isinstance(named["exc"], KeyError)


def test_a_failing_receiver_is_logged_and_changes_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    names = (
        "before_task_publish after_task_publish task_received task_prerun task_success task_postrun".split()
    )

    def fail(**_: Any) -> None:
        raise OSError("of the receiver")

    for name in names:
        getattr(signals, name).connect(fail)
    try:
        found = stage.run(stage.app.task(lambda: 5, name="t"))
    finally:
        for name in names:
            getattr(signals, name).disconnect(fail)
    assert found.get(timeout=1) == 5
    assert all(f"of signal {name} raised" in caplog.text for name in names)


def test_an_unused_signal_is_not_even_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(self: Signal, *_: Any, **__: Any) -> None:
        raise AssertionError(f"{self.name} was sent to nobody")

    task = stage.app.task(lambda fails: 1 // fails, name="t")
    stage.app.finalize()
    monkeypatch.setattr(Signal, "send", send)
    assert [stage.run(task, number).state for number in (0, 1)] == ["FAILURE", "SUCCESS"]


# -- of a worker -------------------------------------------------------------------------------------------


class Heard:
    """What a worker of one child had to say, from its start to its end."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        environment = {
            **os.environ, "LIBRARY": "minicelery", "BROKER": f"sqlite:///{folder}/queue.db", "NOTES": str(self.notes)
        }  # fmt: skip
        command = [sys.executable, "-m", "minicelery", "-A", "tests.interop.scripts.listening", "worker"]
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [*command, "-c", "1", "-n", "w1@compat", "-l", "INFO"],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            wait_until(lambda: self.of("worker_ready") or self.process.poll() is not None, 25)
            wait_until(lambda: len(self.of("heartbeat_sent")) > 1 or self.process.poll() is not None, 15)
        except AssertionError:
            pass  # the test of what is missing says so
        self.process.terminate()
        self.exitcode = self.process.wait(15)
        self.log = (folder / "log").read_text()

    def all(self) -> list[dict[str, Any]]:
        return (
            [json.loads(line) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        )

    def of(self, name: str) -> list[dict[str, Any]]:
        return [one for one in self.all() if one["what"] == name]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    return Heard(tmp_path_factory.mktemp("heard"))


NODE = "w1@compat"
# Sender, and who sends it: the parent or its child.
LIFE: dict[str, tuple[Any, str]] = {
    "import_modules": ("a Celery", "parent"),
    "celeryd_init": (NODE, "parent"),
    "worker_init": ("a Worker", "parent"),
    "after_setup_logger": (None, "parent"),
    "after_setup_task_logger": (None, "parent"),
    "celeryd_after_setup": (NODE, "parent"),
    "worker_process_init": (NODE, "child"),
    "worker_ready": ("a Worker", "parent"),
    "worker_shutting_down": (NODE, "parent"),
    "worker_process_shutdown": (NODE, "child"),
    "worker_shutdown": ("a Worker", "parent"),
}


@each({name: (name, *of) for name, of in LIFE.items()})
def test_a_signal_of_a_workers_life_is_sent_once_with_celerys_keywords(heard: Heard, case: Any) -> None:
    name, sender, who = case
    assert heard.exitcode == 0, heard.log
    [note] = heard.of(name)
    assert (note["sender"], set(note["named"])) == (sender, getattr(signals, name).providing_args)
    assert (note["pid"] == heard.process.pid) == (who == "parent")


def test_the_signals_of_a_workers_life_come_in_celerys_order(heard: Heard) -> None:
    seen = [one["what"] for one in heard.all() if one["what"] in LIFE]
    # Parent and child work side by side: the child's own, and then the parent's.
    child = ["worker_process_init", "worker_process_shutdown"]
    assert [name for name in seen if name in child] == child
    assert [name for name in seen if name not in child] == [name for name in LIFE if name not in child]


def test_worker_before_create_process_comes_before_each_process(heard: Heard) -> None:
    started = [
        one["what"] for one in heard.all() if one["what"] in ("worker_before_create_process", "worker_ready")
    ]
    assert started == ["worker_before_create_process"] * 2 + ["worker_ready"]  # one is the agent's
    assert {(one["sender"], one["pid"]) for one in heard.of("worker_before_create_process")} == {
        ("a Supervisor", heard.process.pid)
    }


def test_celeryd_init_may_change_the_settings_of_a_worker(stage: Stage) -> None:
    from minicelery.worker import Worker

    def change(sender: Any, instance: Any, conf: Any, options: Any, **_: Any) -> None:
        if sender == "w1@compat" and options["concurrency"] is None:
            conf.worker_concurrency = 3

    signals.celeryd_init.connect(change)
    try:
        assert Worker(stage.app, hostname="w1@compat").concurrency == 3
    finally:
        signals.celeryd_init.disconnect(change)


def test_heartbeat_sent_comes_regularly(heard: Heard) -> None:
    assert len(heard.of("heartbeat_sent")) >= 2


def test_shutting_down_tells_the_signal_and_how(heard: Heard) -> None:
    [note] = heard.of("worker_shutting_down")
    assert note["named"] == {"sig": "SIGTERM", "how": "Warm", "exitcode": 0}


def test_the_end_of_a_child_tells_its_pid_and_exitcode(heard: Heard) -> None:
    [note] = heard.of("worker_process_shutdown")
    assert note["named"] == {"pid": note["pid"], "exitcode": 0}


def test_user_preload_options_come_with_the_command(heard: Heard) -> None:
    [note] = heard.of("user_preload_options")
    assert set(note["named"]) == {"app", "options"} and note["sender"] is not None


def test_who_listens_to_setup_logging_sets_it_up(stage: Stage) -> None:
    before = list(logging.getLogger().handlers)
    with hearing(signals.setup_logging, signals.after_setup_logger) as heard:
        logs.setup_logging(stage.app.conf, loglevel="INFO", logfile=None)
    [(_, sender, named)] = heard
    assert (sender, set(named)) == (None, signals.setup_logging.providing_args)
    assert named["loglevel"] == logging.INFO and logging.getLogger().handlers == before


@each({"beat_init": "beat_init", "beat_embedded_init": "beat_embedded_init"})
def test_beat_tells_that_it_begins(case: str) -> None:
    with Celery("t", broker="memory://beat_signals", set_as_current=False) as app:
        beat = app.Beat(embedded=case == "beat_embedded_init")
        beat.stop()
        with hearing(getattr(signals, case)) as heard:
            beat.run()
    [(_, sender, _)] = heard
    assert sender is beat


@each({name: name for name in (
    "eventlet_pool_started", "eventlet_pool_preshutdown", "eventlet_pool_postshutdown", "eventlet_pool_apply",
)})  # fmt: skip
def test_signals_of_a_pool_that_there_is_not_can_be_connected(case: str) -> None:
    with hearing(getattr(signals, case)) as heard:
        assert getattr(signals, case).has_listeners() and heard == []


# -- of an app ---------------------------------------------------------------------------------------------


@each({"on_configure": ("on_configure", set()), "on_after_configure": ("on_after_configure", {"source"})})
def test_an_app_tells_of_its_configuration(case: Any) -> None:
    name, keywords = case
    app = Celery("compat", broker="memory://", set_as_current=False)
    with hearing(getattr(app, name)) as heard:
        assert app.conf.broker_url == app.conf["broker_url"] == "memory://"
    [(_, sender, named)] = heard
    assert (sender, set(named)) == (app, keywords)


def test_an_app_tells_when_its_tasks_are_settled(stage: Stage) -> None:
    app = Celery("compat", broker="memory://", set_as_current=False)
    with hearing(app.on_after_finalize) as heard:
        assert "t" not in app.tasks
    assert [(sender, named) for _, sender, named in heard] == [(app, {})]


def test_an_app_tells_a_forked_process() -> None:
    app = Celery("compat", broker="memory://", set_as_current=False)
    read, write = os.pipe()
    app.on_after_fork.connect(
        lambda sender, **_: os.write(write, b"forked" if sender is app else b"?"), weak=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork in a process with threads
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"forked"
    os.close(read)
    os.close(write)


# -- connecting --------------------------------------------------------------------------------------------


def test_a_sender_narrows_what_is_heard(stage: Stage) -> None:
    seen: list[str] = []

    def hear(sender: Any, **_: Any) -> None:
        seen.append(sender.name)

    one, other = (stage.app.task(lambda: 1, name=name) for name in ("one", "other"))
    signals.task_prerun.connect(hear, sender=one)
    signals.task_prerun.connect(hear, sender="other", dispatch_uid="by name")
    try:
        for task in (one, other, stage.app.task(lambda: 1, name="third")):
            stage.run(task)
    finally:
        signals.task_prerun.disconnect(hear, sender=one)
        signals.task_prerun.disconnect(dispatch_uid="by name", sender="other")
    assert seen == ["one", "other"]


def test_a_weak_receiver_goes_with_its_owner_and_another_stays() -> None:
    signal = Signal("test")
    signal.connect(lambda **_: "weak")
    signal.connect(lambda **_: "strong", weak=False)
    assert [answer for _, answer in signal.send(None)] == ["strong"]


def test_a_dispatch_uid_is_connected_once() -> None:
    signal = Signal("test")
    for _ in range(2):
        signal.connect(lambda **_: 1, weak=False, dispatch_uid="only")
    assert len(signal.send(None)) == 1


def test_retry_calls_a_failing_receiver_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "RETRY_WAITS", (0.0,))
    signal, tries = Signal("test"), []

    @signal.connect(retry=True)
    def hear(**_: Any) -> int:
        tries.append(1)
        return 5 // (len(tries) - 1)

    assert [answer for _, answer in signal.send(None)] == [5]
