"""An app's results in a store that was written for Celery: `result_backend` names its class.

``"module:Class"``, ``"module.Class"``, either followed by ``+scheme://…``, or a name or scheme that an
installed package has registered under the entry point `celery.result_backends`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from minicelery import record as documents
from minicelery import saved_groups, serialization, states
from minicelery.alias.backends import Backend
from minicelery.awaiting import beside_loop
from minicelery.broker.listening import Listener
from minicelery.broker.polling import PollingListener, watch
from minicelery.broker.url import mask_url
from minicelery.exceptions import BackendStoreError, BackendUnavailable, EncodeError, ImproperlyConfigured
from minicelery.message import Message, Record, short_repr
from minicelery.modules import registered, without_celery
from minicelery.result import result_from_tuple

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

T = TypeVar("T")

DJANGO = ("django-db", "django-cache")
"""Names that minicelery and django-celery-results both have."""
_OUR_TABLES = ", or have 'minicelery.contrib.django' in INSTALLED_APPS, whose tables can"
_FOR_EVER = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, EncodeError)
_APART = ("status", "result", "traceback", "task_id")
_FIRST = ("status", "result", "traceback", "children", "date_done", "group_id", "parent_id")
"""Keys of a document that come first, in the order in which `minicelery.record` writes them."""
_TWICE = ("task_name", "task_args", "task_kwargs")
"""Keys that django-celery-results adds, of what is there by another name too."""


def open_store(app: Celery, value: str) -> CeleryStore | None:
    """The store whose class `value` names; None where it names none.  Raises ImproperlyConfigured."""
    name, url = _apart(value)
    if name in DJANGO and not _is_theirs():
        return None
    path = registered("celery.result_backends", name) or (name if "." in name or ":" in name else None)
    return None if path is None else CeleryStore(app, _class_at(path, value), url, value)


class CeleryStore:
    """The result store; see `minicelery.broker.Backend`.  It does not count, so it has no chords.

    What else a program asks it for, by Celery's names, the class's own instance answers.
    """

    def __init__(self, app: Celery, kind: type[Backend], url: str | None, named: str) -> None:
        self.url = mask_url(named)
        self.instead = _OUR_TABLES if named == "django-db" else ""
        """What else to do where chords are needed."""
        self._app = app
        self._kind = kind
        self._url = url
        self._here = threading.local()
        self._shared: tuple[int, Any] = (0, None)  # the process, and its one instance where threads share one
        _ = self.celery_backend  # what its __init__ refuses is refused now

    @property
    def celery_backend(self) -> Any:
        """The instance of the class: one for each thread, unless it is `thread_safe`."""
        process = os.getpid()  # a connection that was made before a fork is not this one's
        shared = self._shared
        found = shared if shared[0] == process else getattr(self._here, "found", (0, None))
        if found[0] != process:
            self._here.found = found = process, self._kind(app=self._app, url=self._url)
            if found[1].thread_safe:
                self._shared = found
        return found[1]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.celery_backend, name)

    # -- results -----------------------------------------------------------------------------

    def store(self, records: Sequence[Record]) -> list[Message]:
        latest: dict[str, Record] = {}
        for one in records:
            if (known := latest.get(one.id)) is None or known.state != states.SUCCESS:
                latest[one.id] = one
        for one in latest.values():
            try:
                self._do(lambda theirs, one=one: self._store(theirs, one))  # type: ignore[misc]
            except BackendUnavailable as error:
                if not _is_its_own_fault(error.__cause__):
                    raise
                self._store_failure(one, error)
        return []

    def _store_failure(self, one: Record, error: BackendUnavailable) -> None:
        """In the place of what it will never take: else no worker would go on."""
        log.error("the result of %s is replaced by a failure: %s", one.id, error, exc_info=error.__cause__)
        instead = BackendStoreError(f"the result can't be kept by {self.url}: {error.__cause__!r}")
        self._do(
            lambda theirs: theirs.store_result(
                one.id, instead, states.FAILURE, None, request=_request(one.id, {})
            )
        )

    def _store(self, theirs: Any, one: Record) -> None:
        conf = self._app.conf
        document = documents.plain(one.document, conf.result_serializer, documents._accepted(conf))
        if theirs.get_task_meta(one.id)["status"] == states.SUCCESS:
            return
        theirs.store_result(
            one.id, document.get("result"), document["status"], document.get("traceback"),
            request=_request(one.id, document),
        )  # fmt: skip

    def load(self, ids: Sequence[str]) -> list[Record | None]:
        def work(theirs: Any) -> dict[str, Any]:
            wanted = list(dict.fromkeys(ids))
            if (many := getattr(theirs, "metas_of", None)) is not None:
                return dict(many(wanted))
            return {id: theirs.get_task_meta(id) for id in wanted}

        found = self._do(work) if ids else {}
        return [self._record(id, found.get(id)) for id in ids]

    def _record(self, id: str, meta: Any) -> Record | None:
        if not meta or meta["status"] == states.PENDING:
            return None
        return Record(id, _document(id, meta, self._app.conf.result_serializer), meta["status"])

    def watch(self, ids: Collection[str], seen: Mapping[str, bytes], wait: float) -> list[Record]:
        return watch(_Look(self), ids, seen, wait)

    def listener(self) -> Listener:
        """Hears of many results in one thread."""
        return PollingListener(_Look(self))

    def forget(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._do(lambda theirs, id=id: theirs.forget(id))  # type: ignore[misc]

    # -- saved groups ------------------------------------------------------------------------

    def save_group(self, id: str, document: bytes, ttl: float | None) -> None:
        """See `minicelery.broker.CountingBackend`; for how long, the class knows."""
        group = result_from_tuple(saved_groups.decode(document, self._app.conf), self._app)
        self._of_groups(lambda theirs: theirs.save_group(id, group))

    def restore_group(self, id: str) -> bytes | None:
        """See `minicelery.broker.CountingBackend`."""
        found = self._of_groups(lambda theirs: theirs.restore_group(id))
        return None if found is None else saved_groups.encode(found, self._app.conf)

    def delete_group(self, id: str) -> None:
        """See `minicelery.broker.CountingBackend`."""
        self._of_groups(lambda theirs: theirs.delete_group(id))

    def _of_groups(self, work: Callable[[Any], Any]) -> Any:
        try:
            return self._do(work)
        except BackendUnavailable as error:
            if isinstance(error.__cause__, NotImplementedError):
                raise ImproperlyConfigured(f"result_backend={self.url!r}: {error.__cause__}") from error
            raise

    def close(self) -> None:
        """Nothing: the class has no word for it."""

    # -- its code ----------------------------------------------------------------------------

    def _do(self, work: Callable[[Any], T]) -> T:
        return beside_loop(lambda: self._done(work))

    def _done(self, work: Callable[[Any], T]) -> T:
        try:
            with _connections():
                return work(self.celery_backend)
        except Exception as error:  # its own code, and its client's
            _drop_broken()
            hint = "; python manage.py migrate" if "no such table" in str(error) else ""
            raise BackendUnavailable(
                f"the results in {self.url} can't be reached: {type(error).__name__}: {error}{hint}"
            ) from error


class _Look:
    """What one who waits sees; see `polling.Looker`."""

    def __init__(self, store: CeleryStore) -> None:
        self._store = store

    def looking(self) -> contextlib.AbstractContextManager[None]:
        """See `polling.Looker`."""
        return _connections()

    def news(self, ids: Collection[str], seen: Mapping[str, bytes]) -> list[Record]:
        """See `polling.Looker`."""
        found = self._store.load(list(ids))
        return [one for one in found if one is not None and seen.get(one.id) != one.document]


def _is_its_own_fault(error: BaseException | None) -> bool:
    """Whether it would be the same another time: the value is one that the class does not take."""
    return isinstance(error, _FOR_EVER) or type(error).__name__ == "DataError"


# -- documents -------------------------------------------------------------------------------


def _request(id: str, document: Mapping[str, Any]) -> SimpleNamespace:
    """What such a class may ask the attempt for, of what the document says of it."""
    args, kwargs = document.get("args"), document.get("kwargs")
    return SimpleNamespace(
        id=id, task=document.get("name"), args=args, kwargs=kwargs,
        argsrepr=None if args is None else short_repr(tuple(args) if isinstance(args, list) else args),
        kwargsrepr=None if kwargs is None else short_repr(kwargs),
        hostname=document.get("worker"), retries=document.get("retries"), group=document.get("group_id"),
        parent_id=document.get("parent_id"), root_id=None, children=document.get("children") or [],
        delivery_info={"routing_key": document.get("queue")}, errbacks=None, chord=None, chain=None,
        ignore_result=False, periodic_task_name=document.get("periodic_task_name"),
        document={key: value for key, value in document.items() if key not in _APART},
    )  # fmt: skip


def _document(id: str, meta: Mapping[str, Any], serializer: str) -> bytes:
    """The document of what such a class has read, the same each time it is read."""
    result = meta.get("result")
    if isinstance(result, BaseException):
        described: Any = documents.exception_document(result)
        result = described.fit_for(serializer) if serializer != "json" else described
    given = {**meta, "name": meta.get("name") or meta.get("task_name"), "result": result}
    given["children"] = given.get("children") or []
    done = given.get("date_done")
    given["date_done"] = done.isoformat() if isinstance(done, datetime) else done
    if given["status"] not in states.READY_STATES:
        given["date_done"] = None
    kept = ("status", "result", "traceback", "children", "date_done")
    first = {key: given.get(key) for key in _FIRST if key in kept or given.get(key) is not None}
    more = {
        key: value for key, value in given.items()
        if key not in (*_FIRST, *_TWICE, "task_id") and not (value is None and key in ("name", "worker", "args", "kwargs"))
    }  # fmt: skip
    try:
        return serialization.dumps({**first, **more, "task_id": id}, serializer)[0]
    except EncodeError:
        return serialization.dumps({**first, "task_id": id}, serializer)[0]


# -- which class -----------------------------------------------------------------------------


def _apart(value: str) -> tuple[str, str | None]:
    """The class or its name, and the URL that it is given."""
    scheme, mark, _ = value.partition("://")
    if not mark:
        return value, None
    if "+" in scheme:
        name, _, url = value.partition("+")
        return name, url
    return scheme, value


def _is_theirs() -> bool:
    """Whether the project has django-celery-results, and not minicelery's app in its place."""
    if importlib.util.find_spec("django") is None or not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return False
    from minicelery.contrib.django.problems import APP, THEIR_RESULTS, is_listed

    return is_listed(THEIR_RESULTS) and not is_listed(APP)


def _class_at(path: str, value: str) -> type[Backend]:
    if os.environ.get("DJANGO_SETTINGS_MODULE") and importlib.util.find_spec("django") is not None:
        importlib.import_module("minicelery.contrib.django.fixup").set_up()  # it may import models
    module, _, name = path.replace(":", ".").rpartition(".")
    named = f"result_backend={mask_url(value)!r}"
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = without_celery(error) or "expected a URL, or module:Class of a result store for Celery"
        raise ImproperlyConfigured(f"{named}: {error}; {hint}") from error
    if isinstance(found, type) and issubclass(found, Backend):
        return found
    bases = getattr(found, "__mro__", ())
    if any(base.__module__ == "celery.backends.base" for base in bases):
        raise ImproperlyConfigured(
            f"{named}: {name} builds on the installed Celery; call install_as_celery(force=True) before it "
            "is imported"
        )
    raise ImproperlyConfigured(
        f"{named}: {found!r:.100} is no result store; expected a subclass of celery.backends.base.Backend"
    )


# -- Django's connections ----------------------------------------------------------------------


@contextlib.contextmanager
def _connections() -> Iterator[None]:
    """Leave the thread's connections to Django's databases as they were, where it is in use."""
    apps: Any = sys.modules.get("django.apps")
    if apps is None or not apps.apps.ready:
        yield
        return
    from django.db import connections

    from minicelery.contrib.django.connections import borrowed

    with contextlib.ExitStack() as stack:
        for alias in connections:
            stack.enter_context(borrowed(alias))
        yield


def _drop_broken() -> None:
    """Close connections to Django's databases that can't be used any more."""
    if "django.db" in sys.modules:
        from django.db import close_old_connections

        close_old_connections()
