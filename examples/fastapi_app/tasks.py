# tasks.py
import asyncio
import os
import time

from minicelery import Celery

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

queue = Celery("tasks", broker=REDIS_URL, backend=REDIS_URL)


@queue.task(bind=True)
def report(self, pages: int) -> dict:
    """A slow plain function that tells how far it is."""
    for page in range(pages):
        self.update_state(state="PROGRESS", meta={"current": page, "total": pages})
        time.sleep(1)
    return {"file": f"report-{pages}.pdf", "pages": pages}


@queue.task
async def greet(name: str) -> str:
    """A task may be a coroutine, too."""
    await asyncio.sleep(0.1)
    return f"Hello {name}"
