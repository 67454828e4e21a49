"""The tasks that `minicelery demo` runs; an example of what tasks look like."""

from __future__ import annotations

import time
from typing import Any

from minicelery import Celery

app = Celery("demo", set_as_current=False, result_extended=True)  # results tell of retries

LOST = 2
"""How many attempts of `deliver` fail."""


@app.task(name="add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="count_words")
def count_words(text: str) -> int:
    return len(text.split())


@app.task(name="deliver", bind=True, max_retries=LOST)
def deliver(self: Any, parcel: str) -> str:
    attempt = self.request.retries + 1
    if attempt <= LOST:
        raise self.retry(exc=ConnectionError(lost(attempt)), countdown=0.4)
    return f"{parcel} delivered at attempt {attempt}"


def lost(attempt: int) -> str:
    """Why an attempt of `deliver` has failed."""
    return f"attempt {attempt}: nobody at home"


@app.task(name="resize", bind=True)
def resize(self: Any, pictures: int) -> str:
    for done in range(pictures):
        self.update_state(state="PROGRESS", meta={"current": done, "total": pictures})
        time.sleep(0.12)
    return f"{pictures} pictures resized"


@app.task(name="remind")
def remind(due: float) -> float:
    """Return how many seconds after `due` it was run."""
    return time.time() - due
