"""The app of the workers that these tests start: ``minicelery -A tests.compat.project worker …``."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

from minicelery import Celery
from minicelery.exceptions import SoftTimeLimitExceeded

URL = os.environ.get("COMPAT_URL", "memory://project")

app = Celery("project", broker=URL, backend=URL, set_as_current=False)
kept: list[bytes] = []


@app.task(name="where")
def where(seconds: float = 0.0) -> list[Any]:
    """The process and the thread that it runs in."""
    time.sleep(seconds)
    return [os.getpid(), threading.current_thread().name]


@app.task(name="nap", track_started=True)
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@app.task(name="anap", track_started=True)
async def anap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@app.task(name="clean")
def clean(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "in time"


@app.task(name="swell")
def swell(mebibytes: int) -> int:
    kept.append(os.urandom(1 << 20) * mebibytes)
    return os.getpid()
