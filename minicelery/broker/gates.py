"""The rules of limits, for the stores that are written in Python: SQLite and memory.

Redis has the same rules as scripts, in `redis/gates`; `tests/conformance/test_limits` holds
both to the same.

Who can't pass a gate waits in its line.  The first ones of a line are *called*: put at the front
of their queue, or into its delay until their turn.  A room calls as many as it has free places
and keeps those for them; a rate calls those whose turn is near.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from minicelery.limits import RATE, ROOM, UNIQUE, Ask, Wait

NEAR = 1.0
"""Seconds before its turn that a message is called: a fetch for each run would slow high rates down."""
CALLED = 15.0
"""Seconds that a place is kept for who has been called to it."""
OVERDUE = 5.0
"""Seconds after its turn that a called message counts as gone, and the next one is called."""
SILENCE = 20.0
"""Seconds without a word of a room after which its places are not trusted to be given up."""
TOLERATED = 1.0
"""Seconds that a run may begin late, at most its interval, without the next ones being later too."""
_MOST_CALLS = 200
_SOONEST, _LATEST = 0.2, 600.0
_QUICKEST, _SLOWEST = 0.02, 60.0


@dataclass(slots=True)
class Gate:
    """What is known of one gate."""

    interval: float = 0.0  # of a rate: seconds between two runs
    next: float = 0.0  # the next run may begin
    tail: float = 0.0  # the times up to here are given away
    late: float = 0.0  # the same, for those that came at their time and could not pass
    size: int = 0  # of a room: runs at a time
    took: float = 1.0  # seconds that a run takes, averaged
    seen: float = 0.0  # when it was last asked for


class Gates(ABC):
    """The rules; a subclass is what they are kept in.

    Every call is made within one transaction of the store, or under its lock.
    """

    @abstractmethod
    def load(self, name: str) -> Gate:
        """The gate of that name; a new one where nothing is known of it."""

    @abstractmethod
    def save(self, name: str, gate: Gate) -> None:
        """Keep what is known of a gate."""

    @abstractmethod
    def places(self, name: str, now: float) -> int:
        """How many places of a room are taken, once those are given up whose time has ended."""

    @abstractmethod
    def has_place(self, name: str, holder: str) -> bool:
        """Whether `holder` has one of them."""

    @abstractmethod
    def take_place(self, name: str, holder: str, until: float) -> None:
        """Give `holder` a place, or keep the one it has, until then."""

    @abstractmethod
    def leave_place(self, name: str, holder: str) -> None:
        """Give up the place of `holder`, if it has one."""

    @abstractmethod
    def prolong(self, name: str, until: float) -> None:
        """Keep every place of a room at least until then."""

    @abstractmethod
    def has_line(self, name: str) -> bool:
        """Whether a message waits."""

    @abstractmethod
    def call(self, name: str, due: float | None) -> str | None:
        """Put the first message of the line at its queue's front, or into the delay; its id, if there is one."""

    @abstractmethod
    def forget(self, key: str, holder: str) -> None:
        """Free the unique key, if `holder` holds it."""

    # -- the rules -------------------------------------------------------------------------

    def admit(self, ask: Ask, now: float, *, parks: bool) -> Wait | None:
        """See `Limits.admit`."""
        mine = False
        if ask.room:
            room = self.load(ask.room)
            room.size = ask.size
            self._fill(ask.room, room, now)
            mine = self.has_place(ask.room, ask.id)
            if not mine and self.places(ask.room, now) >= ask.size:
                if parks and ask.rate and ask.turn is not None:
                    self._skip(ask.rate, now)
                wait = Wait(ask.room, ask.turn or now) if parks else _estimate(ask, room, now)
                self.save(ask.room, room)
                return wait
            self.save(ask.room, room)
        if ask.rate and (refused := self._pass_rate(ask, now, parks)) is not None:
            if mine:
                self._leave(ask.room, ask.id, now)
            return refused
        if ask.room:
            self.take_place(ask.room, ask.id, now + ask.lease)
        return None

    def _pass_rate(self, ask: Ask, now: float, parks: bool) -> Wait | None:
        gate = self.load(ask.rate)
        gate.interval = ask.interval
        called = ask.turn is not None
        if now < gate.next or not (
            called or (max(gate.tail, gate.late) <= now and not self.has_line(ask.rate))
        ):
            wait = Wait(ask.rate, ask.turn or now) if parks else _slot(ask, gate, now)
            self.save(ask.rate, gate)
            return wait
        in_time = called and now - gate.next <= min(ask.interval, TOLERATED)
        gate.next = (gate.next if in_time else now) + ask.interval
        self._move(ask.rate, gate, now)
        self.save(ask.rate, gate)
        return None

    def renew(self, places: Sequence[tuple[str, str, float]], now: float) -> None:
        """See `Limits.renew`."""
        for name, holder, seconds in places:
            gate = self.load(name)
            self._trust(name, gate, now)
            self.save(name, gate)
            if self.has_place(name, holder):
                self.take_place(name, holder, now + seconds)

    def free(self, holder: str, release: Sequence[str], now: float, took: float = 0.0) -> None:
        """See `Limits.free`."""
        for name in release:
            if name.startswith(UNIQUE):
                self.forget(name, holder)
            elif name.startswith(RATE):
                self._skip(name, now)
            else:
                self._leave(name, holder, now, took)

    def let_in(self, name: str, now: float) -> None:
        """Call who may come: after a message has joined the line."""
        gate = self.load(name)
        if name.startswith(ROOM):
            self._fill(name, gate, now)
        else:
            self._move(name, gate, now)
        self.save(name, gate)

    def look(self, name: str, now: float) -> None:
        """Call who may come, should whoever would have done it be gone."""
        gate = self.load(name)
        if name.startswith(RATE):
            if now < max(gate.next, gate.tail - gate.interval) + OVERDUE:
                return
            gate.tail = gate.next
            self.save(name, gate)
        self.let_in(name, now)

    def purged(self, name: str) -> None:
        """Messages of the line are dropped, and perhaps those who were called."""
        gate = self.load(name)
        gate.tail = gate.next
        self.save(name, gate)

    def _leave(self, name: str, holder: str, now: float, took: float = 0.0) -> None:
        self.leave_place(name, holder)
        gate = self.load(name)
        if took:
            gate.took += (took - gate.took) * 0.2
        self._fill(name, gate, now)
        self.save(name, gate)

    def _fill(self, name: str, gate: Gate, now: float) -> None:
        """Have those at the head of a room's line take its free places."""
        self._trust(name, gate, now)
        taken = self.places(name, now)
        # Of a room that nobody remembers, one is called: it says how large it is.
        left = gate.size - taken if gate.size else 1
        while left > 0 and (holder := self.call(name, None)) is not None:
            if gate.size:
                self.take_place(name, holder, now + CALLED)
            left -= 1

    def _trust(self, name: str, gate: Gate, now: float) -> None:
        """After an outage every place would be up: nobody could renew it."""
        if gate.seen and now - gate.seen > SILENCE:
            self.prolong(name, now + CALLED)
        gate.seen = now

    def _move(self, name: str, gate: Gate, now: float) -> None:
        """Call those of a rate's line whose turn is near, and at least the next one."""
        for _ in range(_MOST_CALLS):
            turn = max(gate.next, gate.tail)
            if turn > now + NEAR and gate.tail > gate.next:
                return
            if self.call(name, turn if turn > now else None) is None or not gate.interval:
                return
            gate.tail = max(turn, now) + gate.interval

    def _skip(self, name: str, now: float) -> None:
        """One that had been called does not begin: its turn goes to the next one."""
        gate = self.load(name)
        gate.tail = max(gate.next, gate.tail - gate.interval)
        self._move(name, gate, now)
        self.save(name, gate)


# -- where the store keeps no messages -----------------------------------------------------


def _slot(ask: Ask, gate: Gate, now: float) -> Wait:
    """When a message is to come back that can't begin yet: each has a time of its own."""
    turn = ask.turn
    if turn is not None and turn > now:
        slot = max(gate.next, turn)  # before its time
    elif turn is not None and now - turn < max(1.0, ask.interval):
        slot = max(gate.next, gate.late)
        gate.late = slot + ask.interval
    else:
        slot = max(gate.next, gate.tail, gate.late)
        gate.tail = slot + ask.interval
    return Wait(ask.rate, slot, max(0.0, slot - now))


def _estimate(ask: Ask, gate: Gate, now: float) -> Wait:
    """When a message is to come back that found no place: about as many do as places come free."""
    each = min(max(gate.took / ask.size, _QUICKEST), _SLOWEST)
    if ask.turn is None:
        slot = gate.tail = min(max(gate.tail, now) + each, now + _LATEST)
    else:
        slot = gate.late = min(max(gate.late, now) + each, now + _LATEST)
    return Wait(ask.room, ask.turn or now, max(_SOONEST, (slot - now) * random.uniform(0.9, 1.1)))
