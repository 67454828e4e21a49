"""What can be wrong with a database file, and several processes at one."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path

import pytest

import minicelery
from minicelery.broker import open_backend, open_broker
from minicelery.exceptions import BackendUnavailable, BrokerUnavailable, ImproperlyConfigured
from tests.conformance.messages import acked, call, drain, ids, record


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://queue.db", "sqlite:///:memory:"])
def test_a_url_without_a_file_is_refused_with_a_hint(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"sqlite:///queue\.db|memory://"):
        open_broker(url)


def test_a_relative_path_is_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broker = open_broker("sqlite:///queue.db")
    monkeypatch.chdir("/")
    broker.publish([call("1")])
    broker.close()
    assert (tmp_path / "queue.db").exists()


def test_only_the_owner_may_read_the_file(tmp_path: Path, sqlite_url: str) -> None:
    broker = open_broker(sqlite_url)
    broker.publish([call("1")])
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    broker.close()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    broker = open_broker(f"sqlite:///{tmp_path}/missing/queue.db")
    with pytest.raises(BrokerUnavailable, match=r"missing/queue\.db.*directory must exist"):
        broker.publish([call("1")])


def test_a_file_that_is_no_database_is_named(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "queue.db").write_text("not a database" * 100)
    with pytest.raises(BrokerUnavailable, match=r"queue\.db.*not an SQLite database"):
        open_broker(sqlite_url).publish([call("1")])
    with pytest.raises(BackendUnavailable, match=r"queue\.db.*not an SQLite database"):
        open_backend(sqlite_url).load(["1"])


def test_another_programs_database_is_refused(tmp_path: Path, sqlite_url: str) -> None:
    other = sqlite3.connect(tmp_path / "queue.db")
    other.execute("CREATE TABLE messages (id INTEGER)")
    other.close()
    with pytest.raises(BrokerUnavailable, match="belongs to another program"):
        open_broker(sqlite_url).publish([call("1")])


def test_a_newer_versions_database_is_refused(tmp_path: Path, sqlite_url: str) -> None:
    other = sqlite3.connect(tmp_path / "queue.db")
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(BrokerUnavailable, match="upgrade minicelery"):
        open_broker(sqlite_url).publish([call("1")])


def test_a_lock_is_waited_for_and_not_for_ever(tmp_path: Path, sqlite_url: str) -> None:
    broker = open_broker(sqlite_url)
    broker.publish([call("1")])
    other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BrokerUnavailable, match="locked for longer"):
        broker.publish([call("2")], deadline=0.2)
    timer = threading.Timer(0.2, other.execute, ("ROLLBACK",))
    timer.start()
    broker.publish([call("3")])
    timer.join()
    other.close()
    assert broker.size("q") == 2
    broker.close()


def test_an_unreadable_envelope_is_a_broken_delivery(tmp_path: Path, sqlite_url: str) -> None:
    broker = open_broker(sqlite_url)
    broker.publish([call("1"), call("2"), call("3")])
    with sqlite3.connect(tmp_path / "queue.db") as other:
        other.execute("UPDATE messages SET envelope = '{oops' WHERE message_id = '1'")
        other.execute("UPDATE messages SET envelope = '[1, 2]' WHERE message_id = '2'")
    other.close()
    first, second, third = broker.consumer(["q"], "me", None).swap([], 3, 0)
    assert "can't be read" in (first.broken or "")
    assert "can't be read" in (second.broken or "")
    assert (first.message.id, second.message.id, third.broken) == ("1", "2", None)
    broker.close()


def test_expired_results_are_deleted_by_tend(tmp_path: Path, sqlite_url: str) -> None:
    broker, backend = open_broker(sqlite_url), open_backend(sqlite_url)
    backend.store([record("gone", ttl=-1), record("stays"), record("ever", ttl=None)])
    broker.tend(["q"], [])
    with sqlite3.connect(tmp_path / "queue.db") as other:
        assert other.execute("SELECT id FROM results ORDER BY id").fetchall() == [("ever",), ("stays",)]
    other.close()
    broker.close()
    backend.close()


def test_connections_of_threads_that_ended_are_closed(sqlite_url: str) -> None:
    broker = open_broker(sqlite_url)

    def publish() -> None:
        broker.publish([call()])

    for _ in range(20):
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()
    assert broker.size("q") == 20
    descriptors = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    # A thread that was joined may still be on its way out: a few, not twenty.
    assert sum(path.endswith("queue.db") for path in descriptors) < 10
    broker.close()


def test_a_fork_with_open_connections_leaves_the_parents_alone(sqlite_url: str) -> None:
    program = f"""
import os, sys
from minicelery.broker import open_broker
from tests.conformance.messages import call
broker = open_broker({sqlite_url!r})
broker.publish([call("before")])
consumer = broker.consumer(["q"], "parent", None)
held = consumer.swap([], 1, 0)
for child in range(3):
    pid = os.fork()
    if pid == 0:
        if child:
            broker.publish([call(f"child-{{child}}")])
        if child == 2:
            broker.close()
        sys.exit(0)  # an ordinary end: the interpreter frees what it can
    assert os.waitpid(pid, 0)[1] == 0
broker.publish([call("after")])
consumer.close()
broker.close()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30)
    broker = open_broker(sqlite_url)
    assert drain(broker.consumer(["q"], "me", None)) == ["before", "child-1", "child-2", "after"]
    broker.close()


def test_processes_share_the_work_and_each_message_is_taken_once(sqlite_url: str) -> None:
    program = f"""
import sys
import minicelery
from minicelery.broker import open_backend, open_broker
from tests.conformance.messages import call, record
from minicelery.message import Outcome
broker, backend = open_broker({sqlite_url!r}), open_backend({sqlite_url!r})
consumer = broker.consumer(["q"], sys.argv[1], backend)
for n in range(500):
    broker.publish([call(f"{{sys.argv[1]}}-{{n}}")])
fresh = consumer.swap([], 16, 1)
while fresh:
    print(*(delivery.message.id for delivery in fresh))
    fresh = consumer.swap([Outcome(d, record=record(d.message.id)) for d in fresh], 16, 1)
consumer.close()
broker.close()
backend.close()
"""
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", program, name], stdout=subprocess.PIPE)
        for name in ("a", "b", "c")
    ]
    taken = [process.communicate(timeout=60)[0].decode().split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    expected = [f"{name}-{n}" for name in ("a", "b", "c") for n in range(500)]
    assert sorted(chain.from_iterable(taken)) == sorted(expected)
    backend = open_backend(sqlite_url)
    assert None not in backend.load(expected)
    backend.close()


def test_what_a_killed_process_held_is_there_for_who_adopts(sqlite_url: str) -> None:
    program = f"""
import os
from minicelery.broker import open_broker
broker = open_broker({sqlite_url!r})
assert len(broker.consumer(["q"], "killed", None).swap([], 2, 0)) == 2
os.kill(os.getpid(), 9)
"""
    broker = open_broker(sqlite_url)
    broker.publish([call("1"), call("2"), call("3")])
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == -9
    consumer = broker.consumer(["q"], "me", None)
    adopted = consumer.adopt("killed")
    assert ids(adopted) == ["1", "2"]
    assert ids(consumer.swap(acked(adopted), 5, 0)) == ["3"]
    broker.close()


def test_no_statement_numbers_its_parameters() -> None:
    """`?1` with a sequence of values: Python 3.12 warns of it, and 3.14 refuses it."""
    folder = Path(minicelery.__file__).parent / "broker" / "sqlite"
    files = list(folder.glob("*.py"))
    assert files
    assert [file.name for file in files if re.search(r"\?\d", file.read_text())] == []
