"""A program as users write it: neither mypy --strict nor pyright finds anything wrong with it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from typing_extensions import assert_type

from minicelery import Celery, Signature, Task, chain, chord, group, shared_task, signature
from minicelery.canvas import StampingVisitor
from minicelery.groups import GroupResult
from minicelery.request import Request
from minicelery.result import AsyncResult, EagerResult

app = Celery("program", broker="memory://", backend="memory://")


class Counting(Task):
    """A base without types of its own."""

    counted: int = 0

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.counted += 1


class Adding(Task[[int, int], int]):
    """A task as a class."""

    name = "adding"

    def run(self, x: int, y: int) -> int:
        return x + y


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="greet", max_retries=5, retry_backoff=True, autoretry_for=(OSError,), rate_limit="10/m")
def greet(name: str, *, loud: bool = False) -> str:
    return name.upper() if loud else name


@app.task(bind=True, default_retry_delay=timedelta(minutes=1))
def fetch(self: Task[..., Any], url: str) -> bytes:
    request = self.request
    assert_type(request, Request)
    if request.retries < 3:
        raise self.retry(countdown=2**request.retries)
    self.update_state(state="PROGRESS", meta={"url": url})
    return b""


@app.task
async def crawl(url: str, depth: int = 1) -> list[str]:
    await asyncio.sleep(0)
    return [url] * depth


@app.task(bind=True)
async def crawl_bound(self: Any, url: str) -> int:
    return len(url)


@app.task(base=Counting)
def counted(x: int) -> int:
    return x


@shared_task
def shared(x: float) -> float:
    return x


@shared_task(bind=True, acks_late=True)
def shared_bound(self: Task[..., Any], key: str) -> dict[str, int]:
    return {key: self.request.retries}


@shared_task(ignore_result=True)
async def shared_async(x: int) -> None: ...


@app.task
def nothing(*names: str, **options: int) -> None: ...


assert_type(add(1, 2), int)
assert_type(add.delay(1, y=2), AsyncResult[int])
assert_type(add.delay(1, 2).get(timeout=1), int)
assert_type(add.apply_async((1, 2), countdown=3, queue="sums"), AsyncResult[int])
assert_type(add.apply_async(args=[1], kwargs={"y": 2}), AsyncResult[int])
assert_type(add.apply((1, 2)), EagerResult[int])
assert_type(add.apply_many([(1, 2), {"x": 1, "y": 2}]), list[AsyncResult[int]])
assert_type(add.s(1), Signature[int])
assert_type(add.s(1).delay(2), AsyncResult[int])
assert_type(add.si(1, 2).apply_async(), AsyncResult[int])
assert_type(add.signature((1, 2), countdown=3), Signature[int])
assert_type(add.s(1).set(queue="sums").clone(), Signature[int])
assert_type(add.AsyncResult("an-id"), AsyncResult[int])
assert_type(add.name, str)
assert_type(add.max_retries, "int | None")

assert_type(greet.delay("Ada", loud=True), AsyncResult[str])
assert_type(greet("Ada"), str)
assert_type(fetch.delay("https://example.org"), AsyncResult[bytes])
assert_type(fetch("https://example.org"), bytes)

assert_type(crawl.delay("https://example.org", depth=2), AsyncResult[list[str]])
assert_type(crawl_bound.delay("https://example.org"), AsyncResult[int])
plain: Task[..., list[str]] = crawl

counted.counted += 1
counted.delay(1)
assert_type(counted, Counting)

assert_type(shared.delay(1), AsyncResult[float])
assert_type(shared_bound.delay("a"), AsyncResult[dict[str, int]])
assert_type(shared_async.delay(3), AsyncResult[None])
nothing.delay("a", "b", c=3)

adding = app.register_task(Adding())
assert_type(adding, Adding)
assert_type(adding.delay(1, 2), AsyncResult[int])
assert_type(app.register_task(Adding).delay(1, 2), AsyncResult[int])


class Numbering(StampingVisitor):
    """A visitor as users write it."""

    def __init__(self) -> None:
        self.seen = 0

    def on_signature(self, sig: Signature[Any], **headers: Any) -> dict[str, Any]:
        self.seen += 1
        return {"number": self.seen, "stamped_headers": ["number"]}

    def on_group_start(self, group: group, **headers: Any) -> dict[str, Any]:
        return {"members": len(group)}


assert_type(add.s(1) | add.s(2), Signature[Any])
assert_type(~add.s(1, 2), int)
assert_type(add.s(1)(2), int)
assert_type(add.s(1).on_error(greet.si("Ada")), Signature[int])
assert_type(add.s(1).link(greet.si("Ada")), Signature[str])
assert_type(add.s(1).replace(args=(3,)).stamp(Numbering(), order=5), Signature[int])
assert_type(add.s(1).freeze("an-id"), AsyncResult[int])
assert_type(add.s(1, 2).args, tuple[Any, ...])
assert_type(add.s(1).id, "str | None")
assert_type(signature("elsewhere", args=(1,), countdown=3), Signature[Any])
assert_type(chain(add.s(1, 2), add.s(3), greet.s()), chain)
chain([add.s(1, 2), add.s(3)]).apply_async(countdown=3).get()
chain(add.s(i) for i in range(3)).link_error(greet.s())
assert_type(group(add.s(i, i) for i in range(3)), group)
assert_type(group([add.s(1, 2), fetch.s("url")], queue="sums")(), GroupResult)
assert_type(group(add.s(1), add.s(2)).delay(3), GroupResult)
assert_type(group(add.s(1), add.s(2)).delay(3).get(timeout=1), list[Any])
assert_type(app.GroupResult("an-id", []).join(), list[Any])
assert_type(app.GroupResult.restore("an-id"), "GroupResult | None")
assert_type(app.GroupResult("an-id", []).save().then(print), GroupResult)
assert_type(add.delay(1, 2).then(lambda result: print(result.get() + 1)), AsyncResult[int])
assert_type(add.delay(1, 2).known, bool)
assert_type(group(add.s(1), add.s(2)).skew(start=1, step=0.5).stamp(Numbering()), group)
chord([add.s(1, 2), add.s(3, 4)])(greet.s()).get()
chord(group(add.s(1, 2)), greet.s()).apply_async(task_id="an-id")
chord((add.s(i, i) for i in range(3)), body=greet.s()).stamp(order=5)
assert_type(add.chunks([(1, 2), (3, 4)], 2).group(), group)
(add.starmap(zip(range(3), range(3), strict=True)) | greet.s()).delay()

any_task: Task = add
assert_type(app.send_task("elsewhere", (1,)), AsyncResult[Any])


async def use() -> None:
    assert_type(await crawl("https://example.org"), list[str])
    assert_type(await add.adelay(1, 2), AsyncResult[int])
    assert_type(await add.aapply_async((1, 2), countdown=3), AsyncResult[int])
    assert_type(await (await add.adelay(1, 2)), int)
    assert_type(await crawl_bound.adelay("https://example.org"), AsyncResult[int])
