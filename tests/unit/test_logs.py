"""The worker's log: whose handlers, which format, and what becomes of what tasks print."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minicelery import signals
from minicelery.exceptions import ImproperlyConfigured
from minicelery.utils.log import get_logger, get_task_logger, task_logger
from minicelery.worker import logs


@dataclass
class Conf:
    """The settings that logging reads."""

    worker_hijack_root_logger: bool = True
    worker_log_color: bool | None = None
    worker_log_format: str = "%(levelname)s %(message)s"
    worker_log_datefmt: str | None = None
    worker_task_log_format: str = "%(levelname)s %(task_name)s[%(task_id)s] %(message)s"
    worker_task_log_datefmt: str | None = None


LOGGERS = ("", "minicelery", "minicelery.task", "minicelery.redirected")


@pytest.fixture(autouse=True)
def untouched_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loggers as in a fresh process, and as they were afterwards."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(logs, "current_task_info", lambda: None)
    kept = []
    for name in LOGGERS:
        logger = logging.getLogger(name or None)
        kept.append((logger, logger.handlers, logger.level, logger.propagate))
        logger.handlers = []
        logger.setLevel(logging.NOTSET if name else logging.WARNING)
    yield
    logs.restore_stdouts()
    for logger, handlers, level, propagate in kept:
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def printed() -> Records:
    """What is logged by way of the redirected streams."""
    records = Records()
    logger = logging.getLogger("minicelery.redirected")
    logger.addHandler(records)
    logger.propagate = False
    return records


def set_up(conf: Any = None, **options: Any) -> None:
    root = logging.getLogger()
    # Those that pytest adds to capture the log.
    root.handlers = [one for one in root.handlers if not type(one).__module__.startswith("_pytest")]
    logs.setup_logging(conf or Conf(), **{"loglevel": "INFO", "logfile": None, **options})


def test_a_logfile_gets_the_lines_of_the_worker_in_its_format(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    set_up(logfile=str(file))
    get_logger("minicelery.worker").info("ready")
    get_logger("minicelery.worker").debug("not wanted")
    assert file.read_text() == "INFO ready\n"


def test_task_loggers_have_the_name_and_id_of_the_task_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "worker.log"
    set_up(logfile=str(file))
    logger = get_task_logger("test_logs_project.tasks")
    logger.info("outside")
    monkeypatch.setattr(logs, "current_task_info", lambda: ("proj.add", "id-1"))
    logger.info("inside")
    assert file.read_text() == "INFO ???[???] outside\nINFO proj.add[id-1] inside\n"


def test_the_time_is_formatted_as_the_settings_say(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    set_up(
        Conf(worker_log_format="%(asctime)s %(message)s", worker_log_datefmt="on a day"), logfile=str(file)
    )
    get_logger("minicelery.worker").warning("ready")
    assert file.read_text() == "on a day ready\n"


def test_the_process_name_is_the_one_set_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "process_name", "ForkPoolWorker-1")
    record = logging.LogRecord("any", logging.INFO, __file__, 1, "message", (), None)
    assert logs.TaskFormatter("%(processName)s").format(record) == "ForkPoolWorker-1"


@pytest.mark.parametrize("hijack", [True, False])
def test_handlers_that_the_program_has_set_up_stay_alone(hijack: bool) -> None:
    root, records = logging.getLogger(), Records()
    root.addHandler(records)
    set_up(Conf(worker_hijack_root_logger=hijack))
    assert not root.isEnabledFor(logging.INFO)
    assert root.handlers == [records]
    assert not task_logger.handlers
    get_logger("minicelery.worker").info("ready")
    get_task_logger("test_logs_project.tasks").info("from a task")
    assert records.lines == ["ready", "from a task"]


def test_a_level_the_program_has_set_for_our_loggers_stays() -> None:
    logging.getLogger().addHandler(Records())
    logging.getLogger("minicelery").setLevel(logging.ERROR)
    set_up(loglevel="DEBUG")
    assert logging.getLogger("minicelery").level == logging.ERROR


def test_a_null_handler_is_no_configuration() -> None:
    logging.getLogger().addHandler(logging.NullHandler())
    set_up()
    assert len(logging.getLogger().handlers) == 2


def test_setting_up_twice_adds_one_handler() -> None:
    set_up()
    set_up()
    assert len(logging.getLogger().handlers) == len(task_logger.handlers) == 1


def test_a_receiver_of_setup_logging_does_it_instead() -> None:
    seen: list[dict[str, Any]] = []

    def receive(**kwargs: Any) -> None:
        seen.append(kwargs)

    signals.setup_logging.connect(receive)
    try:
        set_up(loglevel="debug", logfile="worker.log")
    finally:
        signals.setup_logging.disconnect(receive)
    assert not logging.getLogger().handlers
    assert seen[0]["loglevel"] == logging.DEBUG
    assert seen[0]["logfile"] == "worker.log"
    assert seen[0]["format"] == Conf.worker_log_format
    assert seen[0]["colorize"] is False


def test_a_receiver_of_setup_logging_that_fails_stops_the_start() -> None:
    def receive(**kwargs: Any) -> None:
        raise KeyError("no such formatter")

    signals.setup_logging.connect(receive)
    try:
        with pytest.raises(KeyError, match="no such formatter"):
            set_up()
    finally:
        signals.setup_logging.disconnect(receive)


def test_the_after_signals_hand_out_both_loggers() -> None:
    seen: list[Any] = []

    def receive(logger: Any, loglevel: Any, logfile: Any, format: Any, colorize: Any, **kwargs: Any) -> None:
        seen.append((logger.name, len(logger.handlers), loglevel, format))

    signals.after_setup_logger.connect(receive)
    signals.after_setup_task_logger.connect(receive)
    try:
        set_up()
    finally:
        signals.after_setup_logger.disconnect(receive)
        signals.after_setup_task_logger.disconnect(receive)
    assert seen == [
        ("root", 1, logging.INFO, Conf.worker_log_format),
        ("minicelery.task", 1, logging.INFO, Conf.worker_task_log_format),
    ]


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ImproperlyConfigured, match="no log level 'loud'; there are DEBUG"):
        set_up(loglevel="loud")


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"worker\.log can't be written \(No such file"):
        set_up(logfile=str(tmp_path / "missing" / "worker.log"))
    assert not logging.getLogger().handlers


@pytest.mark.parametrize(
    ("wanted", "environment", "terminal", "coloured"),
    [
        (None, {}, True, True),
        (None, {}, False, False),
        (None, {"NO_COLOR": "1"}, True, False),
        (None, {"TERM": "dumb"}, True, False),
        (True, {"NO_COLOR": "1"}, True, True),
        (True, {}, False, False),
        (False, {}, True, False),
    ],
)
def test_colours_are_for_terminals(
    wanted: bool | None,
    environment: dict[str, str],
    terminal: bool,
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "__stderr__", Terminal())
    assert logs.wants_colour(None, wanted) is coloured
    assert logs.wants_colour("worker.log", wanted) is False


def test_a_coloured_line_has_its_level_s_colour() -> None:
    formatter = logs.TaskFormatter("%(message)s", use_color=True)
    record = logging.LogRecord("any", logging.ERROR, __file__, 1, "broken", (), None)
    assert formatter.format(record) == "\x1b[31mbroken\x1b[0m"


@pytest.mark.parametrize("name", ["minicelery", "minicelery.task"])
def test_a_task_logger_can_not_take_a_name_of_ours(name: str) -> None:
    with pytest.raises(ValueError, match="own"):
        get_task_logger(name)


def test_a_task_logger_below_a_logger_of_the_program_keeps_its_parent() -> None:
    parent = logging.getLogger("test_logs_parent")
    assert get_task_logger("test_logs_parent.tasks").parent is parent


def test_the_log_module_is_quick_to_import() -> None:
    code = "import sys, minicelery.utils.log; print([m for m in ('minicelery.app', 'redis', 'click') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "[]\n"


# -- what tasks print ------------------------------------------------------------------------


def test_each_complete_line_printed_is_one_log_line(printed: Records) -> None:
    logs.redirect_stdouts("WARNING")
    print("one", "two")
    print("three\nfour\n\n")
    print("err", file=sys.stderr)
    print("half", end="")
    assert printed.lines == ["one two", "three", "four", "err"]
    print(" done")
    assert printed.lines[-1] == "half done"


def test_flush_logs_the_line_begun(printed: Records) -> None:
    logs.redirect_stdouts("WARNING")
    print("progress", end="", flush=True)
    sys.stdout.flush()
    assert printed.lines == ["progress"]


def test_a_line_that_never_ends_is_logged_in_pieces(printed: Records) -> None:
    logs.redirect_stdouts("WARNING")
    for _ in range(3):
        sys.stdout.write("x" * logs.LONGEST_LINE)
    sys.stdout.flush()
    assert sum(map(len, printed.lines)) == 3 * logs.LONGEST_LINE
    assert len(printed.lines) > 1


def test_printed_percent_signs_are_no_format(printed: Records) -> None:
    logs.redirect_stdouts("WARNING")
    print("100 %s sure")
    assert printed.lines == ["100 %s sure"]


def test_the_level_decides_what_is_kept(printed: Records) -> None:
    logging.getLogger("minicelery.redirected").setLevel(logging.ERROR)
    logs.redirect_stdouts("WARNING")
    print("not kept")
    assert printed.lines == []


def test_writelines_and_wrong_types_behave_as_on_a_text_stream(printed: Records) -> None:
    logs.redirect_stdouts("WARNING")
    sys.stdout.writelines(["a\n", "b\n"])
    assert sys.stdout.write("c\n") == 2
    assert printed.lines == ["a", "b", "c"]
    with pytest.raises(TypeError, match="takes a str, not bytes"):
        sys.stdout.write(b"bytes")  # type: ignore[arg-type]  # the mistake under test


def test_a_handler_that_writes_to_the_redirected_stream_ends(
    printed: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = io.StringIO()
    monkeypatch.setattr(sys, "stderr", original)
    logs.redirect_stdouts("WARNING")
    logging.getLogger("minicelery.redirected").addHandler(logging.StreamHandler(sys.stderr))
    print("once")
    assert printed.lines == ["once"]
    assert original.getvalue() == "once\n"


def test_a_failing_handler_tells_the_original_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                raise OSError("disk full")
            except OSError:
                self.handleError(record)

    original = io.StringIO()
    monkeypatch.setattr(sys, "stderr", original)
    logging.getLogger("minicelery.redirected").addHandler(Failing())
    logs.redirect_stdouts("WARNING")
    print("lost")
    assert "disk full" in original.getvalue()


def test_the_redirected_stream_has_what_libraries_ask_for(
    printed: Records, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open(tmp_path / "out", "w", encoding="latin-1") as original:
        monkeypatch.setattr(sys, "stdout", original)
        logs.redirect_stdouts("WARNING")
        assert isinstance(sys.stdout, io.TextIOBase)
        assert sys.stdout.fileno() == original.fileno()
        assert not sys.stdout.isatty()
        assert sys.stdout.writable()
        assert sys.stdout.encoding == "latin-1"
        assert sys.stdout.errors == "strict"
        assert sys.stdout.buffer is original.buffer
        assert sys.stdout.name == original.name
        sys.stdout.close()
        print("after close")
    assert printed.lines == ["after close"]


def test_redirecting_twice_and_restoring_once_is_as_before(printed: Records) -> None:
    before = sys.stdout, sys.stderr
    logs.redirect_stdouts("WARNING")
    logs.redirect_stdouts("ERROR")
    print("begun", end="")
    logs.restore_stdouts()
    assert (sys.stdout, sys.stderr) == before
    assert printed.lines == ["begun"]


def test_lines_of_threads_that_print_at_once_are_not_mixed(printed: Records) -> None:
    logs.redirect_stdouts("WARNING")
    start = threading.Barrier(4)

    def write(name: str) -> None:
        start.wait(10)
        for _ in range(200):
            print(name, name, name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(set(printed.lines)) == ["a a a", "b b b", "c c c", "d d d"]
    assert len(printed.lines) == 800


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_can_log_while_a_thread_of_the_parent_held_the_handler(tmp_path: Path) -> None:
    program = """
import os, sys, threading, time, warnings
from dataclasses import dataclass
from minicelery.worker import logs
warnings.simplefilter("ignore")  # of forking with threads, which is what this is about

class Conf:
    worker_log_color = worker_log_datefmt = worker_task_log_datefmt = None
    worker_log_format = worker_task_log_format = "%(message)s"

logs.setup_logging(Conf, loglevel="INFO", logfile=sys.argv[1])
logs.redirect_stdouts("WARNING")
held, free = threading.Event(), threading.Event()

def hold():
    with logs.logging.getLogger().handlers[0].lock:
        held.set()
        free.wait(20)

thread = threading.Thread(target=hold)
thread.start()
held.wait(20)
child = os.fork()
if not child:
    print("child")
    os._exit(0)
end = time.monotonic() + 10
while time.monotonic() < end and os.waitpid(child, os.WNOHANG) == (0, 0):
    time.sleep(0.01)
free.set()
thread.join(20)
"""
    file = tmp_path / "worker.log"
    subprocess.run([sys.executable, "-c", program, str(file)], check=True, timeout=50)
    assert file.read_text() == "child\n"
