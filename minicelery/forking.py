"""What a forked child begins anew: locks that a thread of its parent may have held, and connections."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

_resets: weakref.WeakKeyDictionary[Any, Callable[..., None]] = weakref.WeakKeyDictionary()


def call_in_forked_children(reset: Callable[[], None]) -> None:
    """Call `reset` first thing in each forked child of this process; one function, or one method of an object.

    The object is not kept alive by it.
    """
    if isinstance(reset, MethodType):
        _resets[reset.__self__] = reset.__func__
    else:
        _resets[reset] = lambda function: function()


def _begin_anew() -> None:
    for owner, reset in list(_resets.items()):
        reset(owner)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_anew)
