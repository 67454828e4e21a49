"""The worker's log: handlers where the program has set up none, and what tasks print.

Logging that the program has configured is left as it is: `worker_hijack_root_logger`, by
which Celery throws the program's handlers away, is accepted and changes nothing.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from minicelery import signals
from minicelery.exceptions import ImproperlyConfigured
from minicelery.utils.log import task_logger

if TYPE_CHECKING:
    from minicelery.settings import Settings

__all__ = [
    "JSONFormatter",
    "LoggingProxy",
    "TaskFormatter",
    "redirect_stdouts",
    "restore_stdouts",
    "setup_logging",
]

COLOURS = {"DEBUG": "34", "WARNING": "33", "ERROR": "31", "CRITICAL": "35"}
"""Codes of the terminal, by level; INFO has none."""

LONGEST_LINE = 16_384
"""Characters printed without an end of line after which they are logged all the same."""

UNKNOWN = "???"

JSON = "json"
"""What `worker_log_format` is for lines that are JSON objects."""

_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

current_task_info: Callable[[], tuple[str, str] | None] = lambda: None  # noqa: E731 - to be replaced
"""Returns name and id of the task that runs in this thread, or None."""

process_name: str | None = None
"""What ``%(processName)s`` is in this process; None: what `logging` says."""


def setup_logging(
    conf: Settings,
    *,
    loglevel: str | int,
    logfile: str | None,
    colorize: bool | None = None,
    log_format: str | None = None,
) -> None:
    """Make the worker's log lines appear on stderr, or in `logfile`.

    A receiver of the signal `setup_logging` does it all instead; its exception is raised.
    Where the root logger has handlers already only the level of minicelery's own loggers is set.
    `colorize` None means `worker_log_color`, and that None a terminal without NO_COLOR.
    `log_format` is ``json``, ``text``, or None: as `worker_log_format` and `worker_task_log_format` say.
    Raises ImproperlyConfigured for an unknown level or a file that can't be written.
    """
    level = level_number(loglevel)
    line, task_line = _formats(conf, log_format)
    colours = wants_colour(logfile, conf.worker_log_color if colorize is None else colorize)
    announced: dict[str, Any] = {"loglevel": level, "logfile": logfile, "colorize": colours}
    responses = signals.setup_logging.send(None, format=line, **announced)
    for _, response in responses:
        if isinstance(response, Exception):
            raise response
    if responses:
        return
    root = logging.getLogger()
    if is_configured(root):
        _set_own_level(level)
    else:
        _configure(root, line, conf.worker_log_datefmt, level, logfile, colours)
        if not is_configured(task_logger):
            _configure(
                task_logger,
                task_line,
                conf.worker_task_log_datefmt,
                level,
                logfile,
                colours,
            )
            task_logger.propagate = False  # its lines would appear twice, once in each format
    signals.after_setup_logger.send(None, logger=root, format=line, **announced)
    signals.after_setup_task_logger.send(None, logger=task_logger, format=task_line, **announced)


def _formats(conf: Settings, wanted: str | None) -> tuple[str, str]:
    """The format of the worker's lines, and that of tasks."""
    if wanted == JSON:
        return JSON, JSON
    lines = conf.worker_log_format, conf.worker_task_log_format
    if wanted is not None and JSON in lines:
        from minicelery.settings.table import LOG_FORMAT, TASK_LOG_FORMAT

        return LOG_FORMAT, TASK_LOG_FORMAT
    return lines


def redirect_stdouts(level: str | int) -> None:
    """Log what is printed to stdout and stderr from now on, at `level`."""
    number = level_number(level)
    logger = logging.getLogger("minicelery.redirected")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        original = stream.original if isinstance(stream, LoggingProxy) else stream
        setattr(sys, name, LoggingProxy(logger, number, original))


def restore_stdouts() -> None:
    """Undo `redirect_stdouts`, where it is still in force."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, LoggingProxy):
            stream.flush()
            setattr(sys, name, stream.original)


class TaskFormatter(logging.Formatter):
    """Formats records, with ``%(task_name)s`` and ``%(task_id)s`` of the task that runs."""

    def __init__(self, fmt: str | None = None, use_color: bool = False, datefmt: str | None = None) -> None:
        super().__init__(fmt, datefmt)
        self.use_color = use_color

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, in its level's colour where colours are on."""
        info = current_task_info()
        if info is not None:
            record.task_name, record.task_id = info
        elif not hasattr(record, "task_id"):
            record.task_name = record.task_id = UNKNOWN
        if process_name is not None:
            record.processName = process_name
        text = super().format(record)
        colour = COLOURS.get(record.levelname) if self.use_color else None
        return text if colour is None else f"\x1b[{colour}m{text}\x1b[0m"


class JSONFormatter(logging.Formatter):
    """Formats each record as one line, a JSON object: what it says, and in which task.

    What the program adds with ``extra=`` is among its fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "process": process_name or record.processName,
            "pid": record.process,
        }
        info = current_task_info()
        if info is not None:
            line["task"], line["task_id"] = info
        for name, value in vars(record).items():
            if name not in _OF_EVERY_RECORD and name not in line:
                line[name] = value
        if record.exc_info and (error := record.exc_info[1]) is not None:
            line["error"] = {
                "type": type(error).__name__,
                "message": _text(error),
                "traceback": "".join(traceback.format_exception(*record.exc_info)),
            }
        elif record.exc_text:
            line["error"] = {"traceback": record.exc_text}
        if record.stack_info:
            line["stack"] = record.stack_info
        # ASCII, as a stream of another encoding would write what is no JSON.
        try:
            return json.dumps(line, allow_nan=False, default=_text)
        except (TypeError, ValueError, RecursionError):  # keys that are no text, a list that holds itself
            return json.dumps({name: _text(value) for name, value in line.items()})


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that do not fit: a line of another form would come out
        return f"{_text(record.msg)} {_text(record.args)}"


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # whoever logs what can't be shown should still hear of it
        return f"<{type(value).__name__}>"


class LoggingProxy(io.TextIOBase):
    """A text stream that logs each line written to it.

    Lines are put together per thread, so threads that print at once don't mix theirs, and no
    lock is held that a fork could copy.  What logging itself prints meanwhile, as the
    traceback of a failing handler, goes to `original`.
    """

    def __init__(self, logger: logging.Logger, level: int, original: Any) -> None:
        self.logger = logger
        self.level = level
        self.original = original
        self._begun = _Begun()

    def write(self, text: str) -> int:
        """Log the lines that `text` completes; keep the rest until its end comes, or a flush."""
        if not isinstance(text, str):
            raise TypeError(f"write() takes a str, not {type(text).__name__}")
        if _here.logging:
            if self.original is not None:
                self.original.write(text)
            return len(text)
        *lines, begun = (self._begun.line + text).split("\n")
        if len(begun) > LONGEST_LINE:
            lines.append(begun)
            begun = ""
        self._begun.line = begun
        for line in lines:
            self._log(line)
        return len(text)

    def flush(self) -> None:
        """Log the line begun by this thread as it stands."""
        if _here.logging:
            if self.original is not None:
                self.original.flush()
            return
        line, self._begun.line = self._begun.line, ""
        self._log(line)

    def close(self) -> None:
        """Do nothing: what is printed later must not fail."""

    def fileno(self) -> int:
        """The descriptor of the stream replaced, for a subprocess to write to."""
        if self.original is None:
            raise io.UnsupportedOperation("fileno")
        number: int = self.original.fileno()
        return number

    def isatty(self) -> bool:
        """False: a log is no terminal."""
        return False

    def writable(self) -> bool:
        """True."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]  # the base class has an attribute
        """That of the stream replaced."""
        return getattr(self.original, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # the base class has an attribute
        """That of the stream replaced."""
        return getattr(self.original, "errors", None) or "strict"

    def __getattr__(self, name: str) -> Any:
        # `buffer`, `name`, `reconfigure`, …; bytes written to `buffer` are not logged.
        return getattr(self.original, name)

    def _log(self, line: str) -> None:
        line = line.rstrip("\r")
        if not line.strip():
            return
        _here.logging = True
        try:
            self.logger.log(self.level, "%s", line)
        finally:
            _here.logging = False


class _Begun(threading.local):
    line = ""  # printed by this thread, its end still to come


class _Here(threading.local):
    logging = False  # this thread is in a log call of a proxy's: of any, as handlers may use the other


_here = _Here()


def level_number(level: str | int) -> int:
    """The number of a level given by name, in any case, or by number."""
    if isinstance(level, int):
        return level
    number = logging.getLevelName(level.upper())
    if isinstance(number, int):
        return number
    if level.isdigit():
        return int(level)
    raise ImproperlyConfigured(
        f"there is no log level {level!r}; there are DEBUG, INFO, WARNING, ERROR and CRITICAL"
    )


def wants_colour(logfile: str | None, wanted: bool | None) -> bool:
    """Whether log lines are coloured: on a terminal only; `wanted` True overrules NO_COLOR."""
    if wanted is False or logfile is not None:
        return False
    if wanted is None and (os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"):
        return False
    stream = sys.__stderr__
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def is_configured(logger: logging.Logger) -> bool:
    """Whether someone has given the logger a handler that does something."""
    return any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers)


def _set_own_level(level: int) -> None:
    own = logging.getLogger("minicelery")
    if own.level == logging.NOTSET:
        own.setLevel(level)


def _configure(
    logger: logging.Logger, format: str, datefmt: str | None, level: int, logfile: str | None, colours: bool
) -> None:
    handler = _handler(logfile)
    handler.setFormatter(JSONFormatter() if format == JSON else TaskFormatter(format, colours, datefmt))
    logger.addHandler(handler)
    logger.setLevel(level)


def _handler(logfile: str | None) -> logging.Handler:
    if logfile is None:
        return logging.StreamHandler(sys.__stderr__)
    from logging.handlers import WatchedFileHandler  # imports sockets and pickle

    try:
        return WatchedFileHandler(logfile, encoding="utf-8")
    except OSError as error:
        raise ImproperlyConfigured(
            f"the log file {logfile} can't be written ({error.strerror}); give another with --logfile"
        ) from error
