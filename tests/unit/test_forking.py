"""What a forked child of this process begins anew, and that nothing is kept alive for it."""

from __future__ import annotations

import gc
import multiprocessing
import weakref

from minicelery import forking
from minicelery.broker.pool import Pool


class Connection:
    """Holds what belongs to one process."""

    def __init__(self) -> None:
        self.taken = False
        forking.call_in_forked_children(self.reset)

    def reset(self) -> None:
        self.taken = False


def seen_by_a_child(connections: list[Connection]) -> list[bool]:
    """What a forked child finds taken."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=lambda: writer.send([connection.taken for connection in connections]))
    child.start()
    try:
        assert reader.poll(10)
        return reader.recv()
    finally:
        child.join(10)


def test_a_child_begins_anew_and_its_parent_goes_on() -> None:
    connections = [Connection(), Connection()]
    for connection in connections:
        connection.taken = True
    assert seen_by_a_child(connections) == [False, False]
    assert [connection.taken for connection in connections] == [True, True]


def test_an_object_that_is_gone_leaves_nothing_behind() -> None:
    gc.collect()
    before = len(forking._resets)
    pools = [Pool(1, Exception) for _ in range(1000)]
    assert len(forking._resets) == before + 1000
    last = weakref.ref(pools[-1])
    pools.clear()
    gc.collect()
    assert last() is None
    assert len(forking._resets) == before
