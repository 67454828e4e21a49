"""What Celery's receivers hear, minicelery's hear: one program under both, on one Redis.

Where minicelery differs on purpose, the test says both and why.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from tests.waiting import wait_until

pytest.importorskip("celery", reason="real Celery is the other side")
pytestmark = pytest.mark.timeout(240)  # the first of them waits for four workers

ROOT = Path(__file__).parents[2]
LIBRARIES = ("celery", "minicelery")
POOLS = ("prefork", "solo")
SAME = (
    "add",
    "priority",
    "linked",
    "link",
    "fail",
    "expected",
    "again",
    "ignore",
    "bad on_success",
    "expired",
    "last",
)
OWN = ("reject", "bad on_failure", "unknown")
IN_CHILDREN = ("slow", "die")  # only where the worker outlives them

Note = dict[str, Any]


class Program:
    """``tests.interop.scripts.listening`` under one library: as a client, then as a worker."""

    def __init__(self, library: str, pool: str, url: str, folder: Path) -> None:
        self.library, self.pool, self.folder = library, pool, folder
        self.environment = {**os.environ, "LIBRARY": library, "BROKER": url, "PYTHONWARNINGS": "ignore"}
        self.worker: subprocess.Popen[bytes] | None = None
        self.calls = ["policy", *SAME, *OWN, *(IN_CHILDREN if pool == "prefork" else ())]
        self.calls = [name for name in self.calls if name not in ("link", "last")] + ["last"]

    def _start(self, notes: str, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{notes}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT, env={**self.environment, "NOTES": str(self.folder / notes)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def send(self) -> None:
        client = self._start("client", "tests.interop.scripts.listening", *self.calls)
        assert client.wait(60) == 0, (self.folder / "client.log").read_text()

    def start(self) -> None:
        self.worker = self._start(
            "worker", self.library, "-A", "tests.interop.scripts.listening", "worker", "-c", "1", "-P", self.pool,
            "-l", "INFO", "-n", "w1@here",
        )  # fmt: skip

    def await_the_end(self) -> None:
        """Return when the worker has run everything."""
        worker = self.worker
        assert worker is not None

        def done() -> bool:
            told: Counter[tuple[str, Any]] = Counter()
            for note in self.notes("worker"):
                named = note.get("named")
                told[note["what"], named.get("task_id") if isinstance(named, dict) else None] += 1
                if note["what"] == "task_postrun" and named["state"] == "SUCCESS":
                    told["success", named["task_id"]] += 1
            wanted = [("success", id) for id in ("add", "linked", "link", "again", "last")]
            wanted += [("heartbeat_sent", None)] * 2
            if self.pool == "prefork":  # who outlives a child tells of its end, when it notices that
                if self.library == "celery":
                    wanted += [("task_failure", id) for id in ("slow", "slow", "die")]
                else:
                    wanted += [("task_postrun", id) for id in IN_CHILDREN]
            return not Counter(wanted) - told or worker.poll() is not None

        wait_until(done, 60, interval=0.1)

    def stop(self) -> None:
        if (worker := self.worker) is None:
            return
        worker.terminate()
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait(5)

    def notes(self, of: str) -> list[Note]:
        file = self.folder / of
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def programs(own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Program]:
    """Every library with every pool, when all of them have run everything."""
    found = {}
    for number, (library, pool) in enumerate((library, pool) for library in LIBRARIES for pool in POOLS):
        url = own_redis.url(db=8 + number)
        found[library, pool] = Program(library, pool, url, tmp_path_factory.mktemp(f"{library}-{pool}"))
    try:
        for program in found.values():
            program.send()
            program.start()
        for program in found.values():
            program.await_the_end()
    finally:
        for program in found.values():
            program.stop()
    return found


def id_of(note: Note) -> Any:
    """Which call a note is about; None for one about the worker."""
    named = note.get("named")
    if note["what"] in ("before_task_publish", "after_task_publish"):
        return named["headers"]["id"]
    if isinstance(named, dict):
        request = named.get("request") or {}
        return named.get("task_id") or named.get("id") or request.get("id")
    if isinstance(named, list):  # of a handler; its task_id is the only text that is a call's name
        return next((one for one in named if one in (*SAME, *OWN, *IN_CHILDREN)), None)
    return None


PUBLISH = ("before_task_publish", "after_task_publish", "task_sent")


def heard(program: Program, id: str, of: str = "worker") -> list[Note]:
    """All that is about one call, but for what says only that something was received or sent."""
    return [
        {key: value for key, value in note.items() if key != "pid"}
        for note in program.notes(of)
        if id_of(note) == id and note["what"] not in (*PUBLISH, "task_received")
    ]


def comparable(note: Note) -> Note:
    """The note without what is of one run only."""
    named = note["named"]
    if note["what"] == "task_success":
        named = {**named, "runtime": type(named["runtime"]).__name__}
    if note["what"] == "after_return":
        # Celery gives None for the traceback of a failure too, whatever its documentation says.
        named = named[:5]
    return {**note, "named": named}


def names(notes: list[Note]) -> list[str]:
    return [note["what"] for note in notes]


# -- of calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("id", SAME)
def test_handlers_and_signals_of_a_run_are_celerys(programs: Any, pool: str, id: str) -> None:
    original, ours = (
        [comparable(one) for one in heard(programs[library, pool], id)] for library in LIBRARIES
    )
    assert original and ours == original


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("id", [*SAME, *OWN])
def test_a_call_is_received_as_often_as_in_celery(programs: Any, pool: str, id: str) -> None:
    def received(library: str) -> list[Any]:
        notes = [one for one in programs[library, pool].notes("worker") if id_of(one) == id]
        return [
            {key: one["named"]["request"][key] for key in ("id", "args", "kwargs")}
            for one in notes
            if one["what"] == "task_received"
        ]

    assert received("minicelery") == received("celery")


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_rejects_its_message_is_told_as_in_celery(programs: Any, pool: str) -> None:
    original, ours = (heard(programs[library, pool], "reject") for library in LIBRARIES)
    # Celery's failure comes from another process, with text for a traceback.
    assert sorted(names(ours)) == sorted(names(original))
    [theirs], [mine] = ([one for one in notes if one["what"] == "task_failure"] for notes in (original, ours))
    for key in ("task_id", "exception", "args", "kwargs"):
        assert mine["named"][key] == theirs["named"][key]
    assert mine["sender"] == theirs["sender"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_failing_on_failure_is_an_internal_error_and_the_end_stays(programs: Any, pool: str) -> None:
    original, ours = (heard(programs[library, pool], "bad on_failure") for library in LIBRARIES)
    # In Celery the handler is called again with its own error, and the run ends in no state at all.
    assert names(original).count("on_failure") == 2 and "after_return" not in names(original)
    assert names(ours) == [
        "task_prerun", "before_start", "on_failure", "task_internal_error", "task_failure", "after_return",
        "task_postrun",
    ]  # fmt: skip
    [theirs], [mine] = (
        [one for one in notes if one["what"] == "task_internal_error"] for notes in (original, ours)
    )
    for key in ("task_id", "args", "kwargs", "exception", "einfo", "traceback"):
        assert mine["named"][key] == theirs["named"][key]
    assert ours[-1]["named"]["state"] == "FAILURE"


@pytest.mark.parametrize("pool", POOLS)
def test_an_unknown_task_is_told_as_in_celery(programs: Any, pool: str) -> None:
    [original], [ours] = (heard(programs[library, pool], "unknown") for library in LIBRARIES)
    assert ours["what"] == original["what"] == "task_unknown"
    assert ours["named"].keys() == original["named"].keys()
    assert (ours["named"]["name"], ours["named"]["id"]) == ("nobody.has", "unknown")
    assert original["named"]["exc"] == ["KeyError", "'nobody.has'"]  # ours is a KeyError of its own
    assert ours["named"]["exc"][0] == "NotRegistered"


def test_a_hard_limit_is_told_once(programs: Any) -> None:
    original, ours = (heard(programs[library, "prefork"], "slow") for library in LIBRARIES)
    # Celery tells it twice, and ends the run in no state.
    assert names(original).count("task_failure") == 2
    assert names(ours)[2:] == ["on_failure", "task_failure", "after_return", "task_postrun"]
    exceptions = {one["named"]["exception"][0] for one in [*original, *ours] if one["what"] == "task_failure"}
    assert exceptions == {"TimeLimitExceeded"}


def test_the_death_of_a_child_calls_the_handlers_too(programs: Any) -> None:
    original, ours = (heard(programs[library, "prefork"], "die") for library in LIBRARIES)
    assert names(original)[2:] == ["task_failure"]
    assert names(ours)[2:] == ["on_failure", "task_failure", "after_return", "task_postrun"]
    [theirs], [mine] = ([one for one in notes if one["what"] == "task_failure"] for notes in (original, ours))
    assert mine["named"]["exception"][0] == theirs["named"]["exception"][0] == "WorkerLostError"


# -- of what is sent ---------------------------------------------------------------------------------------


def sent(program: Program, id: str, of: str) -> list[Note]:
    """What was told of the sending of a call."""
    found = []
    for note in program.notes(of):
        if note["what"] not in PUBLISH or id_of(note) != id:
            continue
        named = json.loads(json.dumps(note["named"]))
        if "headers" in named:
            named["headers"].pop("origin")
            if named["headers"]["expires"]:
                named["headers"]["expires"] = "a time"
            if named["headers"]["eta"]:
                named["headers"]["eta"] = "a time"
        if "properties" in named:
            named["properties"].pop("reply_to")
            if "expiration" in named["properties"]:  # ours is what the server gets: text, in milliseconds
                named["properties"]["expiration"] = "soon"
        if named.get("eta"):
            named["eta"] = "a time"
        found.append({"what": note["what"], "sender": note["sender"], "named": named})
    return found


@pytest.mark.parametrize("id", ["add", "priority", "policy", "linked", "unknown", "expired"])
def test_what_a_client_sends_is_told_as_in_celery(programs: Any, id: str) -> None:
    original, ours = (sent(programs[library, "solo"], id, "client") for library in LIBRARIES)
    assert names(original) == list(PUBLISH)
    assert ours == original


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("id", ["again", "link"])
def test_what_a_worker_sends_is_told_as_in_celery(programs: Any, pool: str, id: str) -> None:
    original, ours = (sent(programs[library, pool], id, "worker") for library in LIBRARIES)
    assert names(original) == list(PUBLISH)
    # Of a retry's properties: Celery's are those of the call, with origin and two nulls among them; ours
    # are those of the message that came.
    for note in [*original, *ours]:
        if properties := note["named"].get("properties"):
            note["named"]["properties"] = {
                name: properties.get(name) for name in ("correlation_id", "priority")
            }
    assert ours == original


# -- of the worker -----------------------------------------------------------------------------------------

LIFE = (
    "import_modules celeryd_init worker_init after_setup_logger after_setup_task_logger celeryd_after_setup "
    "worker_before_create_process worker_process_init worker_ready worker_shutting_down worker_process_shutdown "
    "worker_shutdown"
).split()


def life(program: Program) -> list[Note]:
    """What was told of the worker itself, each signal once: children that died have others after them."""
    found: dict[str, Note] = {}
    for note in program.notes("worker"):
        if note["what"] in LIFE:
            named = note["named"]
            keywords = named if note["what"] == "worker_shutting_down" else sorted(named)
            sender = note["sender"] if str(note["sender"]).count("@") else bool(note["sender"])
            found.setdefault(note["what"], {"what": note["what"], "sender": sender, "named": keywords})
    return list(found.values())


@pytest.mark.parametrize("pool", POOLS)
def test_the_life_of_a_worker_is_told_as_in_celery(programs: Any, pool: str) -> None:
    original, ours = (life(programs[library, pool]) for library in LIBRARIES)
    assert {one["what"]: one for one in ours} == {one["what"]: one for one in original}


@pytest.mark.parametrize("pool", POOLS)
def test_the_life_of_a_worker_is_told_in_celerys_order(programs: Any, pool: str) -> None:
    # A child says its own meanwhile.
    original, ours = (
        [one["what"] for one in life(programs[library, pool]) if "worker_process" not in one["what"]]
        for library in LIBRARIES
    )
    assert ours == original


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_heartbeats_are_told(programs: Any, library: str, pool: str) -> None:
    assert names(programs[library, pool].notes("worker")).count("heartbeat_sent") >= 2


@pytest.mark.parametrize("of", ["client", "worker"])
def test_the_signals_of_the_app_are_told_as_in_celery(programs: Any, of: str) -> None:
    wanted = ("on_configure", "on_after_configure", "on_after_finalize")
    original, ours = (
        [
            (one["what"], one["sender"], one["named"])
            for one in programs[library, "solo"].notes(of)
            if one["what"] in wanted
        ]
        for library in LIBRARIES
    )
    if of == "client":  # ours asks for the names of its tasks when it sends by name
        ours = [one for one in ours if one[0] != "on_after_finalize"]
        original = [one for one in original if one[0] != "on_after_finalize"]
    assert ours == original
