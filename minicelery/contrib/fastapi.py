"""FastAPI: an app's servers opened and closed with the site, and routes that tell of its tasks."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import signal
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from datetime import date, time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from weakref import WeakKeyDictionary

from minicelery import states
from minicelery.awaiting import in_thread
from minicelery.exceptions import (
    BackendError,
    BackendUnavailable,
    ImproperlyConfigured,
    MiniCeleryError,
    OperationalError,
    SerializationError,
)
from minicelery.exceptions import TimeoutError as TookTooLong
from minicelery.options import check_arguments_shape
from minicelery.result import AsyncResult, DisabledBackend
from minicelery.stored import as_document

try:
    from fastapi import APIRouter, FastAPI, HTTPException, Path, Request, Response
    from fastapi.responses import JSONResponse, StreamingResponse
    from pydantic import BaseModel, ConfigDict
except ImportError as missing:
    raise ImportError(
        f"minicelery.contrib.fastapi needs FastAPI ({missing}): pip install 'minicelery[fastapi]'"
    ) from missing

if TYPE_CHECKING:
    from minicelery.app import Celery

log = logging.getLogger(__name__)

AWAY = "the task queue can't be reached at the moment; try again later"
"""What clients are told; addresses are for the log."""
RETRY_AFTER = "5"
KEEP_ALIVE = 15.0
"""Seconds of silence after which a stream of events says something, so that nobody takes it for dead."""
_COME_BACK = "retry: 1000\n\n"  # milliseconds after which a browser asks again
LAST = "end"  # the id of the last event: a browser that comes back with it has seen everything

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second for nginx
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"description": "the servers can't be reached"}}

TaskId = Annotated[
    str, Path(pattern=r"^[^\s/\x00-\x1f\x7f]{1,255}$", description="The id that the call was answered with.")
]


class Progress(BaseModel):
    """How far a task is, by the `current` and `total` that it reports."""

    current: int | float
    total: int | float
    percent: float


class Failure(BaseModel):
    """What a task raised."""

    type: str
    message: str


class TaskState(BaseModel):
    """What is known of a task.

    `known` is false while nothing is stored of the id: the task waits or runs, or there has never been one.
    """

    id: str
    state: str
    known: bool
    ready: bool
    successful: bool
    progress: Progress | None
    result: Any
    error: Failure | None


class Arguments(BaseModel):
    """What a task is called with."""

    model_config = ConfigDict(extra="forbid")

    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class Called(BaseModel):
    """A task that was sent, and where to ask for it."""

    id: str
    task: str
    url: str
    events: str


def lifespan(
    celery: Celery, then: Callable[[FastAPI], AbstractAsyncContextManager[Any]] | None = None
) -> Callable[[FastAPI], AbstractAsyncContextManager[Any]]:
    """What to give to `FastAPI(lifespan=…)`: makes `celery` the default app, closes its connections at the end.

    `then` is a lifespan of the site's own, run inside of this one.  Nothing is connected to
    before it is needed: the site starts without its servers.
    """

    @asynccontextmanager
    async def live(site: FastAPI) -> AsyncIterator[Any]:
        celery.set_default()
        site.state.celery = celery
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, celery.close)
            stack.enter_context(_streams_ended(celery))
            yield await stack.enter_async_context(then(site)) if then is not None else None

    return live


_ends: WeakKeyDictionary[Celery, asyncio.Event] = WeakKeyDictionary()
"""Set when a site has been told to end; see `_streams_ended`."""


@contextmanager
def _streams_ended(celery: Celery) -> Iterator[None]:
    """End the open streams when the process is told to end, as they would keep it from that.

    Servers wait for open streams before they end the lifespan, so this hears the signal beside them.
    """
    end, loop = asyncio.Event(), asyncio.get_running_loop()
    replaced: list[tuple[signal.Signals, Any, Any]] = []

    def beside(former: Callable[..., Any]) -> Callable[..., Any]:
        def heard(*of_signal: Any) -> Any:
            loop.call_soon_threadsafe(end.set)
            return former(*of_signal)

        return heard

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            former = signal.getsignal(number)
            if callable(former):  # the server's
                ours = beside(former)
                replaced.append((number, former, ours))
                signal.signal(number, ours)
    _ends[celery] = end
    try:
        yield
    finally:
        end.set()
        for number, former, ours in replaced:
            if signal.getsignal(number) is ours:
                signal.signal(number, former)


async def unavailable(request: Request, error: Exception) -> JSONResponse:
    """A handler for `site.add_exception_handler(OperationalError, unavailable)`: 503, and the log says why."""
    log.warning("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"detail": AWAY}, 503, {"Retry-After": RETRY_AFTER})


def task_router(
    celery: Celery,
    *,
    prefix: str = "/tasks",
    allow: Collection[str] = (),
    dependencies: Sequence[Any] = (),
    call_dependencies: Sequence[Any] = (),
    longest_stream: float = 300.0,
    error_messages: bool = True,
    **options: Any,
) -> APIRouter:
    """Routes for `site.include_router`: the state of a task, its events, and calls of the tasks in `allow`.

    `dependencies` guard every route, `call_dependencies` calls as well.  A stream of events ends
    after `longest_stream` seconds; browsers then ask again.  Without `error_messages` only the
    type of what a task has raised is told.  Other options are those of APIRouter.
    Raises ImproperlyConfigured where the app has no result backend that every process can read.
    """
    if isinstance(allow, str) or not all(isinstance(name, str) for name in allow):
        raise TypeError(f"allow={allow!r:.80} of task_router: expected a list of task names")
    if isinstance(celery.backend, DisabledBackend):
        raise ImproperlyConfigured(
            "task_router tells of results, and no result backend is configured; set result_backend"
        )
    if getattr(celery.backend, "direct", False):
        raise ImproperlyConfigured(
            "task_router tells of results, and rpc:// has them only in the process that sent the call; "
            "set result_backend to 'redis://…' or 'sqlite:///…'"
        )
    document = partial(_document, messages=error_messages)
    options.setdefault("tags", ["tasks"])
    router = APIRouter(prefix=prefix, dependencies=list(dependencies), **options)

    @router.get("/{id}", name="task", response_model=TaskState, responses=_UNAVAILABLE)
    async def state(id: TaskId) -> Any:
        """The state of a task, its progress, and its result or what it raised."""
        return Response(json.dumps(await _read(celery, id, document)), media_type="application/json")

    @router.get("/{id}/events", name="task_events", response_class=StreamingResponse, responses=_UNAVAILABLE)
    async def events(id: TaskId, request: Request) -> Response:
        """Server-sent events named `state`: the task's state at once and after each change, up to the end."""
        if request.headers.get("last-event-id") == LAST:
            return Response(status_code=204)  # which ends a browser's asking
        first = await _read(celery, id, document)
        stream = _events(celery, id, first, longest_stream, document)
        return StreamingResponse(stream, media_type="text/event-stream", headers=_HEADERS)

    if allow:
        _add_calls(router, celery, frozenset(allow), call_dependencies)
    return router


def _add_calls(router: APIRouter, celery: Celery, allowed: frozenset[str], guards: Sequence[Any]) -> None:
    @router.post(
        "/{name}", name="call_task", status_code=202, response_model=Called, responses=_UNAVAILABLE,
        dependencies=list(guards),
    )  # fmt: skip
    async def call(name: str, arguments: Arguments, request: Request, response: Response) -> Called:
        """Send a task; one that may not be called from here is 404, arguments that don't fit it are 422."""
        if name not in allowed:
            raise HTTPException(404, f"no task {name!r:.100} may be called from here")
        result = await _send(celery, name, arguments)
        url = f"{request.url.path.rpartition('/')[0]}/{result.id}"
        response.headers["Location"] = url
        return Called(id=result.id, task=name, url=url, events=f"{url}/events")


async def _send(celery: Celery, name: str, arguments: Arguments) -> AsyncResult[Any]:
    task = celery.tasks.get(name)
    try:
        check_arguments_shape(name, arguments.args, arguments.kwargs)
        if task is not None and task.typing:
            task.check_arguments(arguments.args, arguments.kwargs)
    except TypeError as error:
        raise HTTPException(422, str(error)) from error
    try:
        sent: AsyncResult[Any] = await (
            celery.asend_task(name, arguments.args, arguments.kwargs)
            if task is None
            else task.aapply_async(arguments.args, arguments.kwargs)
        )
    except OperationalError as error:
        raise _away(f"calling {name}", error) from error
    return sent


async def _read(celery: Celery, id: str, document: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The document of the task.  Raises HTTPException where the store can't be reached, or read."""
    result = celery.AsyncResult(id)
    try:
        meta = await in_thread(celery, partial(_meta, result), BackendUnavailable)
    except (BackendError, OperationalError) as error:
        raise _away(f"reading task {id}", error) from error
    except SerializationError as error:
        log.warning("reading task %s: %s", id, error)
        raise HTTPException(500, "what is stored of this task can't be read here") from error
    return document(id, meta["status"], meta.get("result"), known=meta["known"])


def _meta(result: AsyncResult[Any]) -> dict[str, Any]:
    found = result.backend.load([result.id])[0]
    if found is None:
        return {"status": states.PENDING, "known": False}
    return {**result._read(found.document), "known": True}


def _document(id: str, state: str, value: Any, *, known: bool, messages: bool) -> dict[str, Any]:
    found = as_document(id, state, value)
    document = {"id": found.pop("id"), "state": found.pop("state"), "known": known, **found}
    document["result"] = plain(document["result"])
    if document["error"] is not None and not messages:
        document["error"]["message"] = ""
    return document


def _away(what: str, error: Exception) -> HTTPException:
    log.warning("%s: %s", what, error)
    return HTTPException(503, AWAY, {"Retry-After": RETRY_AFTER})


async def _events(
    celery: Celery, id: str, first: dict[str, Any], longest: float, document: Callable[..., dict[str, Any]]
) -> AsyncIterator[str]:
    """The stream; it ends with the final state, with the site, or when who reads it has gone."""
    last = first
    yield _event(first)
    if first["ready"]:
        return
    changes: Any = celery.AsyncResult(id).aiter_states(timeout=longest)  # a generator
    over = _ends.get(celery) or asyncio.Event()
    ending = asyncio.ensure_future(over.wait())
    coming: asyncio.Future[Any] | None = None
    try:
        while not last["ready"] and not over.is_set():
            if coming is None:
                coming = asyncio.ensure_future(anext(changes))
            await asyncio.wait([coming, ending], timeout=KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                state, value = coming.result()
                coming = None
                if (found := document(id, state, value, known=True)) != last:
                    last = found
                    yield _event(found)
            elif not over.is_set():
                yield ": still there\n\n"
        if not last["ready"]:
            yield _COME_BACK
    except TookTooLong:
        yield _COME_BACK
    except MiniCeleryError as error:
        log.warning("events of task %s: %s", id, error)
        yield f"event: away\ndata: {json.dumps({'detail': AWAY})}\nretry: 5000\n\n"
    finally:
        ending.cancel()
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
        await changes.aclose()


def _event(document: dict[str, Any]) -> str:
    id = f"id: {LAST}\n" if document["ready"] else ""
    return f"{id}event: state\ndata: {json.dumps(document)}\n\n"


def plain(value: Any) -> Any:
    """`value` as JSON has it, for any client: dates in ISO format, bytes in base64, others as text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value)
