"""The floor's worker: two processes that do a queue's Redis work and nothing else.

A turn is one round trip, a MULTI … EXEC: for every finished task HDEL of the kept copy, SET EX
of the result, PUBLISH; then a script that pops up to a batch and keeps a copy of it in a hash.
Each popped envelope is decoded (JSON, base64, JSON) and its result document encoded.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import client
import redis
from tasks import QUEUE
from wire import HandConnection, result_document
from work import noop

TAKE = """
local raw = redis.call('RPOP', KEYS[1], ARGV[1])
if not raw then return {} end
for i, envelope in ipairs(raw) do redis.call('HSET', KEYS[2], ARGV[2] + i, envelope) end
return raw
"""
Turn = Callable[[list[tuple[Any, ...]]], list[bytes]]


def redis_py_turn() -> Turn:
    """Settle and take through redis-py's pipeline."""
    connection = redis.Redis.from_url(client.BROKER_URL)

    def turn(commands: list[tuple[Any, ...]]) -> list[bytes]:
        pipeline = connection.pipeline(transaction=True)
        for command in commands:
            pipeline.execute_command(*command)
        return pipeline.execute()[-1]

    return turn


def hand_turn() -> Turn:
    """The same commands, packed by hand."""
    connection = HandConnection(client.BROKER_URL)

    def turn(commands: list[tuple[Any, ...]]) -> list[bytes]:
        return connection.call([("MULTI",), *commands, ("EXEC",)])[-1][-1]

    return turn


def work(number: int, batch: int) -> None:
    """Take, run and settle for ever."""
    turn = hand_turn() if os.environ["FLOOR_CLIENT"] == "hand" else redis_py_turn()
    sha = redis.Redis.from_url(client.BROKER_URL).script_load(TAKE)
    held, receipt = f"floor.held.{number}", 0
    commands: list[tuple[Any, ...]] = []
    while True:
        raw = turn([*commands, ("EVALSHA", sha, 2, QUEUE, held, batch, receipt)])
        commands = []
        if not raw:
            time.sleep(0.001)
        for text in raw:
            receipt += 1
            envelope = json.loads(text)
            json.loads(base64.b64decode(envelope["body"]))
            result = noop()
            commands.append(("HDEL", held, receipt))
            if client.RESULTS_URL:
                task_id = envelope["headers"]["id"]
                key, document = f"celery-task-meta-{task_id}", result_document(task_id, result)
                commands.append(("SET", key, document, "EX", 86400))
                commands.append(("PUBLISH", key, document))


def main() -> None:
    batch = int(os.environ["FLOOR_BATCH"])
    children = [multiprocessing.Process(target=work, args=(number, batch)) for number in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()


if __name__ == "__main__":
    main()
