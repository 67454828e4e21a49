"""A PostgreSQL server of a test run's own: on a free port of the loopback, its files in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import end
from tests.servers import free_port
from tests.waiting import wait_until

USER = "postgres"


def programs() -> Path | None:
    """Where initdb and postgres are; None where they are not installed."""
    found = shutil.which("initdb")
    places = (
        [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next(
        (place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None
    )


class PostgresServer:
    """One server, without durability: what is in it is the test's."""

    def __init__(self) -> None:
        self.port = 0
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> PostgresServer:
        """Make the database cluster and start; returns when it accepts connections."""
        place = programs()
        assert place is not None
        data = self._folder / "data"
        # The server refuses to run as root.
        who: dict[str, Any] = {"cwd": str(self._folder), "stdin": subprocess.DEVNULL}
        if os.getuid() == 0:
            account = pwd.getpwnam(USER)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            who |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        with open(self._folder / "log", "wb") as log:
            subprocess.run(
                [place / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
                stdout=log, stderr=log, check=True, timeout=60, **who,
            )  # fmt: skip
        self._command = [
            place / "postgres", "-D", data, "-k", self._folder, "-h", "127.0.0.1",
            "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
        ]  # fmt: skip
        self._who = who
        for _ in range(5):  # another process may take the free port before the server does
            self.port = free_port()
            if self._launched():
                return self
        raise AssertionError(self._said())

    def resume(self) -> None:
        """Run again on the same port, with what was there; returns when it accepts connections."""
        wait_until(self._launched, 30, 0.5)  # somebody's connection may have the port for a while

    def _launched(self) -> bool:
        """Start the process; whether it has come to accept connections."""
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "-p", str(self.port)], stdout=log, stderr=log, **self._who
            )
        wait_until(lambda: self._answers() or self._process.poll() is not None, 30)
        return self._process.poll() is None

    def settings(self, name: str = USER) -> dict[str, Any]:
        """An entry of Django's DATABASES."""
        return {
            "ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": USER, "HOST": "127.0.0.1",
            "PORT": self.port,
        }  # fmt: skip

    def halt(self) -> None:
        """End it at once: its clients lose their connections."""
        if self._process is not None:
            end(self._process, number=signal.SIGINT)  # a fast shutdown

    def stop(self) -> None:
        """End it at once, and remove its files."""
        self.halt()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(
                f"host=127.0.0.1 port={self.port} user={USER} dbname={USER}", connect_timeout=5
            ).close()
        except psycopg.OperationalError:
            return False
        return True

    def _said(self) -> str:
        return (self._folder / "log").read_text()[-2000:]


def served() -> Iterator[PostgresServer]:
    """A running server, for a fixture; skips where there is none, but not in CI."""
    missing = "PostgreSQL is not installed" if programs() is None else None
    try:
        import psycopg
    except ImportError:
        missing = "psycopg is not installed"
    else:
        assert psycopg.__version__
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"{missing}, and in CI nothing is skipped")
        pytest.skip(missing)
    server = PostgresServer()
    try:
        yield server.start()
    finally:
        server.stop()
