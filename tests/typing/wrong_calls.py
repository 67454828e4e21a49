"""A program of mistakes: mypy and pyright report every line marked so, and no other."""

from __future__ import annotations

from typing import Any

from minicelery import Celery, Task, chain, chord, group, shared_task
from minicelery.result import AsyncResult

app = Celery("mistakes", broker="memory://")


class Adding(Task[[int, int], int]):
    def run(self, x: int, y: int) -> int:
        return x + y


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(bind=True, max_retries=5)
def fetch(self: Task[..., Any], url: str, *, timeout: float = 3.0) -> bytes:
    self.nothing()  # wrong
    self.request.nothing()  # wrong
    return b""


@app.task
async def crawl(url: str) -> int:
    return len(url)


@app.task(bind=True)
async def crawl_bound(self: Any, url: str) -> int:
    return len(url)


@shared_task
def shared(x: float) -> float:
    return x


@shared_task(bind=True)
def shared_bound(self: Any, key: str) -> str:
    return key


@app.task(base=int)  # wrong
def based(x: int) -> int:
    return x


add.delay("x", 2)  # wrong
add.delay(1)  # wrong
add.delay(1, 2, 3)  # wrong
add.delay(1, z=2)  # wrong
add(1, "2")  # wrong
add.si(1)  # wrong
add.apply_async(5)  # wrong
add.apply_async((1, 2), kwargs=[3])  # wrong
add.max_retry  # wrong  # noqa: B018
text: str = add.delay(1, 2).get()  # wrong
texts: AsyncResult[str] = add.delay(1, 2)  # wrong
more: AsyncResult[str] = add.s(1, 2).delay()  # wrong
sum_as_text: str = ~add.s(1, 2)  # wrong
add.s(1) | 5  # wrong
add.s(1).link(add)  # wrong
add.s(1).on_error("add")  # wrong
add.s(1).stamp("order")  # wrong
chain(add, add)  # wrong
chain("add", "add")  # wrong
group(add.s(1), None)  # wrong
group(add)  # wrong
chord([add.s(1, 2)], 5)  # wrong
chord([add.s(1, 2)])("add")  # wrong
add.chunks([(1, 2)], "2")  # wrong

fetch.delay(5)  # wrong
fetch.delay()  # wrong
fetch.delay("url", 3.0)  # wrong
fetch.delay("url", timeout="3")  # wrong
fetch(fetch, "url")  # wrong

crawl.delay(3)  # wrong
number: int = crawl("url")  # wrong
coroutine: AsyncResult[str] = crawl.delay("url")  # wrong
crawl_bound.delay(crawl_bound, "url")  # wrong
crawl_bound.delay(b"url")  # wrong

shared.delay("x")  # wrong
shared_bound.delay()  # wrong
shared_bound.delay("a", "b")  # wrong

adding = app.register_task(Adding())
adding.delay("x", 1)  # wrong
app.register_task(add.run)  # wrong
app.task(5)  # wrong


async def use() -> None:
    await add.adelay("x", 2)  # wrong
    awaited: str = await crawl("url")  # wrong
    print(awaited)
