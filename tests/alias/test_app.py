"""What programs written for Celery's apps ask of an app, beside its tasks: Flower among them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minicelery import Celery
from minicelery.exceptions import BrokerUnavailable, OperationalError
from tests.cli.conftest import Project, project

__all__ = ["project"]


@pytest.mark.parametrize(
    ("url", "masked", "kind"),
    [
        ("redis://:hush@127.0.0.1:6399/2", "redis://:**@127.0.0.1:6399/2", "redis"),
        ("rediss://me:hush@127.0.0.1:6399/0", "rediss://me:**@127.0.0.1:6399/0", "redis"),
        ("pyamqp://me:hush@127.0.0.1:5699//", "pyamqp://me:**@127.0.0.1:5699//", "amqp"),
        ("memory://", "memory://", "memory"),
    ],
)
def test_a_connection_says_where_it_leads_and_shows_the_password_when_asked(
    url: str, masked: str, kind: str
) -> None:
    with Celery("shop", broker=url, set_as_current=False) as app, app.connection() as connection:
        assert (connection.as_uri(), connection.transport.driver_type) == (masked, kind)
        assert connection.as_uri(include_password=True) == url
        assert issubclass(BrokerUnavailable, connection.recoverable_connection_errors)
        assert OperationalError in connection.connection_errors


def test_a_relative_sqlite_file_is_named_by_its_whole_path(tmp_path: Path) -> None:
    with Celery("shop", broker="sqlite:///queue.db", set_as_current=False) as app:
        app._home = tmp_path
        uri = app.connection().as_uri(include_password=True)
        assert (uri, app.connection().transport.driver_type) == (f"sqlite:///{tmp_path}/queue.db", "sqlite")


def test_the_loader_imports_the_modules_of_the_settings(project: Project) -> None:
    project.write(
        "stock.py", "from minicelery import shared_task\n@shared_task(name='stock.count')\ndef count(): ...\n"
    )
    sys.path.insert(0, str(project.path))
    with Celery("shop", broker="memory://", include=["stock"], set_as_current=False) as app:
        app.loader.import_default_modules()
        assert "stock.count" in app.tasks
