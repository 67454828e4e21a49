"""queues, dead, pause, resume and migrate: what who runs a fleet asks for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest

from minicelery import Celery
from minicelery.broker import open_broker
from minicelery.message import Message, Outcome, Verdict
from minicelery.pausing import aside, read_paused
from tests.cli.conftest import Project, Ran, reject, send

Run = Callable[..., Ran]


# -- queues, pause, resume ---------------------------------------------------------------


def test_queues_shows_what_is_where(app: Celery, run: Run) -> None:
    send(app)
    send(app, countdown=60)
    reject(app, "tasks.boom", queue="other")
    ran = run("-q", "-A", "tasks", "queues", "-Q", "celery,other")
    assert (ran.code, ran.err) == (0, "")
    header, *rows = [line.split() for line in ran.out.splitlines()]
    assert header == ["queue", "ready", "delayed", "dead", "paused"]
    assert rows == [["celery", "1", "1", "0", "no"], ["other", "0", "0", "1", "no"]]
    document = json.loads(run("-q", "-A", "tasks", "queues", "--json").out)
    assert document[0] | {"consumers": None} == {
        "queue": "celery", "ready": 1, "delayed": 1, "dead": 0, "consumers": None, "held": None, "paused": False,
    }  # fmt: skip


def test_a_misspelt_queue_is_shown_with_the_nearest_of_the_settings(app: Celery, run: Run) -> None:
    ran = run("-A", "tasks", "queues", "-Q", "celry")
    assert (ran.code, ran.err) == (
        0,
        "note: no queue 'celry' is in the settings; did you mean 'celery'?\n",
    )


def test_queues_of_routes_are_known_too(project: Project, run: Run) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\n"
        "app = Celery('t', broker='sqlite:///queue.db', task_routes={'a.*': {'queue': 'feeds'}, 'b': 'mail'})\n",
    )
    found = json.loads(run("-A", "tasks", "queues", "--json").out)
    assert [row["queue"] for row in found] == ["celery", "feeds", "mail"]


def test_pausing_is_said_kept_and_undone(app: Celery, run: Run) -> None:
    ran = run("-A", "tasks", "pause", "-Q", "celery,other", "-T", "tasks.add")
    assert ran.out == "Paused queues: celery, other\nPaused tasks: tasks.add\n"
    assert read_paused(app.broker).queues == {"celery", "other"}
    assert json.loads(run("-A", "tasks", "pause", "--json").out) == {
        "queues": ["celery", "other"], "tasks": ["tasks.add"]
    }  # fmt: skip
    shown = run("-A", "tasks", "queues")
    assert "yes" in shown.out
    assert "note: paused tasks: tasks.add\n" in shown.err
    assert (
        run("-A", "tasks", "resume", "-Q", "other").out == "Paused queues: celery\nPaused tasks: tasks.add\n"
    )
    assert run("-A", "tasks", "resume", "--all").out == "Nothing is paused.\n"
    assert read_paused(app.broker).tasks == frozenset()


def test_a_misspelt_task_is_paused_with_a_note(app: Celery, run: Run) -> None:
    ran = run("-A", "tasks", "pause", "-T", "tasks.ad")
    assert ran.err == "note: no task 'tasks.ad' is known here; did you mean 'tasks.add'?\n"


def test_purge_deletes_what_paused_tasks_have_left_aside(app: Celery, run: Run) -> None:
    send(app)
    send(app, queue=aside("celery"))
    assert run("-A", "tasks", "purge", "-f").out == "Deleted 2 messages from celery.\n"


def test_what_is_not_paused_can_not_be_resumed_and_that_is_said(app: Celery, run: Run) -> None:
    run("-A", "tasks", "pause", "-Q", "celery,no.such")
    ran = run("-A", "tasks", "resume", "-Q", "celry")
    assert ran.err == "note: the queue 'celry' is not paused; did you mean 'celery'?\n"
    assert run("-A", "tasks", "resume", "--all") == Ran(0, "Nothing is paused.\n", "")


@pytest.mark.parametrize("words", [[], ["--all", "-Q", "celery"]])
def test_what_is_to_be_resumed_must_be_said(app: Celery, run: Run, words: list[str]) -> None:
    assert run("-A", "tasks", "resume", *words).code == 2


# -- dead --------------------------------------------------------------------------------


def test_dead_letters_are_listed_with_their_reasons(app: Celery, run: Run) -> None:
    first, second = reject(app, "tasks.add", "tasks.boom")
    ran = run("-A", "tasks", "dead", "list")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["id", second, first]
    assert "no good: tasks.boom" in ran.out
    found = json.loads(run("-A", "tasks", "dead", "list", "--json", "-T", "tasks.add").out)
    assert [(one["id"], one["task"], one["queue"], one["reason"]) for one in found] == [
        (first, "tasks.add", "celery", "no good: tasks.add")
    ]
    assert (
        run("-A", "tasks", "dead", "list", "-n", "1").err
        == "note: there are 2 in all; -n shows more of them\n"
    )


def test_a_dead_letter_is_shown_with_its_arguments(app: Celery, run: Run) -> None:
    (id,) = reject(app, "tasks.add")
    ran = run("-A", "tasks", "dead", "show", id)
    assert "no good: tasks.add" in ran.out
    document = json.loads(run("-A", "tasks", "dead", "show", id, "--json").out)[0]
    assert document["message"]["body"][0] == [1, 2]


def test_what_others_have_written_can_not_command_the_terminal(
    app: Celery, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    (id,) = reject(app, "tasks.\x1b]0;owned\x07add")
    for words in (["list"], ["show", id], ["list", "--json"]):
        out = run("-q", "-A", "tasks", "dead", *words).out
        assert "owned" in out
        assert "\x1b]" not in out and "\x07" not in out


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" * 700 + b"]" * 700, b"\xff", b""])
def test_a_dead_letter_whose_body_is_hostile_is_shown_or_said_to_be_so(
    app: Celery, run: Run, body: bytes
) -> None:
    app.broker.publish([Message("1", "t", body, {"id": "1", "task": "t"}, "celery")])
    consumer = app.broker.consumer(["celery"], "rejecting", None)
    consumer.swap([Outcome(one, Verdict.REJECT, reason="x" * 9999) for one in consumer.swap([], 1, 1)], 0, 0)
    assert run("-q", "-A", "tasks", "dead", "list").code == 0
    for words in (["show", "1"], ["show", "1", "--json"]):
        ran = run("-q", "-A", "tasks", "dead", *words)
        assert ran.code == 0 or "nested too deeply" in ran.err
        assert "Traceback" not in ran.err


def test_dead_letters_are_replayed_by_id_by_task_and_all_of_them(app: Celery, run: Run) -> None:
    first, *_ = reject(app, "tasks.add", "tasks.boom", "tasks.boom", "tasks.add")
    assert run("-A", "tasks", "dead", "replay", first).out == "Put 1 dead letter back on celery.\n"
    ran = run("-A", "tasks", "dead", "replay", "-T", "tasks.boom", "-f")
    assert ran.out == "Put 2 dead letters back on celery.\n"
    assert run("-A", "tasks", "dead", "replay", "--all", "-f").out == "Put 1 dead letter back on celery.\n"
    assert (app.broker.size("celery"), app.broker.dead("celery")) == (4, 0)
    assert run("-A", "tasks", "dead", "replay", "--all").out == "No dead letters in celery.\n"


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1)])
def test_discarding_many_asks_first(
    app: Celery, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: int
) -> None:
    reject(app, "tasks.add")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    ran = run("-A", "tasks", "dead", "discard", "--all")
    assert ran.code == code
    assert "Discard 1 dead letter of celery for good?" in ran.out
    assert app.broker.dead("celery") == left


@pytest.mark.parametrize("words", [[], ["x", "--all"], ["-T", "a", "--all"]])
def test_which_dead_letters_are_meant_must_be_said_in_one_way(
    app: Celery, run: Run, words: list[str]
) -> None:
    ran = run("-A", "tasks", "dead", "discard", *words)
    assert (ran.code, "minicelery dead discard ID …, or -T TASK, or --all" in ran.err) == (2, True)


def test_an_id_without_a_dead_letter_is_named_and_nothing_is_done(app: Celery, run: Run) -> None:
    (id,) = reject(app, "tasks.add")
    ran = run("-A", "tasks", "dead", "replay", id, "unknown")
    assert (ran.code, ran.err.splitlines()[0]) == (1, "error: there is no dead letter of unknown")
    assert app.broker.dead("celery") == 1


# -- migrate -----------------------------------------------------------------------------


def test_messages_are_copied_or_moved_to_another_broker(app: Celery, run: Run, redis_url: str) -> None:
    ids = [send(app, "tasks.add", number, countdown=None) for number in range(150)]
    other = send(app, "tasks.boom")
    here = "sqlite:///queue.db"
    ran = run("-A", "tasks", "migrate", here, redis_url, "-f", "-T", "tasks.boom")
    assert (ran.code, ran.out) == (0, "Copied 1 message of celery.\n")
    assert app.broker.size("celery") == 151
    ran = run("-A", "tasks", "migrate", here, redis_url, "--json", "-a", "-Q", "celery:moved")
    assert json.loads(ran.out) == {
        "messages": {"celery": 151}, "delayed": {}, "left": {"celery": {"delayed": 0, "held": 0, "dead": 0}}
    }  # fmt: skip
    assert app.broker.size("celery") == 0
    target = open_broker(redis_url)
    consumer = target.consumer(["moved"], "reader", None)
    fresh = consumer.swap([], 200, 0)
    assert [one.message.id for one in fresh] == [*ids, other]
    consumer.swap([Outcome(one) for one in fresh], 0, 0)
    consumer.close()
    assert target.size("celery") == 1
    target.close()


def test_what_a_killed_migration_held_is_moved_by_the_next_one(app: Celery, run: Run, redis_url: str) -> None:
    ids = [send(app, "tasks.add", number) for number in range(3)]
    consumer = app.broker.consumer(["celery"], "migrate", None)
    assert len(consumer.swap([], 2, 0)) == 2  # and it is killed now
    ran = run("-A", "tasks", "migrate", "sqlite:///queue.db", redis_url, "-f", "-a")
    assert (ran.code, ran.out) == (0, "Moved 3 messages of celery.\n")
    target = open_broker(redis_url)
    moved = target.consumer(["celery"], "reader", None)
    assert [one.message.id for one in moved.swap([], 5, 0)] == ids
    moved.close()
    target.close()


def test_what_stays_behind_is_named_with_what_to_do(app: Celery, run: Run) -> None:
    send(app, countdown=60)
    send(app, queue=aside("celery"))
    reject(app, "tasks.boom")
    ran = run("-A", "tasks", "migrate", "sqlite:///queue.db", "sqlite:///other.db", "-f", "-a")
    assert ran.out == "Moved 0 messages of celery.\n"
    assert ran.err.splitlines() == [
        "note: 1 message of celery stays: it waits for its time; come again then",
        "note: 1 message of celery stays: its task is paused; minicelery resume",
        "note: 1 message of celery stays: it is a dead letter; minicelery dead replay",
    ]


def test_the_queues_of_the_app_that_is_here_are_migrated(project: Project, run: Run) -> None:
    project.write(
        "tasks.py",
        "from minicelery import Celery\n"
        "app = Celery('t', broker='sqlite:///queue.db', task_routes={'a': 'mail'})\n",
    )
    run("call", "a")
    ran = run("-q", "migrate", "sqlite:///queue.db", "sqlite:///other.db", "-f")
    assert ran.out == "Copied 0 messages of celery.\nCopied 1 message of mail.\n"


def test_a_file_that_is_not_there_is_not_made_to_be_migrated_from(project: Project, run: Run) -> None:
    ran = run("migrate", "sqlite:///queue.db", "sqlite:///other.db", "-f")
    assert (ran.code, ran.err.startswith("error: there is no file ")) == (2, True)
    assert not list(project.path.glob("*.db"))


def test_a_broker_is_not_migrated_to_itself(app: Celery, run: Run) -> None:
    assert run("-A", "tasks", "migrate", "sqlite:///queue.db", "sqlite:///queue.db", "-f").code == 2
