"""What a picture is made of: rows of boxes and forks, from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

BOXES = 300
"""So many boxes at most: no reader takes in more, and Mermaid refuses more than 500 edges."""
MEMBERS = (7, 5, 4, 3)
"""So many members of a fork are drawn, by how deep it stands; deeper ones as the last."""
LINKS = 40
"""So many links of a chain are drawn."""

T = TypeVar("T")


@dataclass(slots=True)
class Box:
    """One call; or, with `more`, what is not drawn."""

    title: str
    detail: str = ""
    state: str = ""
    about: str = ""
    """What a reader who points at it is told."""
    branches: list[Branch] = field(default_factory=list)
    more: bool = False


@dataclass(slots=True)
class Branch:
    """What is called beside the row: after a success, after a failure, or by the task itself."""

    caption: str
    row: Row
    failure: bool = False


@dataclass(slots=True)
class Fork:
    """Rows side by side; `joined` is what stands where they come together, if something follows."""

    rows: list[Row]
    caption: str
    joined: str = ""


Row: TypeAlias = "list[Box | Fork]"


def more(what: str) -> Box:
    """The box that stands for what is left out."""
    return Box(f"… {what}", more=True)


def members_at(depth: int) -> int:
    """How many members are drawn of a fork that stands in `depth` others."""
    return MEMBERS[min(depth, len(MEMBERS) - 1)]


def ends_of(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """The beginning of `items`, what is left out where they are many, and the end."""
    if len(items) <= LINKS:
        return items, (), ()
    first, last = LINKS // 2, LINKS // 4
    return items[:first], items[first:-last], items[-last:]
