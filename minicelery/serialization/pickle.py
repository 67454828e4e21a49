"""pickle: reading it runs whatever its writer wanted, so nothing but a setting turns it on.

Classes that go by Celery's modules are read as minicelery's, so that Celery need not be installed.
"""

from __future__ import annotations

import functools
import io
from typing import Any

from minicelery import exceptions
from minicelery.exceptions import DecodeError, EncodeError

CONTENT_TYPE = "application/x-python-serialize"
PROTOCOL = 4
"""Read by every Python that runs Celery or minicelery."""
_CELERYS = ("celery.exceptions", "billiard.exceptions", "kombu.exceptions")


class CarriedException(Exception):
    """What Celery stores of an exception that can't be pickled: where its class was, and its arguments."""

    def __init__(self, exc_module: str, exc_cls_name: str, exc_args: Any, text: str | None = None) -> None:
        super().__init__(exc_module, exc_cls_name, exc_args, text)


def encode(value: Any) -> bytes:
    """`value` pickled.  Raises EncodeError."""
    target = io.BytesIO()
    try:
        _classes()[0](target, PROTOCOL).dump(value)
    except RecursionError as error:
        raise EncodeError("the value is nested too deeply, or contains itself") from error
    except Exception as error:  # whatever a class's own way of pickling raises
        raise EncodeError(f"{type(error).__name__}({str(error)!r:.500})") from error
    return target.getvalue()


def decode(data: bytes) -> Any:
    """The value that is pickled in `data`, of a writer who is trusted.  Raises DecodeError."""
    source = io.BytesIO(data)
    try:
        value = _classes()[1](source).load()
    except RecursionError:
        raise DecodeError("pickle nested too deeply") from None
    except Exception as error:
        raise DecodeError(f"not pickle: {type(error).__name__} {error!s:.300}") from error
    return value


@functools.cache
def _classes() -> tuple[Any, Any]:
    import pickle

    class Pickler(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, dict) and type(value).__module__.startswith("minicelery.canvas"):
                return dict, (dict(value),)  # a signature, as a dict, which is what Celery takes it for
            return NotImplemented

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module in _CELERYS and isinstance(ours := getattr(exceptions, name, None), type):
                return ours
            if (module, name) == ("celery.canvas", "signature"):
                return dict
            if (module, name) == ("celery.utils.serialization", "UnpickleableExceptionWrapper"):
                return CarriedException
            return super().find_class(module, name)

    return Pickler, Unpickler
