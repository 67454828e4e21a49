"""Result stores written for Celery: what `celery.backends.base` has for them to build on.

`minicelery.alias.stores` has one of them keep an app's results.  Chords are counted, chains are
failed and callbacks are called by minicelery itself, so the hooks for that do nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

from minicelery import record, serialization, states
from minicelery._state import current_task
from minicelery.exceptions import BackendGetMetaError, ImproperlyConfigured, TaskRevokedError, TimeoutError

PENDING: dict[str, Any] = {"status": states.PENDING, "result": None}


def get_current_task() -> Any:
    """The task that runs in this thread; None where none does."""
    return current_task._get_current_object() if current_task else None


class Backend:
    """Keeps the state and the result of tasks: a subclass says how, in the methods with an underscore."""

    READY_STATES = states.READY_STATES
    UNREADY_STATES = states.UNREADY_STATES
    EXCEPTION_STATES = states.EXCEPTION_STATES
    TimeoutError = TimeoutError

    subpolling_interval: float | None = None
    supports_native_join = False
    supports_autoexpire = False
    supports_result_compression = False
    supports_failure_expires = False
    persistent = True
    thread_safe = False
    """Whether all threads may share one instance."""

    def __init__(
        self, app: Any, serializer: str | None = None, max_cached_results: int | None = None, accept: Any = None,
        expires: Any = None, expires_type: Any = None, url: str | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        conf = app.conf
        self.app = app
        self.url = url
        self.serializer = serializer or conf.result_serializer
        self.content_type, self.content_encoding = serialization.content_of(self.serializer)
        given = accept or conf.result_accept_content or conf.accept_content
        self.accept = serialization.accepted([*given, *((self.serializer,) if serializer else ())])
        self.expires = self.prepare_expires(expires, expires_type)
        self.always_retry = conf.result_backend_always_retry

    def as_uri(self, include_password: bool = False) -> str:
        """Its URL, masked unless it is asked for."""
        from minicelery.broker.url import mask_url

        url = self.url or ""
        return url if include_password else mask_url(url)

    # -- writing ---------------------------------------------------------------------------

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Keep a state and its result, or its exception; what is kept of that."""
        kept = self.encode_result(result, state)
        self._ensure_retryable(self._store_result, task_id, kept, state, traceback, request=request, **kwargs)
        return kept

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        raise NotImplementedError(f"{type(self).__name__} does not say how a result is stored")

    def mark_as_started(self, task_id: str, **meta: Any) -> Any:
        """Keep STARTED."""
        return self.store_result(task_id, meta, states.STARTED)

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:  # fmt: skip
        """Keep a result."""
        if store_result:
            self.store_result(task_id, result, state, request=request)

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None,
        store_result: bool = True, call_errbacks: bool = True, state: str = states.FAILURE,
    ) -> None:  # fmt: skip
        """Keep a failure."""
        if store_result:
            self.store_result(task_id, exc, state, traceback=traceback, request=request)

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None,
        store_result: bool = True, state: str = states.RETRY,
    ) -> Any:  # fmt: skip
        """Keep that it is tried again."""
        return self.store_result(task_id, exc, state, traceback=traceback, request=request)

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:  # fmt: skip
        """Keep that it was revoked."""
        if store_result:
            self.store_result(task_id, TaskRevokedError(reason), state, request=request)

    def forget(self, task_id: str) -> None:
        """Drop a result."""
        self._ensure_retryable(self._forget, task_id)

    def _forget(self, task_id: str) -> None:
        raise NotImplementedError(f"{type(self).__name__} can't forget")

    # -- reading ---------------------------------------------------------------------------

    def get_task_meta(self, task_id: str, cache: bool = True) -> Any:
        """All that is kept of a task; its status is PENDING where nothing is."""
        return self._ensure_retryable(self._get_task_meta_for, task_id)

    def _get_task_meta_for(self, task_id: str) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not say how a result is read")

    def get_state(self, task_id: str) -> Any:
        """The state of a task."""
        return self.get_task_meta(task_id)["status"]

    get_status = get_state

    def get_result(self, task_id: str) -> Any:
        """The value, or the exception."""
        return self.get_task_meta(task_id).get("result")

    def get_traceback(self, task_id: str) -> Any:
        """The traceback of a failure."""
        return self.get_task_meta(task_id).get("traceback")

    def get_children(self, task_id: str) -> Any:
        """What the task has sent."""
        return self.get_task_meta(task_id).get("children")

    def task_result_exists(self, task_id: str) -> bool:
        """Whether anything is kept of the task."""
        return bool(self.get_state(task_id) != states.PENDING)

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True,
        on_interval: Callable[[], Any] | None = None,
    ) -> Any:  # fmt: skip
        """What is kept of a task, once it has ended.  Raises TimeoutError."""
        until = None if timeout is None else time.monotonic() + timeout
        while (meta := self.get_task_meta(task_id))["status"] not in states.READY_STATES:
            if on_interval is not None:
                on_interval()
            left = interval if until is None else min(interval, until - time.monotonic())
            if left <= 0:
                raise TimeoutError("The operation timed out.")
            time.sleep(left)
        return meta

    def reload_task_result(self, task_id: str) -> None:
        """Nothing: no result is kept in memory."""

    reload_group_result = reload_task_result

    # -- groups ----------------------------------------------------------------------------

    def save_group(self, group_id: str, result: Any) -> Any:
        """Keep a group's results."""
        return self._ensure_retryable(self._save_group, group_id, result)

    def restore_group(self, group_id: str, cache: bool = True) -> Any:
        """A group's results; None where none are kept."""
        meta = self.get_group_meta(group_id)
        return meta["result"] if meta else None

    def get_group_meta(self, group_id: str, cache: bool = True) -> Any:
        """All that is kept of a group."""
        return self._ensure_retryable(self._restore_group, group_id)

    def delete_group(self, group_id: str) -> Any:
        """Drop a group's results."""
        return self._ensure_retryable(self._delete_group, group_id)

    def _save_group(self, group_id: str, result: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} keeps no groups")

    def _restore_group(self, group_id: str) -> Any:
        raise NotImplementedError(f"{type(self).__name__} keeps no groups")

    def _delete_group(self, group_id: str) -> Any:
        raise NotImplementedError(f"{type(self).__name__} keeps no groups")

    # -- bytes and text --------------------------------------------------------------------

    def encode(self, data: Any) -> Any:
        """The value in the store's serializer: text, or bytes where that is binary."""
        return self._encode(data)[2]

    def _encode(self, data: Any) -> tuple[str, str, Any]:
        """Content type, encoding and payload, in kombu's order."""
        payload, content_type, encoding = serialization.dumps(data, self.serializer)
        return content_type, encoding, payload if encoding == "binary" else payload.decode(encoding)

    def decode(self, payload: Any) -> Any:
        """What was encoded; None stays None."""
        if payload is None:
            return None
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        return serialization.loads(data, self.content_type, self.content_encoding, self.accept)

    def decode_result(self, payload: Any) -> Any:
        """All that is kept of a task, from its payload."""
        meta = self.decode(payload)
        if not isinstance(meta, dict) or "status" not in meta:
            raise BackendGetMetaError(f"a stored result has no status: {payload!r:.80}")
        return self.meta_from_decoded(meta)

    def meta_from_decoded(self, meta: Any) -> Any:
        """With the exception rebuilt, where there is one."""
        if meta["status"] in self.EXCEPTION_STATES:
            meta["result"] = self.exception_to_python(meta["result"])
        return meta

    def encode_result(self, result: Any, state: str) -> Any:
        """What is kept of a value, or of an exception."""
        if state in self.EXCEPTION_STATES and isinstance(result, BaseException):
            return self.prepare_exception(result)
        return self.prepare_value(result)

    def prepare_value(self, result: Any) -> Any:
        """Results of other tasks as what they can be found by."""
        as_tuple = getattr(result, "as_tuple", None)
        return as_tuple() if self.serializer != "pickle" and callable(as_tuple) else result

    def prepare_exception(self, exc: Any, serializer: str | None = None) -> Any:
        """What is kept of an exception."""
        document = record.exception_document(exc)
        return document.fit_for(serializer or self.serializer) if hasattr(document, "fit_for") else document

    def exception_to_python(self, exc: Any) -> Any:
        """The exception that was kept so."""
        return record.rebuild_exception(exc) if exc else None

    def prepare_expires(self, value: Any, type: Any = None) -> Any:
        """Seconds for which results are kept; those of `result_expires` where none are given."""
        value = self.app.conf.result_expires if value is None else value
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        return type(seconds) if type and seconds is not None else seconds

    def prepare_persistent(self, enabled: bool | None = None) -> bool:
        """Whether results survive a restart of their store."""
        wanted = self.app.conf.result_persistent if enabled is None else enabled
        return self.persistent if wanted is None else bool(wanted)

    def _get_result_meta(
        self, result: Any, state: str, traceback: str | None, request: Any, format_date: bool = True,
        encode: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """All that is to be kept of a task."""
        done = self.app.now() if state in self.READY_STATES else None
        meta = {
            "status": state, "result": result, "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": done.isoformat() if done is not None and format_date else done,
        }  # fmt: skip
        if getattr(request, "group", None):
            meta["group_id"] = request.group
        if getattr(request, "parent_id", None):
            meta["parent_id"] = request.parent_id
        if request is not None and self.app.conf.result_extended:
            info = getattr(request, "delivery_info", None) or {}
            more = {
                "name": getattr(request, "task", None), "args": getattr(request, "args", None),
                "kwargs": getattr(request, "kwargs", None), "worker": getattr(request, "hostname", None),
                "retries": getattr(request, "retries", None), "queue": info.get("routing_key"),
            }  # fmt: skip
            if encode:
                for name in ("args", "kwargs"):
                    payload = self.encode(more[name])
                    more[name] = payload.encode() if isinstance(payload, str) else payload
            meta |= more
        # What minicelery's worker has noted besides, and when: its own document says so.
        return {**meta, **getattr(request, "document", {})}

    def current_task_children(self, request: Any = None) -> Any:
        """What the task has sent, as tuples."""
        request = request or getattr(get_current_task(), "request", None)
        if request is None:
            return None
        return [_tuple(one) for one in getattr(request, "children", None) or ()]

    # -- what others do, or nobody needs to -----------------------------------------------------

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Whether what failed so may be tried again, with `result_backend_always_retry`."""
        return False

    def on_backend_retryable_error(self, exc: BaseException) -> None:
        """Called before it is."""

    def _ensure_retryable(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do it, and once more after an error that says it may be: workers try on anyway."""
        try:
            return func(*args, **kwargs)
        except Exception as error:
            if not (self.always_retry and self.exception_safe_to_retry(error)):
                raise
            self.on_backend_retryable_error(error)
        return func(*args, **kwargs)

    def _ensure_not_eager(self) -> None:
        """Nothing."""

    def cleanup(self) -> None:
        """Drop what has expired: the daily task `celery.backend_cleanup` calls it."""

    def process_cleanup(self) -> None:
        """Nothing."""

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:
        """Nothing is added to a call."""
        return {}

    def add_pending_result(self, result: Any, weak: bool = False) -> Any:
        """Nothing: who waits asks."""
        return result

    remove_pending_result = add_pending_result

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Nothing: minicelery's workers count."""

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Nothing."""

    def ensure_chords_allowed(self) -> None:
        """Nothing: chords are refused by minicelery."""

    def apply_chord(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not served.  Raises ImproperlyConfigured."""
        raise ImproperlyConfigured(f"{type(self).__name__} can't count a chord's parts for minicelery")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.url)


class SyncBackendMixin:
    """A store that is asked again and again by who waits, as all of these are."""

    is_async = False


class BaseBackend(Backend, SyncBackendMixin):
    """A store that is asked."""


BaseDictBackend = BaseBackend


def _tuple(child: Any) -> Any:
    as_tuple = getattr(child, "as_tuple", None)
    return as_tuple() if callable(as_tuple) else child


def _again(kind: Any, url: str | None) -> Any:
    from minicelery._state import get_current_app

    return kind(app=get_current_app(), url=url)
