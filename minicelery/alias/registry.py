"""Celery's old `registry`: the tasks of the current app."""

from __future__ import annotations

from typing import Any

from minicelery._state import Proxy, get_current_app

tasks: Any = Proxy(lambda: get_current_app().tasks)
