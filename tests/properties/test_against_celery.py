"""A fixed list of compositions comes to the same as with Celery 5.7, where that is right."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicelery.message import new_id
from tests.properties.compositions import Evaluation, Failed, Several, failed_with, value_of
from tests.properties.places import Place, check
from tests.properties.shapes import ELSEWHERE, SHAPES
from tests.servers import RedisServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    place = Place(f"memory://{new_id()}")
    yield place
    place.close()


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_a_composition_of_the_list_comes_to_what_it_means(place: Place, number: int) -> None:
    expected = Evaluation.of(SHAPES[number])
    library = place.library()
    result = library.made(SHAPES[number]).apply_async()
    place.drain(random.Random(number))
    check(result, expected.end)
    for key, end in expected.linked.items():
        if end is not None:
            check(place.app.AsyncResult(library.id(key)), end)


@pytest.fixture(scope="module")
def of_celery(redis_server: RedisServer) -> list[Any]:
    """What Celery makes of each."""
    pytest.importorskip("celery", reason="real Celery is the oracle")
    redis_server.command("FLUSHALL")
    environment = {**os.environ, "COMPOSITIONS_URL": redis_server.url()}
    quiet = {"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "text": True}
    arguments = ["-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.properties.celery_side", "worker", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **quiet,
    )  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.properties.celery_side"], capture_output=True, timeout=90, **quiet
        )
    finally:
        worker.kill()
        worker.wait(10)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(120)
def test_celery_comes_to_the_same_where_it_is_right(of_celery: list[Any]) -> None:
    others = {}
    for number, (shape, found) in enumerate(zip(SHAPES, of_celery, strict=True)):
        end = Evaluation.of(shape).end
        if isinstance(end, Failed) or (isinstance(end, Several) and failed_with(end)):
            same = isinstance(found, dict) and set(found) == {"raised"}
        else:
            same = found == (None if end is None else value_of(end))
        if not same:
            others[number] = found
    assert set(others) == set(ELSEWHERE), {number: (SHAPES[number], others.get(number)) for number in others}
