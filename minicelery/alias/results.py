"""What is a result: for ``isinstance(value, ResultBase)``."""

from __future__ import annotations

from abc import ABC

from minicelery.groups import ResultSet
from minicelery.result import AsyncResult


class ResultBase(ABC):  # noqa: B024 - classes are registered with it
    """Results of calls, and sets of them."""

    parent = None


ResultBase.register(AsyncResult)
ResultBase.register(ResultSet)
