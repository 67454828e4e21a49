"""The tests' app as a module that a spawned child can import; as a program, a worker of it.

``SPAWNABLE`` holds what `tests.worker.apps.serve` gets as its argument.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from minicelery.worker import Worker
from tests.worker.apps.tasks import make_app, trace_the_worker

_asked = json.loads(os.environ["SPAWNABLE"])
app = make_app(_asked["url"], Path(_asked["traces"]), _asked["backend"], **_asked["conf"])
trace_the_worker(Path(_asked["traces"]))

if __name__ == "__main__":
    sys.exit(Worker(app, pool_start_method="spawn", **_asked["options"]).run())
