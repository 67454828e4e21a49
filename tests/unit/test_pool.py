"""Connections that threads share: none stays open after the end."""

from __future__ import annotations

import time

from minicelery.broker.pool import Pool


class Link:
    """Something that is open until it is closed."""

    open = True

    def close(self) -> None:
        self.open = False


def filled(pool: Pool) -> Link:
    """A link in a slot that is idle."""
    slot = pool.take(time.monotonic() + 1)
    slot.link = link = Link()
    pool.put_back(slot)
    return link


def test_closing_closes_what_is_idle_and_the_slots_are_used_again() -> None:
    pool = Pool(2, TimeoutError)
    link = filled(pool)
    pool.close()
    slot = pool.take(time.monotonic() + 1)
    assert not link.open and slot.link is None
    slot.link = again = Link()
    pool.put_back(slot)
    assert again.open
    pool.close()
    assert not again.open


def test_what_is_in_use_while_the_pool_is_closed_is_closed_when_it_comes_back() -> None:
    pool = Pool(2, TimeoutError)
    link = filled(pool)
    slot = pool.take(time.monotonic() + 1)
    assert slot.link is link
    pool.close()
    assert link.open  # somebody speaks with it
    pool.put_back(slot)
    assert not link.open and pool.take(time.monotonic() + 1) is slot
