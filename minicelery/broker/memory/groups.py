"""Chords and saved groups in this process's memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from minicelery.broker.chords import LOOK_AGAIN, RESEND, as_copy, pause, released
from minicelery.message import Group, Message, Record
from minicelery.states import IGNORED, SUCCESS

LEFT = 172800.0
"""Seconds that a group stays whose body has been sent, where it would stay for ever."""


@dataclass(slots=True)
class Counted:
    """A group, and how far it is."""

    group: Group
    expires: float
    ended: set[str] = field(default_factory=set)
    owed_at: float | None = None
    tries: int = 0
    claimed: str = ""

    def body(self) -> Message:
        """The body, as it is sent now."""
        assert self.group.body is not None
        return released(self.group.body, self.group.countdown)


class MemoryGroups:
    """Every call is made under the store's lock."""

    def __init__(self) -> None:
        self.open: dict[str, Counted] = {}
        self.saved: dict[str, tuple[bytes, float]] = {}

    def add(self, groups: Sequence[Group]) -> None:
        """Open groups; one of which something has ended already stays as it is."""
        now = time.time()
        for group in groups:
            found = self.open.get(group.id)
            if found is None or not (found.group.sent or found.ended):
                until = float("inf") if group.ttl is None else now + group.ttl
                self.open[group.id] = Counted(group, until, owed_at=group.deadline)

    def until(self, id: str) -> float:
        """How long the results of the group's members are kept at least."""
        found = self.open.get(id)
        if found is None or found.group.sent:
            return 0.0
        return float("inf") if found.group.until is None else found.group.until

    def count(self, record: Record, apart: bool = False) -> Message | None:
        """Count the end of a part; the body where that is now to be sent.  `apart`: by somebody else."""
        found = self.open.get(record.part_of)
        if found is None or record.id in found.ended:
            return None
        found.ended.add(record.id)
        well = record.state in (SUCCESS, IGNORED)
        if found.group.sent or (well and len(found.ended) < len(set(found.group.members))):
            return None
        found.group.sent = now = time.time()
        found.expires = min(found.expires, now + LEFT) if found.expires == float("inf") else found.expires
        found.owed_at = time.time() + RESEND if apart else None
        body = found.body()
        return as_copy(body) if apart else body

    def load(self, id: str) -> Group | None:
        """The group, as it is now."""
        found = self.open.get(id)
        return None if found is None else replace(found.group, members=list(found.group.members), body=None)

    def claim(self, id: str, copy: str) -> bool:
        """Whether the copy of the body is the first one that asks."""
        found = self.open.get(id)
        if found is None:
            return True
        found.claimed = found.claimed or copy
        found.owed_at = None
        return found.claimed == copy

    def join(self, id: str, member: str) -> bool:
        """Have the body wait for one more; False where it is on its way."""
        found = self.open.get(id)
        if found is None or found.group.sent:
            return False
        if member not in found.group.members:
            found.group.members.append(member)
        return True

    def owed(self, now: float, place: str) -> list[Message]:
        """Bodies to be sent, as nobody has said that they are, or as their deadline has come."""
        bodies = []
        for id, found in list(self.open.items()):
            if found.expires <= now:
                del self.open[id]
            elif found.owed_at is not None and found.owed_at <= now and found.group.place == place:
                found.group.sent = found.group.sent or now
                found.owed_at = now + pause(RESEND, found.tries)
                found.tries += 1
                bodies.append(as_copy(found.body()))
        for id in [id for id, (_, expires) in self.saved.items() if expires <= now]:
            del self.saved[id]
        return bodies

    def told(self, ids: Sequence[str]) -> None:
        """The bodies of these are sent."""
        for id in ids:
            if (found := self.open.get(id)) is not None and found.owed_at is not None:
                found.owed_at = time.time() + pause(LOOK_AGAIN, found.tries)
