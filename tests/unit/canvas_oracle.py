"""The same expressions evaluated with Celery's canvas and with this one."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import celery
import celery.canvas

import minicelery
import minicelery.canvas

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TASKS = ("add", "mul", "total", "note", "shop.tasks.pay", "shop.tasks.ship")


class Library:
    """One library's canvas: the names that expressions use."""

    def __init__(self, library: ModuleType, canvas: ModuleType, app: Any) -> None:
        self.names: dict[str, Any] = {
            name: getattr(library, name)
            for name in ("chain", "group", "chord", "chunks", "xmap", "xstarmap", "signature", "Signature")
        }
        for name in _TASKS:
            self.names[name.rpartition(".")[2]] = app.task(_nothing, name=name, shared=False)
        app.finalize()
        self.names |= {
            "app": app, "dumped": dumped, "after": after, "maybe_signature": library.maybe_signature,
            "StampingVisitor": canvas.StampingVisitor, "linked": self._linked,
        }  # fmt: skip

    def _linked(self, sig: Any) -> Any:
        note = self.names["note"]
        return after(sig, "link", note.s(1)).on_error(note.s(2))

    def __call__(self, expression: str) -> Any:
        """What comes out, as JSON has it, with every id that was drawn blanked."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Celery's, of what it means to change
            found = eval(expression, dict(self.names))
        return plain(found) if isinstance(found, (dict, list, tuple)) else found


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def dumped(sig: Any) -> Any:
    """The signature as it comes out of a message."""
    return json.loads(json.dumps(sig))


def after(sig: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """The signature, once a method was called that changes it."""
    getattr(sig, method)(*args, **kwargs)
    return sig


def plain(value: Any) -> Any:
    """A signature as JSON, with its ids and its producer's blanked."""

    def bare(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: bare(one) for key, one in value.items() if key != "reply_to"}
        return [bare(one) for one in value] if isinstance(value, list) else value

    return bare(json.loads(_ID.sub("id", json.dumps(value))))


CELERY = Library(celery, celery.canvas, celery.Celery("oracle", set_as_current=False, broker="memory://"))
OURS = Library(
    minicelery,
    minicelery.canvas,
    minicelery.Celery("ours", set_as_current=False, broker="memory://canvas-oracle"),
)

OPERANDS = {
    "task": "add.s(1)",
    "another task": "mul.s(2)",
    "immutable": "add.si(3)",
    "task with an errback": "add.s(1).on_error(note.s())",
    "task from JSON": "signature(dumped(add.s(9)))",
    "chain": "chain(add.s(1), mul.s(2))",
    "chain with an errback": "chain(add.s(1), mul.s(2)).on_error(note.s())",
    "chain with a callback": "after(chain(add.s(1), mul.s(2)), 'link', note.s())",
    "chain that ends in a group": "chain(add.s(1), group(add.s(2), mul.s(2)))",
    "chain that ends in a chord": "chain(add.s(1), chord([add.s(2), mul.s(2)], total.s()))",
    "empty chain": "chain()",
    "chain from JSON": "signature(dumped(chain(add.s(9), add.s(8))))",
    "group": "group(add.s(1), mul.s(2))",
    "group of one": "group(add.s(1))",
    "group of one chain": "group(chain(add.s(1), group(mul.s(2), mul.s(3))))",
    "group of one chord": "group(chord([add.s(1)], mul.s(2)))",
    "empty group": "group([])",
    "group of a chain": "group(chain(add.s(1), mul.s(2)), add.s(5))",
    "group of a group": "group(group(add.s(1), add.s(2)), add.s(3))",
    "group from JSON": "signature(dumped(group(add.s(9), add.s(8))))",
    "chord": "chord([add.s(1), mul.s(2)], total.s())",
    "chord without parts": "chord([], total.s())",
    "chord with a group for its body": "chord([add.s(1)], group(add.s(2), mul.s(3)))",
    "chord with a chain for its body": "chord([add.s(1)], chain(total.s(), mul.s(3)))",
    "chord from JSON": "signature(dumped(chord([add.s(9), add.s(8)], total.s())))",
    "map": "add.map([1, 2])",
}
"""Expressions of every kind of signature."""
