"""Runs a worker of the tests' app: ``python -m tests.worker.apps.serve '<json>'``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from minicelery import signals
from minicelery.routing import Broadcast
from minicelery.worker import Worker
from tests.worker.apps.tasks import make_app, trace_the_worker


def main() -> int:
    asked = json.loads(sys.argv[1])
    path = Path(asked["traces"])
    app = make_app(asked["url"], path, asked["backend"], **asked["conf"])
    trace_the_worker(path)
    if asked["broadcast"]:
        app.conf.task_queues = [Broadcast(asked["broadcast"])]
    if asked["broken_start"]:

        def fail(**_: object) -> None:
            raise SystemExit(9)

        signals.worker_process_init.connect(fail, weak=False)
    return Worker(app, **asked["options"]).run()


if __name__ == "__main__":
    sys.exit(main())
