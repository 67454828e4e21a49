"""`ping`, as Celery's users import it for their test workers; `start_worker` does not need it here."""

from __future__ import annotations

from minicelery.registry import shared_task


@shared_task(name="celery.ping")
def ping() -> str:
    """Answer 'pong'."""
    return "pong"
