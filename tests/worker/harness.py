"""A real worker in a process of its own, and what its tasks left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minicelery import Celery
from minicelery.result import AsyncResult
from tests.waiting import wait_until
from tests.worker.apps.tasks import make_app, told

ROOT = Path(__file__).parents[2]


class Trace(NamedTuple):
    """One line that a task or a worker has left."""

    kind: str
    what: str
    pid: int
    time: float
    detail: str


class Stage:
    """One test's app, its workers, and the traces of their tasks."""

    def __init__(self, url: str, folder: Path, backend: str = "") -> None:
        self.url = url
        self.backend = backend or url
        self.path = folder / "traces"
        self.path.touch()
        self.app: Celery = make_app(url, self.path, self.backend)
        self.workers: list[WorkerProcess] = []
        self._folder = folder

    def worker(
        self,
        *,
        conf: dict[str, Any] | None = None,
        broken_start: bool = False,
        broadcast: str = "",
        **options: Any,
    ) -> WorkerProcess:
        """Start a worker and wait until it is ready."""
        options = {"concurrency": 2, "loglevel": "INFO", "hostname": f"w{len(self.workers)}@test", **options}
        asked = {
            "url": self.url, "backend": self.backend, "traces": str(self.path), "conf": conf or {}, "options": options,
            "broken_start": broken_start, "broadcast": broadcast,
        }  # fmt: skip
        worker = WorkerProcess(asked, self._folder / f"worker-{len(self.workers)}.log", self)
        self.workers.append(worker)

        def ready() -> bool:
            return bool(self.traces("ready", pid=worker.pid))

        wait_until(lambda: worker.poll() is not None or ready(), timeout=30)
        assert ready(), "the worker has ended instead of getting ready"
        return worker

    def send(self, name: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        return self.app.send_task(name, args, **options)

    def send_many(
        self, name: str, calls: Sequence[tuple[Any, ...]], **options: Any
    ) -> list[AsyncResult[Any]]:
        return self.app.tasks[name].apply_many(calls, **options)

    def tell(self) -> None:
        """End what runs until told."""
        told(self.path).touch()

    def traces(self, kind: str, what: str | None = None, pid: int | None = None) -> list[Trace]:
        """What was left of that kind, in order."""
        found = []
        for line in self.path.read_text().split("\n")[:-1]:  # the last one may be half there
            if line.startswith(kind + " "):
                name, of, by, at, *detail = line.split(" ", 4)
                trace = Trace(name, of, int(by), float(at), detail[0].rstrip() if detail else "")
                if what in (None, trace.what) and pid in (None, trace.pid):
                    found.append(trace)
        return found

    def runs(self) -> Counter[str]:
        """How often each task was begun, by id."""
        return Counter(trace.what for trace in self.traces("start"))

    def ends(self) -> Counter[str]:
        """How often each task came to its end, by id."""
        return Counter(trace.what for trace in self.traces("end"))

    def states(self, results: Sequence[AsyncResult[Any]]) -> Counter[str]:
        """How many results are in which state."""
        records = self.app.backend.load([result.id for result in results])
        return Counter("PENDING" if r is None else json.loads(r.document)["status"] for r in records)

    def wait_for(self, results: Sequence[AsyncResult[Any]], timeout: float = 20.0) -> Counter[str]:
        """The states of the results, once all of them are final."""
        final = {"SUCCESS", "FAILURE", "REVOKED"}

        def all_final() -> Counter[str]:
            states = self.states(results)
            return states if set(states) <= final else Counter()

        try:
            return wait_until(all_final, timeout, interval=0.05)
        except AssertionError:
            raise AssertionError(f"not all final within {timeout} s: {self.states(results)}") from None

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.app.close()


class WorkerProcess:
    """A worker, in a session of its own; nothing of it outlives `end`."""

    def __init__(self, asked: dict[str, Any], log: Path, stage: Stage) -> None:
        self.log = log
        self._stage = stage
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.worker.apps.serve", json.dumps(asked)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        self.pid = self._process.pid

    def processes(self) -> list[int]:
        """All that lives in the worker's session, the parent among them."""
        return [pid for pid, _, session in _processes() if session == self.pid]

    def children(self) -> list[int]:
        """The children that run tasks; not the agent."""
        known = {trace.pid for trace in self._stage.traces("child")}
        return [pid for pid, parent, _ in _processes() if parent == self.pid and pid in known]

    def agent(self) -> int:
        """The agent's pid, once all children have said that they are none."""

        def found() -> int:
            known = {trace.pid for trace in self._stage.traces("child")}
            others = [pid for pid, parent, _ in _processes() if parent == self.pid and pid not in known]
            return others[0] if len(others) == 1 else 0

        return wait_until(found)

    def send_signal(self, number: int) -> None:
        """To the parent only."""
        if self._process.poll() is None:
            os.kill(self.pid, number)

    def term(self) -> None:
        self.send_signal(signal.SIGTERM)

    def interrupt(self) -> None:
        self.send_signal(signal.SIGINT)

    def quit(self) -> None:
        self.send_signal(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL the parent; nobody else."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def kill_child(self) -> None:
        """SIGKILL the first of the children."""
        _kill(wait_until(self.children)[0])

    def kill_all(self) -> None:
        """SIGKILL everything at once, as the loss of the machine would."""
        self.send_signal(signal.SIGSTOP)  # it starts nobody else meanwhile

        def all_gone() -> bool:
            left = [pid for pid in self.processes() if pid != self.pid]
            return not sum(map(_kill, left))

        wait_until(all_gone)
        self.kill()

    def signal_group(self, number: int) -> None:
        """To every process of the worker, as a terminal does."""
        os.killpg(self.pid, number)

    def poll(self) -> Any:
        return self._process.poll()

    def wait(self, timeout: float = 10.0) -> Any:
        """The exit code; AssertionError where it does not end in time."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {timeout} s") from None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, text: str) -> None:
        """Wait until that is in its log."""
        wait_until(lambda: text in self.output())

    def end_what_runs(self) -> int:
        """The exit code of a worker that has been told to stop; what runs until told ends after that."""
        self.says("Warm shutdown")
        time.sleep(0.3)  # until the children have heard of it, which they do not say
        self._stage.tell()
        code: int = self.wait()
        return code

    def end(self) -> None:
        """Kill what is left; its pids are known by their session."""
        if self._process.poll() is None or self.processes():
            self.kill_all()


class Stalls:
    """How long at most a thread that sleeps for moments was kept waiting, within this block."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.02):
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now


def undisturbed(longest: float, holds: Callable[[], bool], rounds: int = 3) -> bool:
    """Whether it `holds`; asked again where it does not and the machine stood still for `longest` seconds."""
    for left in reversed(range(rounds)):
        with Stalls() as stalls:
            if holds():
                return True
        if not left or stalls.longest < longest:
            break
    return False


def kill_repeatedly(worker: WorkerProcess, every: float, until: Any, choose: Any) -> int:
    """SIGKILL a child that `choose` picks, every `every` seconds until `until()`; how many."""
    killed = 0
    due = time.monotonic()
    while not until(killed):
        due = max(due + every, time.monotonic())
        if children := worker.children():
            killed += _kill(choose(children))
        time.sleep(max(0.0, due - time.monotonic()))
    return killed


def _kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _processes() -> list[tuple[int, int, int]]:
    """`(pid, parent, session)` of every process that is not a zombie."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{name}/stat").read_text()
                state, parent, _, session = stat.rpartition(")")[2].split()[:4]
                if state != "Z":
                    found.append((int(name), int(parent), int(session)))
    return found
