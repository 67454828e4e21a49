"""For tests of programs that use minicelery: apps in memory, time that can be moved, embedded workers.

>>> from minicelery.contrib.testing import TestApp, run_until_idle
>>> app = TestApp()
>>> @app.task
... def add(x, y):
...     return x + y
>>> result = add.delay(2, 2)
>>> run_until_idle(app)
[<Run of ...add: SUCCESS 4>]
>>> result.get()
4
"""

from minicelery.contrib.testing.app import TestApp, in_memory
from minicelery.contrib.testing.idle import Run, run_until_idle
from minicelery.contrib.testing.outbox import Outbox, Sent, assert_enqueued
from minicelery.contrib.testing.travel import Clock, time_travel
from minicelery.contrib.testing.worker import start_worker

__all__ = [
    "Clock",
    "Outbox",
    "Run",
    "Sent",
    "TestApp",
    "assert_enqueued",
    "in_memory",
    "run_until_idle",
    "start_worker",
    "time_travel",
]
