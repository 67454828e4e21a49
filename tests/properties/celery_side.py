"""Celery's side of a comparison: `SHAPES` sent by Celery, for a worker of Celery's.

Its worker: ``celery -A tests.properties.celery_side worker``.  By itself it sends all and prints what came of it
as JSON: a list of values, of ``[name of the exception]`` in a dict, or None where nothing came in time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import celery
from celery.exceptions import Ignore, Reject, TimeoutError

from tests.properties.libraries import Library
from tests.properties.places import add_tasks
from tests.properties.shapes import SHAPES

URL = "COMPOSITIONS_URL"
SECONDS = 60.0

app = celery.Celery("compositions", broker=os.environ.get(URL, ""), backend=os.environ.get(URL, ""))
app.conf.update(worker_send_task_events=False, broker_connection_retry_on_startup=True)
add_tasks(app, Ignore, Reject)


def main() -> None:
    library = Library(
        app, celery.chain, celery.group, celery.chord, celery.signature, celery.canvas.xmap,
        celery.canvas.xstarmap, celery.canvas.chunks, "",
    )  # fmt: skip
    results: list[Any] = []
    for number, shape in enumerate(SHAPES):
        library.prefix = f"{number}."
        try:
            results.append(library.made(shape).apply_async())
        except Exception as error:
            results.append(error)
    end = time.monotonic() + SECONDS
    *most, last = results
    found = [_value(result, end) for result in most]
    print(json.dumps([*found, _value(last, time.monotonic() + 0.5)]))


def _value(result: Any, end: float) -> Any:
    if result is None or isinstance(result, Exception):
        return result and {"sent": repr(result)}
    try:
        return result.get(timeout=max(0.02, end - time.monotonic()), interval=0.05)
    except TimeoutError:
        return None
    except Exception as error:
        return {"raised": type(error).__name__}


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # its threads wait for results that don't come
